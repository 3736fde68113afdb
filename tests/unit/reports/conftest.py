"""A trained and analysed sweep of three methods and two seeds, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import analysed_sweep, copied


@pytest.fixture(scope="session")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep's results; tests must not change it or the runs in its storage."""
    return analysed_sweep(digits, tmp_path_factory.mktemp("page"))


@pytest.fixture
def storage(small: Path, tmp_path: Path) -> Path:
    """A copy of the storage that a test may change."""
    return copied(small.parent.parent, tmp_path)
