"""What the documentation says is done: each block of each page, by the rule of `tests.documents`."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from seal_ray.cli import app
from seal_ray.recipe import load_job
from seal_ray.sweeps.file import is_sweep, load_sweep
from tests.cluster.material import check_ray, check_seal_ray, commands
from tests.documents import DOCS, NEEDS, PAGES, ROOT, Block, Reader, blocks, command_lines, prose, run_command
from tests.s3 import bucket_at

ALL = [block for page in PAGES for block in blocks(page)]
PARSED = [block for block in ALL if block.needs in ("setup", "data", "cluster", "service")]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody with one machine, an account of W&B and a bucket."""
    return Reader(tmp_path_factory.mktemp("reader"), ("wandb", "bucket"))


@pytest.fixture
def there(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The reader, in that folder."""
    monkeypatch.chdir(reader.folder)
    monkeypatch.syspath_prepend(reader.folder)
    monkeypatch.setenv("COLUMNS", "120")
    return reader


@pytest.fixture
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """What the blocks of a page need: W&B, a bucket, or nothing."""
    needs = {block.needs for block in blocks(request.getfixturevalue("page"))}
    if "wandb" in needs:
        request.getfixturevalue("server").projects = ("seal-ray",)
    else:
        request.getfixturevalue("no_key")
    if "bucket" not in needs:
        yield
        return
    with bucket_at(request.getfixturevalue("s3_server"), "my-bucket", tmp_path / "cache"):
        yield


@pytest.mark.docs
@pytest.mark.timeout(600)  # the first test of a page follows those before it, too
@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed(page: Path, there: Reader) -> None:
    there.follow_alone(page)


@pytest.mark.parametrize("block", PARSED, ids=str)
def test_a_command_that_cannot_be_run_here_is_one_that_exists(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://HEAD:8265")  # which the page sets
    for words in commands("\n".join(command_lines(block))):
        match words:
            case ["make", *rest]:
                assert {word for word in rest if "=" not in word} <= TARGETS
            case ["pip", "install", package]:
                extra = re.fullmatch(rf"{PROJECT['name']}\[(\w+)\]", package)
                assert extra
                assert extra[1] in PROJECT["optional-dependencies"]
            case ["ray", *rest]:
                check_ray(rest)
                if "python" in rest:
                    check_seal_ray(rest[rest.index("seal_ray") + 1 :])
            case ["seal-ray", *rest]:
                check_seal_ray(rest)
                check_options_of_a_job(rest)
            case ["export" | "aws" | "wandb" | "(umask", *_]:
                pass
            case _:
                raise AssertionError(f"{block}: {words}")
        check_files(words)


def check_options_of_a_job(words: list[str]) -> None:
    """Of `submit analyze|transfer|fewshot`, which passes options on: those commands know them."""
    if words[0] == "submit" and words[1] not in ("train", "sweep"):
        check_seal_ray([word for word in words[1:] if word != "--follow"])


def check_files(words: list[str]) -> None:
    """The YAML files that a command names are shipped, and valid with what it sets."""
    overrides = [value for option, value in pairwise(words) if option == "--set"]
    for word in words:
        if not word.endswith(".yaml"):
            continue
        file = ROOT / word
        assert file.is_file(), word
        if is_sweep(file):
            load_sweep(file, overrides)
        elif "evaluations" not in word:
            load_job(file, overrides)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_files_within_a_sentence_exist(page: Path) -> None:
    known = typer.main.get_command(app)
    for code in re.findall(r"`([^`]+)`", prose(page)):
        words = code.split()
        if words[0] == "make":
            assert words[1] in TARGETS, code
        if words[0] == "seal-ray":
            command = known
            for word in words[1:]:
                if hasattr(command, "commands") and not word.startswith("-"):
                    command = command.commands[word]
            options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= {"--help", *options}, code
        if re.match(r"(jobs|seal_ray|analysis|tests|cluster|docs)/", code):
            assert list(ROOT.glob(code)), code


@pytest.mark.parametrize("block", [block for block in ALL if block.file], ids=str)
def test_a_file_that_is_to_be_written_is_used(block: Block) -> None:
    done = [other.text for other in blocks(block.page) if other.language == "sh" and not other.needs]
    assert any(block.file in text for text in done)


def test_blocks_are_of_every_kind_and_nothing_else() -> None:
    assert {block.needs for block in ALL} == {"", *NEEDS}
    assert {block.language for block in ALL} == {"sh", "python", "yaml"}


@pytest.mark.parametrize(
    "text",
    [
        "```\nseal-ray runs\n```\n",
        "```bash\nseal-ray runs\n```\n",
        "- a list\n\n  ```sh\n  seal-ray runs\n  ```\n",
        "~~~sh\nseal-ray runs\n~~~\n",
        "Run this:\n\n    seal-ray runs\n",
        "<!-- needs: luck -->\n```sh\nseal-ray runs\n```\n",
        "<!-- skip: this -->\n```sh\nseal-ray runs\n```\n",
        "```sh\nseal-ray runs\n",
    ],
)
def test_no_block_escapes(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError):
        blocks(tmp_path / "page.md")


@pytest.mark.parametrize(
    "line", ["seal-ray runs --storage nowhere --nonsense", "false", "seal-ray validate no.yaml"]
)
def test_a_command_that_fails_is_noticed(line: str, there: Reader) -> None:
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        run_command(line)


def test_every_page_is_in_the_index() -> None:
    assert {page for page in PAGES if page.parent == DOCS} == set(DOCS.glob("*.md"))
    assert len(PAGES) == len(set(PAGES))
