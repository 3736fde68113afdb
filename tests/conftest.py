"""A small prepared data set for the tests that train on real images."""

from __future__ import annotations

from pathlib import Path

import pytest

from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the digits, prepared."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(open_source("digits", source=None), folder, classes=4, per_class=24)
    return folder
