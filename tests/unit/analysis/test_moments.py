"""What a path stands for, which moments a run keeps, and what each is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from seal_ray.analysis.moments import AnalysedRun, Moment, find_runs
from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source
from seal_ray.errors import CheckpointError, ConfigError, DataError
from seal_ray.runs.folder import Store
from tests.unit.analysis.conftest import run_of

METHODS = ["llf", "normal", "seal"]


def analysed_run(storage: Path, method: str) -> AnalysedRun:
    (run,) = find_runs(run_of(storage, method)).runs
    return run


def test_a_run_its_storage_and_its_sweep_are_targets(trained: Path) -> None:
    run = run_of(trained, "seal")
    alone = find_runs(run)
    assert [(one.folder, one.label, one.baseline) for one in alone.runs] == [(run, "seal", None)]
    assert alone.folder == run

    stored = find_runs(trained)
    assert [one.label for one in stored.runs] == METHODS
    assert {one.baseline for one in stored.runs} == {None}
    assert stored.folder == trained

    normal = run_of(trained, "normal")
    for path in (trained.parent / "small.yaml", trained / "sweeps/small"):
        target = find_runs(path)
        assert target.folder == trained / "sweeps/small"
        assert sorted(one.label for one in target.runs) == METHODS
        baselines = {one.label: one.baseline for one in target.runs}
        assert baselines == {"normal": None, "llf": normal, "seal": normal}


def test_a_run_file_is_that_run(trained: Path, tmp_path: Path) -> None:
    run = run_of(trained, "llf")
    file = tmp_path / "llf.yaml"
    held = yaml.safe_load((run / "job.yaml").read_text())
    file.write_text(yaml.safe_dump({**held, "placement": {**held["placement"], "storage": "elsewhere"}}))
    assert find_runs(file, storage=str(trained)).runs[0].folder == run
    with pytest.raises(ConfigError, match=r"--storage: .* is no YAML file"):
        find_runs(run, storage=str(trained))


def test_moments_come_in_the_order_in_which_the_run_reached_them(trained: Path) -> None:
    labels = [moment.label for moment in analysed_run(trained, "llf").moments()]
    generations = [f"g00{g}-{name}" for g in (1, 2) for name in ("forgotten", "relearned")]
    assert labels == ["g000-init", "g000-relearned", *generations]
    assert [m.name for m in analysed_run(trained, "seal").moments()][2:4] == ["ascended", "relearned"]


def test_a_moment_knows_its_weights_and_how_long_they_were_trained(trained: Path) -> None:
    run = analysed_run(trained, "seal")
    rows = {row["global_epoch"]: row["weights_sha256"] for row in Store(run.folder, run.run_id).rows()}
    epochs = {moment.label: run.facts(moment).epochs for moment in run.moments()}
    assert epochs == {
        "g000-init": 0,
        "g000-relearned": 2,
        "g001-ascended": 3,
        "g001-relearned": 4,
        "g002-ascended": 5,
        "g002-relearned": 6,
    }
    for moment in run.moments()[1:]:
        facts = run.facts(moment)
        assert facts.weights_sha256 == rows[facts.epochs - 1]


def test_an_ascent_begins_at_the_end_of_the_generation_before_or_after_its_edit(
    trained: Path, storage: Path
) -> None:
    seal = analysed_run(trained, "seal")
    ascended = Moment(seal.folder, 2, "ascended")
    assert seal.before_ascent(ascended) == Moment(seal.folder, 1, "relearned")

    run = run_of(storage, "seal")
    (run / "moments/g001-relearned/manifest.json").unlink()
    copied = analysed_run(storage, "seal")
    assert copied.before_ascent(Moment(run, 2, "ascended")) is None

    method = copied.job.recipe.method.__class__(forget="llf", ascent_rate=0.5)
    edited = copied.job.model_copy(update={"recipe": copied.job.recipe.model_copy(update={"method": method})})
    assert AnalysedRun(run, edited, "seal").before_ascent(Moment(run, 2, "ascended")) is None
    (run / "moments/g002-ascended").rename(run / "moments/g002-forgotten")
    forgotten = Moment(run, 2, "forgotten")
    assert AnalysedRun(run, edited, "seal").before_ascent(Moment(run, 2, "ascended")) == forgotten


def test_damaged_runs_are_left_out_and_said(storage: Path) -> None:
    (run_of(storage, "llf") / "job.yaml").write_text("recipe: {")
    target = find_runs(storage)
    assert [one.label for one in target.runs] == ["normal", "seal"]
    assert list(target.unreadable) == [run_of(storage, "llf").name]
    (storage / "sweeps/small/results.json").write_text(json.dumps({"runs": [{}]}))
    with pytest.raises(CheckpointError, match=r"results\.json: damaged"):
        find_runs(storage / "sweeps/small")


def test_paths_that_stand_for_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_runs(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds no runs"):
        find_runs(tmp_path)


def test_another_data_set_is_refused(storage: Path, tmp_path: Path) -> None:
    run = run_of(storage, "seal")
    prepare(open_source("digits", source=None), tmp_path / "other", classes=4, per_class=25)
    held = yaml.safe_load((run / "job.yaml").read_text())
    held["recipe"]["data"]["path"] = str(tmp_path / "other")
    (run / "job.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(DataError, match=r"is not the data set that seal-s0-.* was trained on"):
        analysed_run(storage, "seal").dataset()
