"""What the documentation says is done where it needs Ray: a run, a sweep, a job of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT, Reader, blocks, page_before
from tests.ray.conftest import TOKEN

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FOLLOW = """
import sys
from pathlib import Path
from tests.documents import Reader
folder, page, *read = map(Path, sys.argv[1:])
Reader(folder, ("ray",), set(read)).follow(page)
"""
"""A reader starts a Ray of their own, so not in the process that has the tests' one."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody with a Ray cluster."""
    return Reader(tmp_path_factory.mktemp("reader"), ("ray",))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.needs == "ray" for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_can_be_followed(page: Path, reader: Reader, address: str, tmp_path: Path) -> None:
    of_reader = {"HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_TOKEN": TOKEN}
    subprocess.run(
        [sys.executable, "-c", FOLLOW, reader.folder, page, *reader.read],
        cwd=reader.folder,
        env={**os.environ, **of_reader, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    followed: Path | None = page
    while followed is not None:
        reader.read.add(followed)
        followed = page_before(followed)
