"""Links between pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import ROOT

PAGES = [
    page
    for folder in (".", "docs", "cluster/*", "seal_ray/**")
    for page in sorted(ROOT.glob(f"{folder}/*.md"))
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), f"{page}: {path}"
        assert not anchor or anchor in anchors(target), f"{page}: {path}#{anchor}"


def test_the_pages_that_a_reader_begins_with_have_links() -> None:
    assert {ROOT / "README.md", ROOT / "docs/README.md", ROOT / "SECURITY.md"} <= set(PAGES)
    assert len(LINK.findall((ROOT / "README.md").read_text())) > 10
