"""What the documentation says is done where it needs Ray: a run, a sweep, a job of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT, Reader, blocks
from tests.ray.conftest import TOKEN

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


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
    reader.follow_alone(page, **of_reader)
