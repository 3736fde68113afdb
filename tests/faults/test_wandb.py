"""W&B that is killed, hangs or cannot be reached costs a warning and no time; a kill costs it a second."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.message import DecodeError

from seal_ray.recipe import Job, dump_job
from tests.faults.conftest import environment, make_job, processes_marked
from tests.runs import without_speeds
from tests.unit.test_tracking import records
from tests.wandb_server import KEY

pytestmark = pytest.mark.faults


def command(job: Job, folder: Path, *more: object) -> list[str]:
    folder.mkdir()
    (folder / "job.yaml").write_text(dump_job(job))
    arguments = [folder / "job.yaml", folder / "run", *more]
    return [sys.executable, "-m", "tests.faults.tracked", *map(str, arguments)]


def train(job: Job, folder: Path, *more: object, **variables: str) -> tuple[list[Any], list[str]]:
    """What a training process printed: its epochs and its warnings. No process is left of it."""
    mark = folder.name + str(time.monotonic())
    environ = environment(mark, HOME=str(folder), **variables)
    done = subprocess.run(
        command(job, folder, *more), env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert processes_marked(mark) == []
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [one for one in said if "row" in one], [one["warning"] for one in said if "warning" in one]


@pytest.fixture(scope="module")
def untracked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The epochs of the job without W&B."""
    folder = tmp_path_factory.mktemp("untracked")
    epochs, warned = train(job_for(digits, folder, "off"), folder / "off")
    assert warned == []
    return epochs


def job_for(digits: Path, storage: Path, wandb: str) -> Job:
    tracked = {"wandb": wandb, "project": "trial"}
    return make_job(digits, storage, {"name": "seal", "ascent_rate": 0.5}, workers=1, tracking=tracked)


def unharmed(epochs: list[Any], untracked: list[Any]) -> None:
    """Assert that an epoch computed and took what it does without W&B; much less than waiting would take."""
    rows = [[epoch["row"] for epoch in run] for run in (epochs, untracked)]
    assert without_speeds(rows[0]) == without_speeds(rows[1])
    seconds, usual = ([epoch["seconds"] for epoch in run[1:]] for run in (epochs, untracked))
    assert statistics.median(seconds) < 3 * statistics.median(usual)
    assert max(seconds) < 8 * statistics.median(seconds)
    assert epochs[0]["seconds"] < 3 * untracked[0]["seconds"]  # with start-up


@contextmanager
def deaf_server() -> Iterator[str]:
    """Accepts, because the system does, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    """Nobody listens here."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("server", [deaf_server, closed_port], ids=["hangs", "unreachable"])
def test_a_wandb_that_does_not_answer_costs_one_warning_and_no_time(
    server: Callable[[], Any], digits: Path, tmp_path: Path, untracked: list[Any]
) -> None:
    with server() as url:
        job = job_for(digits, tmp_path, "auto")
        epochs, warned = train(job, tmp_path / "child", WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    assert len(warned) == 1, warned
    assert "W&B" in warned[0]
    assert "training goes on and metrics.jsonl is complete" in warned[0]
    unharmed(epochs, untracked)


def test_a_wandb_process_that_is_killed_costs_one_warning_and_no_time(
    digits: Path, tmp_path: Path, untracked: list[Any]
) -> None:
    epochs, warned = train(job_for(digits, tmp_path, "offline"), tmp_path / "child", 3)
    assert len(warned) == 1, warned
    assert warned[0].startswith("W&B is given up for this launch (")
    unharmed(epochs, untracked)


def test_a_kill_costs_the_offline_history_about_a_second(digits: Path, tmp_path: Path) -> None:
    job = job_for(digits, tmp_path, "offline")
    recipe = job.recipe.model_dump(mode="json") | {"budget": {"epochs": 800, "generation_length": 4}}
    job = Job.model_validate(job.model_dump(mode="json") | {"recipe": recipe})
    environ = environment("killed", HOME=str(tmp_path))
    with subprocess.Popen(
        command(job, tmp_path / "child"), env=environ, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        seen: list[float] = []  # when each epoch was committed
        while len(seen) < 12 or seen[-1] - seen[0] < 8:
            assert json.loads(trainer.stdout.readline())["row"]["global_epoch"] == len(seen)
            seen.append(time.monotonic())
        killed = time.monotonic()
        # W&B's process too, as when a machine or a container goes.
        for process in (*psutil.Process(trainer.pid).children(), psutil.Process(trainer.pid)):
            process.kill()
    (path,) = (tmp_path / "child" / "run").glob("wandb/offline-run-*/*.wandb")
    saved = history(path)
    assert saved == list(range(len(saved)))
    assert len(saved) >= sum(at < killed - 3 for at in seen) > 0


def history(path: Path) -> list[int]:
    """The epochs in a .wandb file, whose last record may be cut."""
    epochs = []
    try:
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                epochs.append(int(items["global_epoch"]))
    except DecodeError:
        pass
    return epochs
