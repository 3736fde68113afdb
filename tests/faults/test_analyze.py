"""Analyses whose processes are killed, as a person starts them: what is done stays, the rest is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.tasks import TaskPlan, load_settings, plan_analyses, read_result
from seal_ray.distributed.launch import prepare_job
from seal_ray.recipe import dump_job
from seal_ray.storage.files import write_durably
from seal_ray.training.loop import fit
from tests.faults.conftest import environment, images_of, make_job, processes_marked
from tests.runs import keeping

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
CHANGES = ["curvature.images=40", "curvature.steps=10", "curvature.top=2"]
COMMAND = """
import sys
import time
from pathlib import Path
from rich.console import Console
from seal_ray.analysis import pool
from seal_ray.analysis.run import analyze_moments, summary
from seal_ray.analysis.tasks import load_settings

class Worker(pool.Worker):
    def work(self, task):
        done = super().work(task)
        while HELD:
            time.sleep(0.1)
        return done

if __name__ == "__main__":
    pool.Worker = Worker
    console = Console(width=200, soft_wrap=True)
    settings = load_settings("quick", CHANGES)
    outcomes = analyze_moments(Path(sys.argv[1]), console, what=["curvature"], settings=settings, workers=2)
    console.print(summary(outcomes))
"""


@pytest.fixture
def run(digits: Path, tmp_path: Path) -> Path:
    """The folder of a run with six moments."""
    keep = {"moments": ["init", "ascended", "relearned"]}
    job = make_job(digits, tmp_path / "runs", {"name": "seal", "ascent_rate": 0.5}, keep=keep)
    planned = prepare_job(job)
    placement = keeping(("init", "ascended", "relearned"))
    list(fit(planned.job.recipe, images_of(planned.job), store=planned.store, placement=placement))
    write_durably(planned.store.folder / "job.yaml", dump_job(planned.job).encode())
    return planned.store.folder


class Analysis:
    """One `analyze` in a process of its own, and all that it starts. held: no worker answers."""

    def __init__(self, run: Path, *, held: bool = False) -> None:
        self.mark = uuid.uuid4().hex
        command = COMMAND.replace("HELD", str(held)).replace("CHANGES", str(CHANGES))
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, str(run)],
            env=environment(self.mark),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, at most for minutes, for a condition that comes before the end."""
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> str:
        """What it printed, once it has ended and left no process behind."""
        printed = self.process.communicate(timeout=300)[0]
        deadline = time.monotonic() + 60
        while processes_marked(self.mark):
            assert time.monotonic() < deadline, [p.cmdline() for p in processes_marked(self.mark)]
            time.sleep(0.1)
        return printed


def planned(run: Path) -> TaskPlan:
    return plan_analyses(find_runs(run), ["curvature"], None, load_settings("quick", CHANGES))


def test_killed_actors_and_a_killed_driver_lose_the_tasks_in_hand_alone(run: Path) -> None:
    first = Analysis(run)
    first.until(lambda: len(planned(run).known) >= 1)
    workers = [one for one in processes_marked(first.mark) if one.name().startswith("ray::Worker")]
    for process in workers:
        process.kill()
    assert workers
    first.until(lambda: len(planned(run).known) >= 3)
    first.process.kill()
    first.end()
    kept = planned(run)
    assert 3 <= len(kept.known) < 6
    written = {task.moment: read_result(task.moment, "curvature") for task in kept.known}

    again = Analysis(run)
    printed = again.end()
    assert again.process.returncode == 0, printed
    assert f"{len(kept.known)} analyses are there already, {len(kept.todo)} to go" in printed
    assert f"{len(kept.todo)} computed, {len(kept.known)} known" in printed
    for moment, held in written.items():
        assert read_result(moment, "curvature") == held
    assert len(planned(run).known) == 6


def test_ctrl_c_ends_it_and_the_same_command_goes_on(run: Path) -> None:
    first = Analysis(run, held=True)  # after the first task of each of the two
    first.until(lambda: len(planned(run).known) >= 1)
    os.killpg(first.process.pid, signal.SIGINT)  # as a terminal does
    printed = first.end()
    assert first.process.returncode == 0, printed
    assert "stopped; the same command goes on with what is left" in printed
    assert "Traceback" not in printed
    assert 1 <= len(planned(run).known) <= 2
    printed = Analysis(run).end()
    assert len(planned(run).known) == 6, printed
