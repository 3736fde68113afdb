"""What a sweep's controller costs for each further run, and what sharing generations saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Result
from tests.benchmarks.training import BenchData

METHODS = {"normal": "normal", "llf": "llf", "seal": "seal", "ke": "ke"}


def overhead(data: BenchData) -> Iterator[Result]:
    """Wall time beyond the epochs' own seconds that each run after the first adds."""
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        for workers, concurrent, limit in ((2, 1, 18), (1, 2, 12)):
            spent = {
                runs: _beyond_epochs(data, Path(folder) / f"{workers}-{runs}", workers, concurrent, runs)
                for runs in (concurrent, 4)
            }
            further = (spent[4] - spent[concurrent]) / (4 - concurrent)
            how = "one at a time" if concurrent == 1 else "two side by side"
            yield Result(f"seconds that a further run of a sweep adds, {how}", further, "s", at_most=limit)


def sharing(data: BenchData) -> Iterator[Result]:
    """A sweep of four methods that share their first generation, against one that does not share."""
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        walls, epochs = {}, {}
        for option in ("--share", "--no-share"):
            storage = Path(folder) / option
            file = _sweep(data, storage, 1, 4, shards=1)
            started = time.perf_counter()
            _run("sweep", str(file), "--in-process", option)
            walls[option], epochs[option] = time.perf_counter() - started, len(_own_rows(storage))
    ratio = epochs["--share"] / epochs["--no-share"]
    what = f"wall time of a sweep against --no-share, which trains {1 / ratio:.2f}x the epochs"
    yield Result(what, walls["--share"] / walls["--no-share"], at_most=round(ratio + 0.08, 2))


def _beyond_epochs(data: BenchData, storage: Path, workers: int, concurrent: int, runs: int) -> float:
    file = _sweep(data, storage, workers, runs, shards=2)
    started = time.perf_counter()
    _run("sweep", str(file), "--concurrent", str(concurrent), "--no-share")
    wall = time.perf_counter() - started
    parts = ("seconds_data", "seconds_compute", "seconds_eval")
    return wall - sum(row[part] for row in _own_rows(storage) for part in parts) / concurrent


def _sweep(data: BenchData, storage: Path, workers: int, runs: int, shards: int) -> Path:
    recipe: dict[str, Any] = {
        "data": {"path": str(data.dataset.folder)},
        "model": {"arch": "resnet18", "width": 16},
        "method": "normal",
        "budget": {"epochs": 4, "generation_length": 2},
        "optimizer": {"warmup_share": 0.0},
        "batch_size": 128,
        "shards": shards,
    }
    placement = {"workers": workers, "threads": 1, "storage": str(storage), "tracking": {"wandb": "off"}}
    axes = {"method": dict(list(METHODS.items())[:runs])}
    storage.mkdir(parents=True)
    file = storage / "bench.yaml"
    file.write_text(json.dumps({"recipe": recipe, "placement": placement, "axes": axes}))
    return file


def _run(*arguments: str) -> None:
    command = [sys.executable, "-m", "seal_ray", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _own_rows(storage: Path) -> list[dict[str, Any]]:
    """The epochs that were trained, each once."""
    files = storage.glob("*/metrics.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row for row in rows if row["trained_by"] == row["run_id"]]


BENCHMARKS = (overhead, sharing)
