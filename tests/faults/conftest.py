"""`seal-ray train` as a person starts it: a process of its own, with a Ray of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from seal_ray.data.images import Images
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import load_dataset
from seal_ray.data.sources import open_source
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Job, dump_job
from seal_ray.runs.folder import Store, open_store
from seal_ray.training.loop import fit
from tests.runs import same_state, without_speeds

MARK = "SEAL_RAY_TEST"
"""An environment variable that everything a launch starts inherits."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits, prepared: 12 steps an epoch."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(open_source("digits", source=None), folder, classes=4, per_class=100)
    return folder


def make_job(
    data: Path, storage: Path, method: dict[str, Any] | str, *, width: int = 16, **placement: Any
) -> Job:
    """Three generations of four epochs of a ResNet-18, for two workers."""
    return Job.model_validate(
        {
            "name": "faults",
            "recipe": {
                "data": {"path": str(data)},
                "model": {"arch": "resnet18", "width": width},
                "method": method,
                "budget": {"epochs": 12, "generation_length": 4},
                "augment": {"crop_padding": 2, "flip": False},
                "batch_size": 32,
                "shards": 4,
            },
            "placement": {
                "workers": 2,
                "loader": "torch",
                "storage": str(storage),
                "tracking": {"wandb": "off"},
                **placement,
            },
        }
    )


def environment(mark: str, **variables: str) -> dict[str, str]:
    """The environment of a process that is told by its mark, as is all that it starts."""
    ours = {MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return {**os.environ, **ours, **variables}


def processes_marked(mark: str) -> list[psutil.Process]:
    """The processes that carry a mark and are not merely unburied."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Command:
    """One `seal-ray` command and all that it starts."""

    def __init__(self, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from seal_ray.cli import main; main()", *arguments],
            env=environment(self.mark),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # as a shell gives each command a process group
        )

    def processes(self) -> list[psutil.Process]:
        """Everything that carries this launch's mark."""
        return processes_marked(self.mark)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return [process for process in self.processes() if "RayTrainWorker" in " ".join(process.cmdline())]

    def until(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the command has ended."""
        deadline = time.monotonic() + 200
        while not condition() and self.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> str:
        """What it printed, once it has ended and left no process behind."""
        printed = self.process.communicate(timeout=200)[0]
        deadline = time.monotonic() + 30
        while self.processes():
            assert time.monotonic() < deadline, [p.cmdline() for p in self.processes()]
            time.sleep(0.1)
        return printed

    def kill_all(self) -> None:
        """End whatever is left of it."""
        for process in self.processes():
            process.kill()
        self.process.communicate()


class Launch(Command):
    """One `seal-ray train` of a job, and its run."""

    def __init__(self, job: Job, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.yaml").write_text(dump_job(job))
        super().__init__("train", str(folder / "job.yaml"))
        self.store = open_store(job.placement.storage, job.recipe, images_of(job))

    def wait_for_epochs(self, count: int) -> None:
        """Until the run, not only this launch, has committed so many epochs."""
        self.until(lambda: len(self.store.rows()) >= count)
        assert self.process.poll() is None, self.process.communicate()[0]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Job], Launch]]:
    """Starts launches; whatever of them is left at the end of the test is killed."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    started: list[Launch] = []

    def launch(job: Job) -> Launch:
        started.append(Launch(job, tmp_path / f"launch-{len(started)}"))
        return started[-1]

    yield launch
    for one in started:
        one.kill_all()


def images_of(job: Job) -> Images:
    """The prepared images of a job, without FFCV."""
    return Images.from_dataset(load_dataset(Path(job.recipe.data.path)), loader="torch")


def same_as_undisturbed(job: Job, store: Store, folder: Path) -> None:
    """Assert that a finished run equals one that a single process trains undisturbed: state and metrics.

    folder: where that one is, or is to be; tests that share it train it once.
    """
    alone = open_store(folder, job.recipe, images_of(job))
    list(fit(job.recipe, images_of(job), store=alone))
    budget = job.recipe.budget
    end = Position(budget.generations - 1, budget.length - 1)
    one, other = alone.at(end), store.at(end)
    assert without_speeds(store.rows(), "workers") == without_speeds(alone.rows(), "workers")
    assert [row["global_epoch"] for row in store.rows()] == list(range(budget.epochs))
    assert store.status()["status"] == "finished"
    for snapshot in (one, other):
        for row in snapshot.rows:
            row.pop("workers")  # type: ignore[attr-defined]
    same_state(one, other)
    moments = [{path.name for path in (run.folder / "moments").iterdir()} for run in (alone, store)]
    assert moments[0] == moments[1]
