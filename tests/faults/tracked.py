"""What one worker does in a run, without Ray, in a process of its own; it prints each epoch as JSON.

`python -m tests.faults.tracked JOB FOLDER [EPOCH]`: after EPOCH epochs it kills W&B's process.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import psutil

from seal_ray.data.prepared import load_dataset
from seal_ray.distributed.workers import train_job
from seal_ray.errors import SealRayWarning
from seal_ray.recipe import Job, load_job
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import run_id
from seal_ray.tracking import wandb as tracking
from seal_ray.training.world import World

PATIENCE = 15.0
"""Seconds that W&B is waited for; long against all epochs together, short for a test."""


def train(job: Job, folder: Path, kill_after: int | None) -> None:
    """Train the job, printing of each epoch its row and the process's memory in bytes."""
    identity = run_id(job.recipe, load_dataset(Path(job.recipe.data.path)).training_identity)
    for done, row in enumerate(train_job(job, Store(folder, identity), World()), 1):
        memory = psutil.Process().memory_info().rss
        tell(row=row, memory=memory)
        if done == kill_after:
            _kill_wandb()


def tell(**facts: object) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _kill_wandb() -> None:
    found = []
    while not found:  # it is started from a thread
        found = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    for child in found:
        child.kill()


if __name__ == "__main__":
    tracking.WANDB_TIMEOUT = tracking.ONLINE_TIMEOUT = PATIENCE
    warnings.simplefilter("always", SealRayWarning)
    warnings.showwarning = lambda message, *_, **__: tell(warning=str(message))
    train(load_job(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
