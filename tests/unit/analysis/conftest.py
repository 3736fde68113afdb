"""Small trained runs for the tests of analyses: a sweep on a few digits, trained once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from seal_ray.sweeps.results import write_results
from seal_ray.sweeps.tune import train_sweep
from tests.sweeps import screen, small_sweep


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with three methods' runs of one seed, of all moments; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    keep = {"moments": ["init", "forgotten", "ascended", "relearned"]}
    runs = small_sweep(digits, folder / "runs", placement={"keep": keep})
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    write_results(runs)
    return folder / "runs"


@pytest.fixture
def storage(trained: Path, tmp_path: Path) -> Path:
    """A copy of those runs that a test may change."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def run_of(storage: Path, method: str) -> Path:
    """The folder of a method's run."""
    (found,) = storage.glob(f"{method}-s0-*")
    return found
