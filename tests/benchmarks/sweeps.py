"""What a sweep costs for each further run, what sharing saves, and what its driver does for thousands."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seal_ray.recipe import dump_job
from seal_ray.runs.folder import ENDED, Store
from seal_ray.runs.sharing import RunKeys, may_start
from seal_ray.runs.summary import list_runs
from seal_ray.sweeps.file import load_sweep
from seal_ray.sweeps.plan import plan_sweep
from seal_ray.sweeps.queue import Queue
from seal_ray.sweeps.results import prepare_sweep
from tests.benchmarks.measure import Result, happened
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
    happened(epochs == {"--share": 4 + 3 * 2, "--no-share": 4 * 4}, f"epochs were {epochs}")
    ratio = epochs["--share"] / epochs["--no-share"]
    what = f"wall time of a sweep against --no-share, which trains {1 / ratio:.2f}x the epochs"
    yield Result(what, walls["--share"] / walls["--no-share"], at_most=round(ratio + 0.08, 2))


def _beyond_epochs(data: BenchData, storage: Path, workers: int, concurrent: int, runs: int) -> float:
    file = _sweep(data, storage, workers, runs, shards=2)
    started = time.perf_counter()
    _run("sweep", str(file), "--concurrent", str(concurrent), "--no-share")
    wall = time.perf_counter() - started
    parts, rows = ("seconds_data", "seconds_compute", "seconds_eval"), _own_rows(storage)
    happened(len(rows) == 4 * runs, f"{len(rows)} epochs of {4 * runs} were trained")
    return wall - sum(row[part] for row in rows for part in parts) / concurrent


def planning(data: BenchData) -> Iterator[Result]:
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        file = _large_sweep(data, Path(folder), rates=25)
        made = []
        for runs in (100, 1000):  # the first loads torchvision
            started = time.process_time()
            overrides = [f"seeds={max(1, runs // 100)}"]
            plan = plan_sweep(prepare_sweep(load_sweep(file, overrides)), None)
            made.append((len(plan.runs), time.process_time() - started))
    happened([runs for runs, _ in made] == [100, 1000], f"planned {made}")
    yield Result(
        "CPU seconds of the plan of a sweep of 1,000 runs of 1,600 epochs", made[1][1], "s", at_most=3
    )


def claiming(data: BenchData) -> Iterator[Result]:
    """Beside 1,000 folders of others and 1,000 of its own, which wait."""
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        runs = prepare_sweep(load_sweep(_large_sweep(data, Path(folder), rates=25)))
        storage = runs.planned[0].store.folder.parent
        for one in runs.planned:
            _record(storage / one.run_id, one.keys)
        for i in range(1000):
            _record(storage / f"normal-s{i}-0123456789", [f"{i}-{generation}" for generation in range(10)])
        queue = Queue(runs.planned, share=True, ended=ENDED, note=print)
        times = []
        for _ in range(41):
            started = time.perf_counter()
            claim = queue.claim()
            times.append(time.perf_counter() - started)
            happened(claim is not None, "no run could be claimed")
        queue.close()
    what = "claim of a run among 1,000 that wait, beside 1,000 others"
    yield Result(what, 1000 * statistics.median(times[1:]), "ms", at_most=20)
    yield Result("  the first one, which reads what all consist of", 1000 * times[0], "ms")


def listing(data: BenchData) -> Iterator[Result]:
    with tempfile.TemporaryDirectory(dir=data.folder) as folder:
        runs = prepare_sweep(load_sweep(_large_sweep(data, Path(folder), rates=25)))
        job, row = dump_job(runs.planned[0].job), {"generation": 0, "phase": "learn", "val_top1": 50.0}
        facts = {"val_loss": 1.0, "images_per_second": 1000.0, "weights_sha256": "0" * 64}
        rows = [json.dumps({**row, **facts, "epoch": epoch, "global_epoch": epoch}) for epoch in range(32)]
        for i in range(5000):
            store = Store(Path(folder) / "many" / f"normal-s{i}-0123456789", f"normal-s{i}-0123456789")
            store.folder.mkdir(parents=True)
            (store.folder / "job.yaml").write_text(job)
            (store.folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
            (store.folder / "status.json").write_text(json.dumps({"status": "finished"}))
        started = time.perf_counter()
        found = list_runs(Path(folder) / "many")
        spent = time.perf_counter() - started
    happened([run["epochs_done"] for run in found] == [32] * 5000, "the runs were not listed")
    yield Result("list of 5,000 runs of 32 epochs", spent, "s", at_most=3)


def simulation(data: BenchData) -> Iterator[Result]:
    """5,000 runs of 5 generations, of which four methods share the first, on 256 slots: choosing alone."""
    runs = [
        RunKeys(f"{i}", (f"{i // 4}", *(f"{i}-{g}" for g in range(1, 5))), (True,) * 5, 1)
        for i in range(5000)
    ]
    waiting = {run.run_id: run for run in runs}
    training: dict[str, tuple[RunKeys, int]] = {}
    busy, done, trained, times = set[str](), set[str](), 0, []
    while waiting or training:
        started = time.process_time()
        free = may_start([*waiting.values()], busy, done) if waiting and len(training) < 256 else []
        if waiting and len(training) < 256:
            times.append(time.process_time() - started)
        if free:
            run = waiting.pop(free[0].run_id)
            training[run.run_id] = run, run.start(done)
            busy |= {*run.keys} - done
            continue
        for run, generation in list(training.values()):
            trained += 1
            done.add(run.keys[generation])
            busy.discard(run.keys[generation])
            training[run.run_id] = run, generation + 1
            if generation + 1 == len(run.keys):
                del training[run.run_id]
    happened(trained == 1250 + 5000 * 4, f"{trained} generations were trained")
    what = "CPU time of a choice, mean of a simulated sweep of 5,000 runs on 256 slots"
    yield Result(what, 1000 * sum(times) / len(times), "ms", at_most=20)


def _large_sweep(data: BenchData, folder: Path, rates: int) -> Path:
    """4 methods x `rates` learning rates x 10 seeds with the paper's budget."""
    recipe = {
        "data": {"path": str(data.dataset.folder)},
        "method": "normal",
        "budget": {"epochs": 1600, "generation_length": 160},
    }
    axes = {"method": METHODS, "optimizer.lr": [round(0.004 * (i + 1), 3) for i in range(rates)]}
    file = folder / "large.yaml"
    placement = {"storage": str(folder / "runs")}
    file.write_text(json.dumps({"recipe": recipe, "placement": placement, "axes": axes, "seeds": 10}))
    return file


def _record(folder: Path, keys: Sequence[str]) -> None:
    """What tells of a run what it consists of."""
    folder.mkdir(parents=True)
    text = json.dumps({"keys": list(keys), "moments": ["ascended", "relearned"]})
    (folder / "generations.json").write_text(text)


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


BENCHMARKS = (overhead, sharing, planning, claiming, listing, simulation)
