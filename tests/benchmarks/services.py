"""What saving, reporting, tracking and starting cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from seal_ray.errors import SealRayWarning
from seal_ray.recipe import Job
from seal_ray.runs.folder import Store
from seal_ray.storage.files import size_of
from seal_ray.tracking.wandb import Wandb
from seal_ray.training.run import Run
from tests.benchmarks.measure import Result, best_of, happened
from tests.benchmarks.training import BenchData, epochs_of, open_run
from tests.unit.tracking.test_wandb import history

EPOCH = 10.0  # seconds of the epoch that shares are taken of


def saving(data: BenchData) -> Iterator[Result]:
    """A commit of a ResNet-18 of width 64: 45 MB of weights and as much momentum."""
    run = open_run(data, 64)
    epochs_of(run)()
    named = run.network.named_parameters()
    run.optimizer = {f"{name}:momentum_buffer": torch.zeros_like(parameter) for name, parameter in named}
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        store = Store(Path(folder), run.id)
        run.rows.append(_row(run, 0))

        def begin() -> None:
            run.hash_weights()
            run._commit(store, [], 0)

        waited, wrote = best_of(5, begin, run.writer.wait)
        run.writer.close()
        held = size_of(store.folder / "checkpoints")
        happened(store.latest() is not None and held > 80e6, f"the checkpoint has {held} bytes")
    yield Result("checkpoint of 90 MB, share of a 10 s epoch", 100 * waited / EPOCH, "%", at_most=2)
    yield Result("  what its thread takes beside the next epoch", 100 * wrote / EPOCH, "%")


def tracking(data: BenchData) -> Iterator[Result]:
    run = open_run(data, 16)
    job = Job.model_validate(
        {
            "name": "bench",
            "recipe": run.recipe.model_dump(mode="json"),
            "placement": {"tracking": {"wandb": "offline"}},
        }
    )
    with tempfile.TemporaryDirectory(dir=data.folder) as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tracker = Wandb(job, Store(Path(folder), run.id), "bench", "offline")
        tracker.log(_row(run, 0))
        time.sleep(5)  # W&B starts beside training
        started = time.process_time()
        for epoch in range(1, 101):
            tracker.log(_row(run, epoch))
        tracker.close()
        spent = (time.process_time() - started) / 100
        given_up = [str(one.message) for one in said if issubclass(one.category, SealRayWarning)]
        happened(not given_up, f"W&B said {given_up}")
        (file,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
        happened(len(history(file)) == 101, "W&B does not hold all epochs")
    yield Result("CPU time that W&B and metrics take of an epoch", 1000 * spent, "ms", at_most=50)


def reporting_and_starting(data: BenchData) -> Iterator[Result]:
    """`seal-ray train` on two workers, from the command to the first optimizer step."""
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(
            json.dumps(
                {
                    "recipe": {
                        "data": {"path": str(data.dataset.folder)},
                        "model": {"arch": "resnet18", "width": 16},
                        "method": "normal",
                        "budget": {"epochs": 6, "generation_length": 6},
                        "batch_size": 128,
                        "shards": 2,
                    },
                    "placement": {"workers": 2, "storage": str(Path(folder) / "runs")},
                }
            )
        )
        started = time.time()
        command = [sys.executable, "-m", "seal_ray", "train", str(file)]
        environment = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        marks = {}
        for line in process.stdout:
            marks.setdefault(
                "launched" if " workers" in line else "epoch" if line.startswith("g") else "", time.time()
            )
        happened(process.wait() == 0, f"{' '.join(command)} failed")
        (run,) = (Path(folder) / "runs").iterdir()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        happened(len(rows) == 6 and marks.keys() >= {"launched", "epoch"}, f"{len(rows)} epochs, {marks}")
        first = rows[0]
        spent = first["seconds_data"] + first["seconds_compute"] + first["seconds_eval"]
        step = marks["epoch"] - started - spent
    yield Result("seconds from `seal-ray train` to the first step, 2 workers", step, "s", at_most=12)
    yield Result("  of it until Ray is up and the run is launched", marks["launched"] - started, "s")


def _row(run: Run, epoch: int) -> dict[str, object]:
    """A metric row of the usual size."""
    generation, inside = divmod(epoch, run.recipe.budget.length)
    numbers = {f"metric_{i}": 0.123456789 * i for i in range(20)}
    at = {"generation": generation, "epoch": inside, "global_epoch": epoch}
    return {"run_id": run.id, "trained_by": run.id, **at, "val_top1": 50.0, "val_loss": 1.0, **numbers}


BENCHMARKS = (saving, tracking, reporting_and_starting)
