"""`analyses:` in a run or a sweep: made when training has ended, left when it was only stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from seal_ray import api
from seal_ray.analysis.moments import sweep_runs
from seal_ray.analysis.run import analyse_after, analysing_sweep
from seal_ray.recipe import Job
from seal_ray.sweeps.results import SweepRuns
from seal_ray.sweeps.tune import run_sweep
from tests.sweeps import screen, small_sweep


def sweep(data: Path, folder: Path, analyses: Any = ("calibration",)) -> SweepRuns:
    axes = {"method": {"normal": "normal", "llf": "llf"}}
    return small_sweep(data, folder / "runs", axes=axes, analyses=analyses)


def train(runs: SweepRuns, rich: Console) -> None:
    asked: dict[str, Any] = {"concurrent": None, "in_process": True}
    beside = analysing_sweep(runs, rich, **asked)
    run_sweep(runs, rich, share=True, address=None, **asked, while_training=beside)


def test_a_sweep_that_asks_for_analyses_ends_with_them(digits: Path, tmp_path: Path) -> None:
    runs = sweep(digits, tmp_path)
    assert {one.job.analyses.what for one in runs.planned} == {("calibration",)}
    console, printed = screen()
    train(runs, console)
    made = sorted(path.name for path in (tmp_path / "runs").glob("*/analysis/*.json"))
    assert made == sorted(f"calibration-g00{g}-relearned.json" for g in range(3) for _ in range(2))
    # each has its own of generations 1 and 2, and they share generation 0
    assert "analyses: 5 computed, 1 copied" in printed.getvalue()


def test_which_moments_and_how_is_said_beside_what(digits: Path, tmp_path: Path) -> None:
    asked = {"what": "depth", "moments": "last", "settings": {"depth": {"k": 7}}}
    runs = sweep(digits, tmp_path, asked)
    train(runs, screen()[0])
    made = sorted((tmp_path / "runs").glob("*/analysis/*.json"))
    assert [path.name for path in made] == ["depth-g002-relearned.json"] * 2
    assert [json.loads(path.read_text())["settings"]["k"] for path in made] == [7, 7]


def test_what_is_asked_for_later_is_made_without_training(digits: Path, tmp_path: Path) -> None:
    train(sweep(digits, tmp_path, ()), screen()[0])
    assert not list((tmp_path / "runs").glob("*/analysis/*.json"))
    sweep(digits, tmp_path)
    console, printed = screen()
    for done in ("5 computed, 1 copied", "6 known"):
        api.sweep(tmp_path / "small.yaml", in_process=True, console=console)
        assert "nothing to train" in printed.getvalue()
        assert f"analyses: {done}" in printed.getvalue()


def test_a_moment_that_no_run_has_is_said_and_the_sweep_ends_well(digits: Path, tmp_path: Path) -> None:
    runs = sweep(digits, tmp_path, {"what": "calibration", "moments": "ascended"})
    console, printed = screen()
    train(runs, console)
    assert "analyses: none: --moments ascended: no run in" in printed.getvalue()
    assert {one.store.status()["status"] for one in runs.planned} == {"finished"}


def test_what_was_stopped_is_analysed_when_it_has_gone_on(digits: Path, tmp_path: Path) -> None:
    runs = sweep(digits, tmp_path)
    console, printed = screen()
    analyse_after(lambda: sweep_runs(runs), runs.planned[0].job.analyses, console, in_process=True)
    assert "analyses: none: " in printed.getvalue()  # nothing has begun
    train(runs, console)
    runs.planned[0].store.set_status("stopped")
    analyse_after(lambda: sweep_runs(runs), runs.planned[0].job.analyses, console, in_process=True)
    assert "analyses: the rest is made when training goes on" in printed.getvalue()


def test_analyses_are_no_part_of_what_a_run_computes(digits: Path, tmp_path: Path) -> None:
    with_them, without = sweep(digits, tmp_path), small_sweep(digits, tmp_path / "plain" / "runs")
    assert with_them.planned[0].run_id == without.planned[0].run_id
    with pytest.raises(ValueError, match="analyses"):
        Job.model_validate({**with_them.planned[0].job.model_dump(mode="json"), "analyses": ["colour"]})
