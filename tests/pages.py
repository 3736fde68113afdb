"""Storages that the tests of the report page look at: a small sweep with all its analyses, and variations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seal_ray.analysis.evaluations import make_evaluation
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.run import run_tasks, score_moments
from seal_ray.analysis.tasks import load_settings, plan_analyses
from seal_ray.reports.page import write_report
from seal_ray.sweeps.results import SweepRuns, write_results
from seal_ray.sweeps.tune import train_sweep
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
