"""Analyses on a real Ray: actors share the tasks, agree with one process, and lose a task when they die."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from rich.console import Console

import seal_ray.analysis.pool
import seal_ray.analysis.run
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.pool import Done, compute_on_ray, pool_size
from seal_ray.analysis.run import analyze_moments
from seal_ray.analysis.tasks import Task, TaskOutcome, load_settings, plan_analyses, read_result
from seal_ray.errors import ClusterError
from seal_ray.sweeps.results import write_results
from seal_ray.sweeps.tune import train_sweep
from tests.sweeps import screen, small_sweep
from tests.unit.analysis.test_shards import agree, measured

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
SETTINGS = load_settings("quick", ["depth.k=5", "curvature.images=8", "curvature.steps=4", "curvature.top=2"])
TINY = {"axes": {"method": {"seal": {"name": "seal", "ascent_rate": 0.5}}}}


@pytest.fixture
def run(digits: Path, tmp_path: Path) -> Path:
    """The folder of a trained run with five moments."""
    runs = small_sweep(digits, tmp_path / "runs", **TINY)
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    write_results(runs)
    return runs.planned[0].store.folder


def planned(run: Path, *what: Any) -> tuple[Task, ...]:
    return plan_analyses(find_runs(run), what, None, SETTINGS).todo


def numbers(tasks: tuple[Task, ...]) -> list[Any]:
    held = [read_result(task.moment, task.what) for task in tasks]
    return [one and one["result"] for one in held]


def test_actors_find_what_one_process_finds(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_ray.analysis.run, "ray_session", lambda *_: contextlib.nullcontext())
    tasks = planned(run, "depth", "calibration")
    printed = io.StringIO()
    console = Console(file=printed, width=200, soft_wrap=True)
    asked: dict[str, Any] = {"what": ["depth", "calibration"], "settings": SETTINGS}
    outcomes = analyze_moments(run, console, workers=2, **asked)
    assert [one.status for one in outcomes] == ["computed"] * 10
    assert printed.getvalue().count(": computed in ") == 10
    found = numbers(tasks)
    for path in (run / "analysis").iterdir():
        path.unlink()
    analyze_moments(run, console, in_process=True, **asked)
    for ours, theirs in zip(found, numbers(tasks), strict=True):
        same = ("nll", "ece", "top1") if "ece" in ours else ("probes",)
        assert [ours[name] for name in same] == [theirs[name] for name in same]
        assert ours.get("val") == theirs.get("val")


def computed(tasks: Sequence[Task]) -> Iterator[Done]:
    """What two actors make of tasks, as it comes."""
    return (news for news in compute_on_ray(tasks, 2) if isinstance(news, Done))


def actors() -> list[psutil.Process]:
    """The processes of analyses."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::Worker") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_an_actor_that_dies_loses_its_task_which_another_finds(run: Path) -> None:
    tasks = planned(run, "depth")
    done: list[Done] = []
    killed = 0
    for one in computed(tasks):
        done.append(one)
        if not killed:  # both actors are at a task by now
            for process in actors():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    assert killed
    assert sorted(one.task.key for one in done) == sorted(task.key for task in tasks)
    assert [one.reason for one in done] == [""] * 5
    assert None not in numbers(tasks)


def test_a_task_that_kills_its_process_fails_and_the_others_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_ray.analysis.pool, "Worker", Deadly)
    tasks = planned(run, "calibration")
    done = {one.task.moment.label: one.reason for one in computed(tasks)}
    assert len(done) == 5
    assert done["g001-ascended"].startswith("its process died 4 times: ")
    assert {label for label, reason in done.items() if reason} == {"g001-ascended"}


class Deadly:
    """A worker that does nothing, and dies of one moment."""

    def __init__(self, *_: Any) -> None:
        pass

    def ready(self) -> None:
        """Answers once the process has started."""

    def work(self, task: Task) -> Done:
        if task.moment.label == "g001-ascended":
            os.kill(os.getpid(), signal.SIGKILL)
        return Done(task)


def test_slots_are_those_of_the_cluster() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    assert pool_size(None, 100).count == cpus
    assert pool_size(None, 1).count == 1
    assert pool_size(1, 100).count == 1
    with pytest.raises(ClusterError, match=f"--workers {cpus + 1}: each needs a CPU, the cluster has {cpus}"):
        pool_size(cpus + 1, 100)


def test_left_over_actors_end_when_the_work_is_dropped(run: Path) -> None:
    working = compute_on_ray(planned(run, "calibration"), 2)
    first = next(news for news in working if isinstance(news, Done))
    assert TaskOutcome.of(first.task, "computed").status == "computed"
    working.close()
    psutil.wait_procs(actors(), timeout=20)
    assert actors() == []


def test_processes_that_share_a_moments_images_find_what_one_finds() -> None:
    agree(measured(1), measured(2))
