"""The pages of the documentation: their blocks, the commands in them, and how a reader would follow them.

A block of a page is fenced, in a known language, and does what its language says: `sh` is run, `python` is
executed, `yaml` is part of a job, `text` is what is printed. A comment on the line before it says otherwise:
`file: NAME` is written to a file, `quotes: PATH` is taken from the source, `needs: WHAT` needs more than this
process. A comment `after: PAGE` at the top names the page that a page goes on from.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from seal_ray import cli
from seal_ray.recipe import load_job

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INDEX = re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text())
PAGES = [ROOT / "README.md", DOCS / "README.md", *(DOCS / name for name in INDEX)]
NEEDS = {
    "setup": "the package manager: checked against the Makefile and pyproject.toml",
    "data": "archives, images or weights that the reader brings: parsed",
    "cluster": "a cluster of the reader's: parsed",
    "service": "an account with somebody else: parsed",
    "wandb": "W&B: run against the tests' server",
    "bucket": "an object store: run against moto",
    "ray": "Ray on this machine: run by `make test-ray`",
}
MARKS = {"sh": {"needs"}, "python": {"needs", "file", "quotes"}, "yaml": {"file"}, "text": set[str]()}
FOLLOW = """
import sys
from pathlib import Path
from tests.documents import Reader
folder, available, page, *read = sys.argv[1:]
Reader(Path(folder), available.split(","), set(map(Path, read))).follow(Path(page))
"""
MARK = re.compile(r"<!-- (\w+): (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its fence in the page, from 1."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    def __str__(self) -> str:
        """Where it is."""
        return f"{self.page.name}:{self.line}"

    @property
    def needs(self) -> str:
        """What it needs beside this process, or ""."""
        return self.value if self.mark == "needs" else ""

    @property
    def file(self) -> str:
        """The file that it is to be written to, or ""."""
        return self.value if self.mark == "file" else ""


def blocks(page: Path) -> list[Block]:
    """The blocks of a page; AssertionError for one that no test would know what to do with."""
    return list(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    indented = [i + 1 for i, line in enumerate(lines) if line.startswith(("    ", "\t"))]
    fences = [i for i, line in enumerate(lines) if re.search("```|~~~", line)]
    assert len(fences) % 2 == 0, f"{page}: a fence is open"
    within = {i + 1 for a, b in zip(fences[::2], fences[1::2], strict=True) for i in range(a, b)}
    assert set(indented) <= within, f"{page.name}: indented, as code without a fence is: {indented}"
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        where = f"{page.name}:{start + 1}"
        language = re.fullmatch(r"```(\w+)", lines[start])
        assert lines[end] == "```", f"{where}: ends in {lines[end]!r}"
        assert language, f"{where}: a fence without a language, or not at the margin"
        assert language[1] in MARKS, f"{where}: {language[1]} is none of {sorted(MARKS)}"
        mark = re.fullmatch(MARK, lines[start - 1])
        name, value = (mark[1], mark[2]) if mark else ("", "")
        assert not name or name in MARKS[language[1]], f"{where}: {name}"
        assert name != "needs" or value in NEEDS, f"{where}: needs {value}"
        yield Block(page, start + 1, language[1], "\n".join(lines[start + 1 : end]) + "\n", name, value)


def prose(page: Path) -> str:
    """A page without its blocks and comments."""
    return re.sub(r"<!--.*?-->|```.*?```", "", page.read_text(), flags=re.DOTALL)


def page_before(page: Path) -> Path | None:
    """The page that a page goes on from."""
    found = re.search(r"^<!-- after: (\S+) -->$", page.read_text(), re.MULTILINE)
    return page.parent / found[1] if found else None


def command_lines(block: Block) -> list[str]:
    """The commands of a block, a line each, without comments."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    return [line for line in re.sub(r"(?m)(^|\s+)#.*$", "", joined).splitlines() if line]


@dataclass
class Reader:
    """Somebody who follows pages in a folder, and which were read. available: what blocks may need."""

    folder: Path
    available: Collection[str]
    read: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Put what the repository ships into the folder."""
        if not (self.folder / "jobs").exists():
            (self.folder / "jobs").symlink_to(ROOT / "jobs")

    def follow(self, page: Path) -> None:
        """Do what a page says, after the pages that it goes on from."""
        if (before := page_before(page)) and before not in self.read:
            self.follow(before)
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks(page):
            if block.mark != "quotes" and (not block.needs or block.needs in self.available):
                self._do(block, names)
        self.read.add(page)

    def follow_alone(self, page: Path, **environment: str) -> None:
        """The same in a process of its own: what Ray, W&B and plugin files leave in it ends with it."""
        path = os.pathsep.join(map(str, (self.folder, ROOT)))
        subprocess.run(
            [sys.executable, "-c", FOLLOW, self.folder, ",".join(self.available), page, *self.read],
            cwd=self.folder,
            env={**os.environ, **environment, "PYTHONPATH": path},
            check=True,
        )
        followed: Path | None = page
        while followed is not None:
            self.read.add(followed)
            followed = page_before(followed)

    def _do(self, block: Block, names: dict[str, Any]) -> None:
        if block.file:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "sh":
            for line in command_lines(block):
                run_command(line)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)
        elif block.language == "yaml":
            check_fragment(block, self.folder)


def run_command(line: str) -> None:
    """Run a command line as a shell would; those of seal-ray in this process."""
    if not line.startswith("seal-ray "):
        subprocess.run(["bash", "-euc", line], check=True)
        return
    expanded = subprocess.run(["bash", "-euc", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", expanded.stdout.decode().split("\0")[:-1])
        cli.main()
    assert not ended.value.code, f"{line}: ended with {ended.value.code}"


def check_fragment(block: Block, folder: Path) -> None:
    """A block of YAML is part of a job: with the guide's fields for the rest it is a valid one."""
    [first] = [one.text for one in blocks(DOCS / "guide.md") if one.file == "first.yaml"]
    job, part = yaml.safe_load(first), yaml.safe_load(block.text)
    whole = {
        key: {**job.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in part.items()
    }
    (folder / "fragment.yaml").write_text(yaml.safe_dump({**job, **whole}))
    load_job(folder / "fragment.yaml")
