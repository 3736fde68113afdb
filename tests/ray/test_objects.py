"""A run of two workers with its data and its storage on S3, started from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seal_ray.distributed.launch import prepare_job
from seal_ray.distributed.workers import train_to_end
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Job, dump_job
from seal_ray.storage.paths import ObjectPath, cache_folder
from seal_ray.training.world import World
from tests.ray.conftest import small_job
from tests.runs import same_tensors, without_speeds
from tests.s3 import CREDENTIALS

pytestmark = pytest.mark.ray
SECRET = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]


def on_s3(job: Job, data: ObjectPath, storage: ObjectPath) -> Job:
    """The same job with its data and its storage elsewhere."""
    recipe = job.recipe.model_copy(update={"data": job.recipe.data.model_copy(update={"path": str(data)})})
    placement = job.placement.model_copy(update={"storage": str(storage)})
    return job.model_copy(update={"recipe": recipe, "placement": placement})


def test_two_workers_train_on_s3_what_one_process_trains_in_a_folder(
    digits: Path, bucket: ObjectPath, tmp_path: Path
) -> None:
    for file in digits.iterdir():
        (bucket / "data" / "digits" / file.name).write_bytes(file.read_bytes())
    job = small_job(digits, tmp_path / "runs", {"name": "seal", "ascent_rate": 0.5}, loader="torch")
    here = prepare_job(job)
    alone = job.placement.model_copy(update={"workers": 1})
    train_to_end(here.job.model_copy(update={"placement": alone}), here.store, World(), lambda _: None)

    moved = on_s3(job, bucket / "data" / "digits", bucket / "runs")
    (tmp_path / "small.yaml").write_text(dump_job(moved))
    command = [sys.executable, "-m", "seal_ray", "train", str(tmp_path / "small.yaml")]
    trained = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert trained.returncode == 0, trained.stderr
    assert "6/6" in trained.stdout or "finished" in trained.stdout

    there = prepare_job(moved)
    assert there.run_id == here.run_id
    end = Position(2, 1)
    ours, theirs = here.store.at(end), there.store.at(end)
    same_tensors(ours.weights, theirs.weights, "weights")
    same_tensors(ours.optimizer, theirs.optimizer, "optimizer")
    assert without_speeds(ours.rows, "workers") == without_speeds(theirs.rows, "workers")
    assert [row["workers"] for row in theirs.rows] == [2] * 6
    assert len(list((cache_folder() / "data").iterdir())) == 1
    assert list((there.store.folder).glob("wandb")) == []

    written = "\n".join(path.read_text() for path in there.store.folder.iterdir() if path.is_file())
    assert SECRET not in trained.stdout + trained.stderr + written
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert "finished already, nothing to train" in again.stdout
