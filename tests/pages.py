"""Storages that the tests of the report page look at: a small sweep with all its analyses, and variations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seal_ray.analysis.evaluations import make_evaluation
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.run import run_tasks, score_moments
from seal_ray.analysis.tasks import load_settings, plan_analyses
from seal_ray.recipe import Job
from seal_ray.reports.page import write_report
from seal_ray.sweeps.leaderboard import RunResult, leaderboard, to_json
from seal_ray.sweeps.results import SweepRuns, write_results
from seal_ray.sweeps.tune import train_sweep
from tests.runs import tiny_recipe
from tests.sweeps import screen, small_sweep

HTML = '<img src=x onerror="alert(1)">&amp;'
"""A name that would be markup."""
LAST = "g002-relearned"
CURVATURE = ("curvature.images=16", "curvature.steps=4", "curvature.probes=2", "curvature.top=2")


def trained_sweep(data: Path, folder: Path, **changes: Any) -> SweepRuns:
    """The small sweep, trained and its results written. Every moment is kept, every image tracked."""
    keep = {"moments": ["init", "forgotten", "ascended", "relearned"]}
    placement = {"keep": keep, "track_examples": True, **changes.pop("placement", {})}
    runs = small_sweep(data, folder / "runs", folder / "small.yaml", placement=placement, **changes)
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    write_results(runs)
    return runs


def analysed_sweep(data: Path, folder: Path) -> Path:
    """The folder of the small sweep's results, of two seeds, with all analyses."""
    runs = trained_sweep(data, folder, seeds=2, after_generations=[1, 3])
    assert isinstance(runs.folder, Path)
    analyse(runs.folder, data)
    return runs.folder


def analyse(sweep: Path, data: Path) -> None:
    """Depth of the ends of generations; of the last calibration, a little curvature, features on `data`."""
    settings = load_settings("quick", ["depth.k=3", *CURVATURE])
    console = screen()[0]
    for what, moment in (("depth", "relearned"), ("calibration", LAST), ("curvature", LAST)):
        asked = plan_analyses(find_runs(sweep), [what], [moment], settings)
        run_tasks(asked, console, in_process=True)  # without the figures of `analyze`
    probes = make_evaluation("transfer", None, targets=[str(data)])
    score_moments(sweep, console, probes, data=data, in_process=True)
    shots = make_evaluation("fewshot", None, targets=[str(data)], shots=[1], episodes=5, ways=3, queries=2)
    score_moments(sweep, console, shots, data=data, in_process=True)


Ends = tuple[tuple[float, ...], float | None]
"""Mean top-1 (%) at the end of each generation of 12 epochs; wrong labels memorised by the end (%)."""
NOISY: dict[str, Ends] = {
    "normal 48": ((86.0, 77.2, 72.2, 68.7), 97.0),
    "normal 12": ((86.0,), 9.0),
    "llf 48": ((86.0, 83.7, 79.9, 75.5), 60.0),
    "seal 48": ((86.0, 83.9, 85.2, 85.2), 6.0),
}
"""By method and epochs: plain training memorises what is wrong, and falls."""
SPREAD = {
    "first": (-1.0, -0.5, 0.0, 0.0, 0.5, 1.0),
    "normal": (-2.5, -1.0, -0.5, 0.5, 1.5, 2.0),
    "llf": (-3.0, -2.0, 0.0, 1.0, 0.5, 3.5),
    "seal": (-1.0, 2.0, -2.0, 0.0, 1.0, 0.0),
}
"""What a seed's top-1 differs by from the mean, after the first generation and after each later one."""


