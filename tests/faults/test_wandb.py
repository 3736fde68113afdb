"""W&B that is killed, hangs or cannot be reached costs a warning and nothing else; training never waits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.message import DecodeError

from seal_ray.recipe import Job, dump_job
from tests.faults.conftest import environment, make_job, processes_marked
from tests.runs import without_speeds
from tests.unit.tracking.test_wandb import records
from tests.wandb_server import KEY, closed_port, deaf_server

pytestmark = pytest.mark.faults


def command(job: Job, folder: Path, *more: object) -> list[str]:
    folder.mkdir()
    (folder / "job.yaml").write_text(dump_job(job))
    arguments = [folder / "job.yaml", folder / "run", *more]
    return [sys.executable, "-m", "tests.faults.tracked", *map(str, arguments)]


def train(job: Job, folder: Path, *more: object, **variables: str) -> list[dict[str, Any]]:
    """What a training process printed, in order: its epochs and its warnings. No process is left of it."""
    mark = folder.name + str(time.monotonic())
    environ = environment(mark, HOME=str(folder), **variables)
    done = subprocess.run(
        command(job, folder, *more), env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert processes_marked(mark) == []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def rows(said: list[dict[str, Any]]) -> list[Any]:
    """The epochs, without their speeds."""
    return without_speeds([one["row"] for one in said if "row" in one])


def warned(said: list[dict[str, Any]]) -> list[str]:
    return [one["warning"] for one in said if "warning" in one]


@pytest.fixture(scope="module")
def untracked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The epochs of the job without W&B."""
    folder = tmp_path_factory.mktemp("untracked")
    said = train(job_for(digits, folder, "off"), folder / "off")
    assert warned(said) == []
    return rows(said)


def job_for(digits: Path, storage: Path, wandb: str) -> Job:
    tracked = {"wandb": wandb, "project": "trial"}
    return make_job(
        digits, storage, {"name": "seal", "ascent_rate": 0.5}, width=4, workers=1, tracking=tracked
    )


@pytest.mark.parametrize("server", [deaf_server, closed_port], ids=["hangs", "unreachable"])
def test_training_does_not_wait_for_a_wandb_that_does_not_answer(
    server: Callable[[], Any], digits: Path, tmp_path: Path, untracked: list[Any]
) -> None:
    with server() as url:
        job = job_for(digits, tmp_path, "auto")
        said = train(job, tmp_path / "child", WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    (warning,) = warned(said)
    assert "W&B" in warning
    assert "training goes on and metrics.jsonl is complete; `seal-ray sync` brings W&B" in warning
    assert rows(said) == untracked
    assert "row" in said[0], "an epoch was trained before W&B was given up"


def test_a_wandb_process_that_is_killed_costs_one_warning(
    digits: Path, tmp_path: Path, untracked: list[Any]
) -> None:
    said = train(job_for(digits, tmp_path, "offline"), tmp_path / "child", 3)
    (warning,) = warned(said)
    assert warning.startswith("W&B is given up for this launch (")
    assert rows(said) == untracked


def test_a_kill_leaves_the_epochs_that_the_offline_history_had(digits: Path, tmp_path: Path) -> None:
    job = job_for(digits, tmp_path, "offline")
    recipe = job.recipe.model_dump(mode="json") | {"budget": {"epochs": 800, "generation_length": 4}}
    job = Job.model_validate(job.model_dump(mode="json") | {"recipe": recipe})
    environ = environment("killed", HOME=str(tmp_path))
    with subprocess.Popen(
        command(job, tmp_path / "child"), env=environ, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        written: list[int] = []
        for line in trainer.stdout:  # W&B writes while training goes on, not at its end
            assert "row" in json.loads(line)
            if len(written := written_history(tmp_path / "child" / "run")) >= 5:
                break
        # W&B's process too, as when a machine or a container goes.
        for process in (*psutil.Process(trainer.pid).children(), psutil.Process(trainer.pid)):
            process.kill()
    saved = written_history(tmp_path / "child" / "run")
    assert saved == list(range(len(saved)))
    assert len(saved) >= len(written) >= 5


def written_history(folder: Path) -> list[int]:
    return [epoch for path in folder.glob("wandb/offline-run-*/*.wandb") for epoch in history(path)]


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
