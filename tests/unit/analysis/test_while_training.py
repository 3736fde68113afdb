"""`analyses:` in a run or a sweep: made when training has ended, left when it was only stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from seal_ray.analysis.moments import sweep_runs
from seal_ray.analysis.run import analyse_after, analysing_sweep
from seal_ray.recipe import Job
from seal_ray.sweeps.results import SweepRuns
from seal_ray.sweeps.tune import run_sweep
from tests.sweeps import screen, small_sweep


def sweep(data: Path, folder: Path) -> SweepRuns:
    axes = {"method": {"normal": "normal", "llf": "llf"}}
    return small_sweep(data, folder / "runs", axes=axes, analyses=["calibration"])


def train(runs: SweepRuns, rich: Console) -> None:
    asked: dict[str, Any] = {"concurrent": None, "in_process": True}
    beside = analysing_sweep(runs, rich, **asked)
    run_sweep(runs, rich, share=True, address=None, **asked, while_training=beside)


def test_a_sweep_that_asks_for_analyses_ends_with_them(digits: Path, tmp_path: Path) -> None:
    runs = sweep(digits, tmp_path)
    assert {one.job.analyses for one in runs.planned} == {("calibration",)}
    console, printed = screen()
    train(runs, console)
    made = sorted(path.name for path in (tmp_path / "runs").glob("*/analysis/*.json"))
    assert made == sorted(f"calibration-g00{g}-relearned.json" for g in range(3) for _ in range(2))
    # each has its own of generations 1 and 2, and they share generation 0
    assert "analyses: 5 computed, 1 copied" in printed.getvalue()


def test_what_was_stopped_is_analysed_when_it_has_gone_on(digits: Path, tmp_path: Path) -> None:
    runs = sweep(digits, tmp_path)
    console, printed = screen()
    analyse_after(lambda: sweep_runs(runs), ("calibration",), console, in_process=True)
    assert "analyses: none: " in printed.getvalue()  # nothing has begun
    train(runs, console)
    runs.planned[0].store.set_status("stopped")
    analyse_after(lambda: sweep_runs(runs), ("calibration",), console, in_process=True)
    assert "analyses: the rest is made when training goes on" in printed.getvalue()


def test_analyses_are_no_part_of_what_a_run_computes(digits: Path, tmp_path: Path) -> None:
    with_them, without = sweep(digits, tmp_path), small_sweep(digits, tmp_path / "plain" / "runs")
    assert with_them.planned[0].run_id == without.planned[0].run_id
    with pytest.raises(ValueError, match="analyses"):
        Job.model_validate({**with_them.planned[0].job.model_dump(mode="json"), "analyses": ["colour"]})