def noisy_sweep(
    storage: Path,
    seeds: int = 6,
    baseline: dict[str, str] | None = None,
    asked: Mapping[str, Ends] = NOISY,
    labels: Sequence[str] = (),
) -> Path:
    """The folder of a sweep with accuracies of our own, of images with label noise.

    baseline: other labels than those of the first setting. labels: of whole settings, in place of axes.
    """
    results = []
    for place, (named, (ends, wrong)) in enumerate(asked.items()):
        name, epochs = named.split()
        method = {"name": "seal", "ascent_rate": 1.0} if name == "seal" else {"name": name}
        setting = {"method": "seal(ascent_rate=1)" if name == "seal" else name, "budget.epochs": epochs}
        if labels:
            setting = {"setting": labels[place]}
        for seed in range(seeds):
            run, draws = f"{name}-s{seed}-{int(epochs):010x}", [SPREAD["first"], *[SPREAD[name]] * 3]
            tops = [end + draw[seed] for end, draw in zip(ends, draws, strict=False)]
            memorised = None if wrong is None else wrong + draws[len(ends) > 1][seed]
            rows = [_noisy_row(run, epoch, tops, memorised) for epoch in range(12 * len(tops))]
            recipe = tiny_recipe(
                method,
                data={"path": "data/digits", "label_noise": 0.4},
                budget={"epochs": int(epochs), "generation_length": 12},
                seed=seed,
            )
            folder = storage / run
            folder.mkdir(parents=True)
            job = Job(name="noisy", recipe=recipe).model_dump(mode="json")
            (folder / "job.yaml").write_text(yaml.safe_dump(job))
            (folder / "status.json").write_text(json.dumps({"run_id": run, "status": "finished"}))
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            best = max(row["val_top1"] for row in rows)
            counts = (len(rows), len(rows), 0, 0)
            results.append(
                RunResult(run, setting, seed, "finished", "", tops[-1], best, *counts, tuple(tops))
            )
    baseline = baseline or {**results[0].setting}
    board = to_json("noisy", leaderboard(results, baseline, (1, 2, 3, 4)), results, baseline)
    folder = storage / "sweeps" / "noisy"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(board))
    return folder


def _noisy_row(run: str, epoch: int, tops: Sequence[float], wrong: float | None) -> dict[str, Any]:
    """An epoch of a run that loses something early in each generation, and comes to `tops` at their ends."""
    generation, within = divmod(epoch, 12)
    before = 10.0 if generation == 0 else tops[generation - 1]
    lost = min(generation, 1) * (20 if run.startswith("normal") else 65) * (1 - (within + 1) / 12)
    seen = before + (tops[generation] - before) * ((within + 1) / 12) ** 2 - lost
    return {
        **{
            "run_id": run,
            "trained_by": run,
            "generation": generation,
            "epoch": within,
            "global_epoch": epoch,
        },
        **{"phase": "learn", "train_loss": 1.0, "train_top1": 50.0, "val_loss": 1.0, "val_top1": seen},
        **{"images_per_second": 1e3, "seconds_data": 0.1, "seconds_compute": 1.0, "seconds_eval": 0.1},
        **{"weights_sha256": f"{run}-{epoch}", "workers": 1},
        **({} if wrong is None else {"train_memorised": wrong * (epoch + 1) / (12 * len(tops))}),
    }


def many_runs(source: Path, storage: Path, settings: int, seeds: int, epochs: int) -> Path:
    """A storage of settings x seeds runs of SEAL, written from one trained run with accuracies of our own."""
    (run,) = source.glob("seal-s0-*")
    job = yaml.safe_load((run / "job.yaml").read_text())
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    job["recipe"]["budget"] = {"epochs": epochs, "generation_length": 10}
    draw = np.random.default_rng(0)
    for setting in range(settings):
        job["recipe"]["method"]["ascent_rate"] = round(0.1 + 0.01 * setting, 2)
        for seed in range(seeds):
            job["recipe"]["seed"] = seed
            name = f"seal-s{seed}-{setting:010x}"
            (storage / name).mkdir(parents=True)
            (storage / name / "job.yaml").write_text(yaml.safe_dump(job))
            rows = [
                {
                    **row,
                    "run_id": name,
                    "trained_by": name,
                    "generation": epoch // 10,
                    "epoch": epoch % 10,
                    "global_epoch": epoch,
                    "val_top1": float(draw.uniform(40, 90)),
                }
                for epoch in range(epochs)
            ]
            (storage / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            (storage / name / "status.json").write_text(json.dumps({"run_id": name, "status": "finished"}))
    return storage


def renamed_class(sweep: Path, name: str) -> None:
    """Call the classes of the listed examples `name`, in every result that lists some."""
    for path in sweep.parent.parent.glob("*/analysis/depth-*.json"):
        held = json.loads(path.read_text())
        for examples in held["result"]["listed"]["val"].values():
            for example in examples:
                example["label"] = name
        path.write_text(json.dumps(held))


def copied(storage: Path, folder: Path) -> Path:
    """A copy of a storage that a test may change."""
    shutil.copytree(storage, folder / "runs")
    return folder / "runs"


def page_of(path: Path, folder: Path) -> str:
    """The page of a run, sweep or storage, as text."""
    output, _ = write_report(path, folder / "report.html")
    assert isinstance(output, Path)
    return output.read_text()
