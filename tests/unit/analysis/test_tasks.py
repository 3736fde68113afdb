"""Which analyses are to be made, which are the same work, and who works on what."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from seal_ray.analysis import ANALYSES, Result
from seal_ray.analysis.calibration import CalibrationSettings
from seal_ray.analysis.curvature import Curvature
from seal_ray.analysis.moments import Moment, find_runs
from seal_ray.analysis.pool import TaskQueue
from seal_ray.analysis.tasks import (
    AnalysisSettings,
    Task,
    copy_result,
    load_settings,
    plan_analyses,
    read_arrays,
    read_result,
    result_path,
    write_result,
)
from seal_ray.errors import CheckpointError, ConfigError
from tests.unit.analysis.conftest import run_of

QUICK = AnalysisSettings()


def places(tasks: Sequence[Task]) -> list[str]:
    return [f"{task.moment.run.name.split('-')[0]} {task.moment.label}" for task in tasks]


def finish(task: Task) -> None:
    """Write some result of a task."""
    write_result(task.moment, task.what, task.head(), Result({"x": 1.0}, {"a": np.arange(3)}))


def test_equal_weights_are_analysed_once(storage: Path) -> None:
    planned = plan_analyses(find_runs(storage), ["depth"], None, QUICK)
    assert len(planned.todo) == 2 + 4 + 2 + 4
    copied = {place for same in planned.copies.values() for place in places(same)}
    assert copied == {f"{run} g000-{name}" for run in ("normal", "seal") for name in ("init", "relearned")}
    assert planned.tasks == 16
    for task in planned.todo:
        for same in planned.copies.get(task.key, ()):
            assert same.weights_sha256 == task.weights_sha256


def test_what_is_there_is_not_planned_again_and_is_given_to_its_equals(storage: Path) -> None:
    before = plan_analyses(find_runs(storage), ["depth"], None, QUICK)
    for task in before.todo:
        finish(task)
    after = plan_analyses(find_runs(storage), ["depth"], None, QUICK)
    assert after.todo == ()
    assert after.known == before.todo
    assert after.copies == before.copies
    source = after.known[0]
    (first, _) = after.copies[source.key]
    copy_result(source.moment, first.moment, "depth", first.head())
    held = read_result(first.moment, "depth")
    assert held is not None
    assert held["run_id"] == first.moment.run.name
    assert held["copied_from"] == f"{source.moment.run.name}/{source.moment.label}"
    assert held["result"] == {"x": 1.0}
    assert read_arrays(first.moment, "depth")["a"].tolist() == [0, 1, 2]


def test_a_result_without_its_arrays_or_that_is_damaged_is_none(storage: Path) -> None:
    (first, second, *_) = plan_analyses(find_runs(storage), ["depth"], None, QUICK).todo
    finish(first)
    finish(second)
    result_path(first.moment, "depth", ".npz").unlink()
    result_path(second.moment, "depth").write_text("{")
    again = plan_analyses(find_runs(storage), ["depth"], None, QUICK)
    assert [task.key for task in again.todo[:2]] == [first.key, second.key]
    with pytest.raises(CheckpointError, match="is gone"):
        copy_result(first.moment, second.moment, "depth", second.head())


def keys(storage: Path, what: str, settings: AnalysisSettings = QUICK) -> set[str]:
    return {task.key for task in plan_analyses(find_runs(storage), [what], None, settings).todo}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("depth.k=10", "depth"),
        ("curvature.seed=1", "curvature"),
        ("similarity.images=9", "similarity"),
        ("calibration.bins=3", "calibration"),
    ],
)
def test_settings_decide_what_is_known_of_their_own_analysis_alone(
    trained: Path, change: str, changed: str
) -> None:
    other = load_settings("quick", [change])
    for what in ("depth", "curvature", "similarity", "calibration"):
        assert keys(trained, what).isdisjoint(keys(trained, what, other)) == (what == changed)
        assert (keys(trained, what) == keys(trained, what, other)) == (what != changed)


def test_a_change_of_what_one_analysis_finds_makes_its_old_results_unknown_alone(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {what: keys(trained, what) for what in ("depth", "curvature")}
    monkeypatch.setattr(Curvature, "version", Curvature.version + 1)
    assert keys(trained, "curvature").isdisjoint(before["curvature"])
    assert keys(trained, "depth") == before["depth"]


def test_a_similarity_depends_on_what_it_is_compared_with(trained: Path) -> None:
    alone = plan_analyses(find_runs(trained), ["similarity"], ["relearned"], QUICK)
    swept = plan_analyses(find_runs(trained / "sweeps/small"), ["similarity"], ["relearned"], QUICK)
    roles = [set(task.others) for task in alone.todo if task.moment.run == run_of(trained, "seal")]
    assert roles == [{"before", "generation"}] * 2
    last = next(task for task in swept.todo if task.moment == Moment(run_of(trained, "seal"), 2, "relearned"))
    normal, seal = run_of(trained, "normal"), run_of(trained, "seal")
    assert last.others == {
        "before": Moment(seal, 2, "ascended"),
        "generation": Moment(seal, 1, "relearned"),
        "baseline": Moment(normal, 2, "relearned"),
    }
    assert last.key not in {task.key for task in alone.todo}


def test_a_curvature_of_an_ascended_moment_depends_on_where_the_ascent_began(trained: Path) -> None:
    planned = plan_analyses(find_runs(run_of(trained, "seal")), ["curvature"], None, QUICK)
    others = {task.moment.label: dict(task.others) for task in planned.todo if task.others}
    start = Moment(run_of(trained, "seal"), 0, "relearned")
    assert others["g001-ascended"] == {"before": start}
    assert set(others) == {"g001-ascended", "g002-ascended"}


def test_a_moment_that_no_run_has_is_an_error_and_one_that_some_lack_is_said(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"--moments ascended: no run .* there are init, relearned"):
        plan_analyses(find_runs(run_of(trained, "normal")), ["depth"], ["ascended"], QUICK)
    planned = plan_analyses(find_runs(trained), ["depth"], ["ascended"], QUICK)
    assert places(planned.todo) == ["seal g001-ascended", "seal g002-ascended"]
    assert [outcome.run_id.split("-")[0] for outcome in planned.failed] == ["llf", "normal"]
    assert "has no moment ascended; it has g000-init, g000-relearned" in planned.failed[1].reason


def test_damaged_manifests_and_missing_data_fail_alone(storage: Path) -> None:
    seal = run_of(storage, "seal")
    (seal / "moments/g002-relearned/manifest.json").write_text("{}")
    planned = plan_analyses(find_runs(storage), ["depth"], ["relearned"], QUICK)
    assert [(one.run_id, one.moment) for one in planned.failed] == [(seal.name, "g002-relearned")]
    assert len(planned.todo) == 1 + 2 + 2 + 1
    text = (seal / "job.yaml").read_text()
    (seal / "job.yaml").write_text(text.replace("/digits", "/moved"))
    planned = plan_analyses(find_runs(storage), ["depth"], ["relearned"], QUICK)
    assert [(one.run_id, one.moment) for one in planned.failed] == [(seal.name, "")]
    assert "holds no data set" in planned.failed[0].reason


def test_settings_and_names_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="--preset slow: is not one of quick, paper"):
        load_settings("slow")
    with pytest.raises(ConfigError, match=r"depth\.k: must be a whole number"):
        load_settings("quick", ["depth.k=many"]).of(ANALYSES)
    with pytest.raises(ConfigError, match=r"depth\.kk: unknown field; did you mean 'k'"):
        load_settings("quick", ["depth.kk=3"]).of(ANALYSES)
    paper = load_settings("paper", ["curvature.parts=[early]"]).of(ANALYSES)
    assert (paper["curvature"].parts, paper["curvature"].images) == (("early",), 2_000)
    assert paper["calibration"].model_dump() == CalibrationSettings().model_dump()


def test_analyses_are_made_in_their_order_and_an_unknown_one_is_an_error(trained: Path) -> None:
    with pytest.raises(ConfigError, match="--what depht: is not one of depth, curvature, sim"):
        plan_analyses(find_runs(trained), ["depht"], None, QUICK)
    planned = plan_analyses(find_runs(trained), ["calibration", "depth"], ["g000-init"], QUICK)
    assert [task.what for task in planned.todo] == ["depth", "calibration"]


def task(moment: int, what: str) -> Task:
    return Task([what][0], Moment(Path("run"), moment, "relearned"), f"{moment}{what}", "", 0, {})


def test_a_worker_stays_with_its_moment_and_helps_out_at_the_end() -> None:
    tasks = [task(m, what) for m in range(2) for what in ("depth", "curvature", "similarity")]
    agenda = TaskQueue(tasks)
    first, second = agenda.next(0), agenda.next(1)
    assert (first, second) == (tasks[0], tasks[3])
    assert [agenda.next(0), agenda.next(0)] == tasks[1:3]
    assert agenda.next(0) == tasks[4]
    assert agenda.next(1) == tasks[5]
    assert not agenda
    assert agenda.next(0) is None
    agenda.again(tasks[1])
    assert agenda.rest() == [tasks[1]]
    assert agenda.next(1) == tasks[1]


def test_results_leave_nothing_half_written(storage: Path) -> None:
    (first, *_) = plan_analyses(find_runs(storage), ["depth"], None, QUICK).todo
    shutil.rmtree(storage / "sweeps")
    finish(first)
    write_result(first.moment, "depth", first.head(), Result({"x": float("nan")}, {"a": np.arange(2)}))
    held = read_result(first.moment, "depth")
    assert held is not None
    assert held["result"] == {"x": None}
    assert held["files"] == [".npz"]
    names = sorted(path.name for path in (first.moment.run / "analysis").iterdir())
    assert names == [f"depth-{first.moment.label}.json", f"depth-{first.moment.label}.npz"]
