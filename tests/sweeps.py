"""Small sweeps on a few digits, for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from seal_ray.storage.paths import AnyPath
from seal_ray.sweeps.file import load_sweep
from seal_ray.sweeps.results import SweepRuns, prepare_sweep
from tests.runs import SPEEDS

METHODS = {"normal": "normal", "llf": "llf", "seal": {"name": "seal", "ascent_rate": 0.5}}


def small_sweep(data: Path, storage: AnyPath, file: Path | None = None, **changes: Any) -> SweepRuns:
    """Three methods, three generations of two epochs, a tiny network; `changes` are fields of the file."""
    fields: dict[str, Any] = {
        "name": "small",
        "recipe": {
            "data": {"path": str(data)},
            "model": {"arch": "resnet18", "width": 4},
            "method": "normal",
            "budget": {"epochs": 6, "generation_length": 2},
            "optimizer": {"warmup_share": 0.0},
            "augment": {"crop_padding": 2, "flip": False},
            "batch_size": 32,
            "shards": 4,
        },
        "placement": {
            "loader": "torch",
            "storage": str(storage),
            "tracking": {"wandb": "off"},
        },
        "axes": {"method": METHODS},
    }
    for key, value in changes.items():
        merged = isinstance(value, dict) and key != "axes"
        fields[key] = {**fields.get(key, {}), **value} if merged else value
    if file is None:
        assert isinstance(storage, Path)
        file = storage.parent / "small.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(fields, sort_keys=False))
    return prepare_sweep(load_sweep(file))


def screen() -> tuple[Console, io.StringIO]:
    """A terminal that is none, and what it printed."""
    text = io.StringIO()
    return Console(file=text, width=160), text


def leaderboard_of(runs: SweepRuns) -> dict[str, Any]:
    """The results as they were written, without seconds."""
    found: dict[str, Any] = json.loads((runs.folder / "results.json").read_text())
    for one in (*found["lines"], *found["runs"]):
        del one["seconds"]
    return found


def trained_where(runs: SweepRuns) -> dict[str, list[str]]:
    """For each run, who trained each of its epochs."""
    return {one.run_id: [row["trained_by"] for row in one.store.rows()] for one in runs.planned}


def metrics_of(runs: SweepRuns) -> dict[str, list[dict[str, Any]]]:
    """The metrics of each run, without speeds, the number of workers and who trained what."""
    left_out = (*SPEEDS, "trained_by", "workers")
    return {
        one.run_id: [{k: v for k, v in row.items() if k not in left_out} for row in one.store.rows()]
        for one in runs.planned
    }
