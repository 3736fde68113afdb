"""Each README is a page, and its commands are ones that exist, on files that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.material import (
    CLUSTER,
    READMES,
    ROOT,
    check_job,
    check_ray,
    check_seal_ray,
    commands,
    shell_blocks,
)

NAMES = [readme.parent.name for readme in READMES]
BLOCKS = [(one.parent.name, block) for one in READMES for block in shell_blocks(one)]
WORDS = [(name, words) for name, block in BLOCKS for words in commands(block)]


def inner(words: list[str], *starts: str) -> list[str] | None:
    """The command within a command, such as what `kubectl exec ... -- seal-ray runs` runs."""
    for i, word in enumerate(words):
        if word in starts and words[i - 1] != "--namespace":
            return words[i:]
        if word.startswith(starts) and " " in word:
            return commands(word.replace("\n", " "))[0]
    return None


def test_every_folder_has_a_readme() -> None:
    assert sorted(path.name for path in CLUSTER.iterdir() if path.is_dir()) == NAMES


@pytest.mark.parametrize("readme", READMES, ids=NAMES)
def test_it_is_one_page_that_says_everything(readme: Path) -> None:
    text = readme.read_text()
    assert len(text.splitlines()) <= 110
    if readme.parent.name != "docker":
        headings = " ".join(re.findall(r"^## (.+)$", text, re.MULTILINE)).lower()
        assert re.search(r"start.*submit.*watch.*stop.*clean up", headings)
        assert "RAY_AUTH_MODE=token" in text


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_the_shell_can_read_it(name: str, block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stderr}"


def test_ray_and_seal_ray_know_the_commands() -> None:
    seen = set()
    for _, words in WORDS:
        seal_ray, job = inner(words, "seal-ray"), inner(words, "python")
        if words[0] == "ray":
            check_ray(words[1:])
        if seal_ray and "sbatch" not in words:
            check_seal_ray(seal_ray[1:])
        if job:
            check_job(job)
        seen |= {words[0], *(["job"] if job else []), *(["seal-ray"] if seal_ray else [])}
    assert {"ray", "seal-ray", "job", "kubectl", "docker", "sbatch"} <= seen


@pytest.mark.parametrize("words", [words for _, words in WORDS if words[0] == "sbatch"], ids=" ".join)
def test_what_slurm_is_given_is_a_command_of_seal_ray(words: list[str]) -> None:
    at = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
    kind, file = words[at + 1 : at + 3]
    check_job(["python", "-m", "seal_ray", kind, file, *words[at + 3 :]])


def test_the_files_named_exist() -> None:
    named = {word for _, words in WORDS for word in words if re.match(r"(cluster|jobs)/\S+\.\w+$", word)}
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "file", sorted({words[2] for _, words in WORDS if words[:2] == ["seal-ray", "validate"]})
)
def test_what_is_to_be_validated_is_valid(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    from seal_ray.cli import app

    app(["validate", str(ROOT / file)], standalone_mode=False)
    assert "valid" in capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for readme in READMES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"
