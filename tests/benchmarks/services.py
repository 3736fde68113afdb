"""What saving, reporting, tracking and starting cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from seal_ray.recipe import Job
from seal_ray.runs.folder import Store
from seal_ray.tracking.wandb import Wandb
from seal_ray.training.run import Run
from tests.benchmarks.measure import Result, best_of
from tests.benchmarks.training import BenchData, epochs_of, open_run

EPOCH = 10.0  # seconds of the epoch that shares are taken of


def saving(data: BenchData) -> Iterator[Result]:
    """A commit of a ResNet-18 of width 64: 45 MB of weights and as much momentum."""
    run = open_run(data, 64)
    epochs_of(run)()
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        store = Store(Path(folder), run.id)
        run.rows.append(_row(run, 0))
        (spent,) = best_of(5, lambda: store.commit(run._snapshot()))
    yield Result("checkpoint of 90 MB, share of a 10 s epoch", 100 * spent / EPOCH, "%", at_most=2)


def tracking(data: BenchData) -> Iterator[Result]:
    run = open_run(data, 16)
    job = Job.model_validate(
        {
            "name": "bench",
            "recipe": run.recipe.model_dump(mode="json"),
            "placement": {"tracking": {"wandb": "offline"}},
        }
    )
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        tracker = Wandb(job, Store(Path(folder), run.id), "bench", "offline")
        tracker.log(_row(run, 0))
        time.sleep(5)  # W&B starts beside training
        started = time.process_time()
        for epoch in range(1, 101):
            tracker.log(_row(run, epoch))
        tracker.close()
        spent = (time.process_time() - started) / 100
    yield Result("W&B and metrics, share of a 10 s epoch", 100 * spent / EPOCH, "%", at_most=0.5)


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
        process.wait()
        (run,) = (Path(folder) / "runs").iterdir()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        first = rows[0]
        spent = first["seconds_data"] + first["seconds_compute"] + first["seconds_eval"]
        step = marks["epoch"] - started - spent
    yield Result("seconds from `seal-ray train` to the first step, 2 workers", step, "s", at_most=25)
    yield Result("  of it until Ray is up and the run is launched", marks["launched"] - started, "s")


def _row(run: Run, epoch: int) -> dict[str, object]:
    """A metric row of the usual size."""
    numbers = {f"metric_{i}": 0.123456789 * i for i in range(20)}
    return {"run_id": run.id, "generation": 0, "epoch": epoch, "global_epoch": epoch, **numbers}


BENCHMARKS = (saving, tracking, reporting_and_starting)
