"""Tiny recipes and images for tests, small enough for a hundred epochs in a few seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection
from multiprocessing import forkserver
from typing import Any

from seal_ray import testing
from seal_ray.data.images import Images
from seal_ray.methods import METHODS
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Placement, Recipe
from seal_ray.runs.checkpoint import Snapshot, read_snapshot
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import run_id
from seal_ray.runs.weights import pinned
from seal_ray.storage.paths import AnyPath, storage_path
from seal_ray.testing import tiny_images as tiny_images
from seal_ray.testing import tiny_recipe as tiny_recipe
from seal_ray.training.loop import EpochResult, fit
from seal_ray.training.world import World

EVERYTHING = ("init", "forgotten", "ascended", "relearned")
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "normal": [{}, {"schedule": "long"}],
    "seal": [
        {"ascent_rate": 0.3},
        {"ascent_rate": {"rise": 0.5, "start": 0.1}, "ascend": "late", "others": "freeze"},
        {"ascend": "all", "head_ascends": True, "ascent_weight_decay": "growth", "ascent_rate": 0.1},
        {"forget": "llf", "ascent_share": 0.5, "ascent_weight_decay": "decay"},
        {"ascent_loss": "confident_error", "ascent_rate": 0.5},
        {"ascent_loss": "confident_error", "others": "freeze", "split_at": "layer2"},
        {
            "direction": "random",
            "ascent_rate": 0.3,
            "ascent_share": 0.5,
            "share_cooling": 0.5,
            "rate_cooling": 0.5,
        },
        {"direction": {"noise": 0.5}, "ascent_rate": 1.0, "ascend": "all"},
    ],
    "llf": [{}, {"init": "model", "split_at": "layer4"}, {"part": "early"}],
    "sam": [{}, {"part": "early", "rho": 0.1}],
    "asam": [{}, {"part": "early", "rho": 1.0}],
    "gsam": [{}],
    "ban": [{}, {"weight": 0.5, "temperature": 2.0}],
    "dsd": [{}],
    "ke": [{}, {"mask": "wels", "keep": 0.5}],
    "rifle": [{}],
    "zap": [{}],
    "shrink_perturb": [{}],
    "layerwise": [{}],
    "dnr": [{}],
    "swr": [{}],
    "redo": [{"threshold": 0.9}],
    "dash": [{}],
    "cold": [{}],
}
"""Every method with settings that reach its branches."""

CASES = [{"name": name, **fields} for name in METHODS for fields in VARIANTS.get(name, [{}])]
AS_LLF = ("rifle", "zap", "shrink_perturb", "layerwise", "dnr", "swr", "redo", "dash", "cold")
"""Methods that differ from LLF in their edits alone."""
MAIN_CASES = [{"name": name, **VARIANTS.get(name, [{}])[0]} for name in METHODS if name not in AS_LLF] + [
    {"name": "seal", **next(fields for fields in VARIANTS["seal"] if "ascent_loss" in fields)}
]
"""One of each method that trains in a way of its own, and the one whose parts have losses of their own."""


def case_id(method: dict[str, Any]) -> str:
    """A readable test id."""
    return "-".join(str(v) for v in method.values() if not isinstance(v, dict))


def keeping(moments: Collection[str], **fields: Any) -> Placement:
    """A placement that keeps these moments."""
    return Placement.model_validate({"keep": {"moments": [*moments]}, **fields})


def train_run(
    recipe: Recipe,
    folder: AnyPath | str | None,
    epochs: int | None = None,
    checkpoints: int = 99,
    *,
    images: Images | None = None,
    placement: Placement | None = None,
) -> list[EpochResult]:
    """Run fit in this process (a rank, where there are ranks), for at most `epochs` epochs."""
    images = images or tiny_images()
    placement = placement or keeping(EVERYTHING)
    store = None if folder is None else open_store(recipe, folder, checkpoints, images)
    results = []
    for result in fit(recipe, images, store=store, world=World.current(), placement=placement):
        results.append(result)
        if len(results) == epochs:
            break
    return results


def on_ranks(workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`seal_ray.testing.on_ranks`, whose processes do not wait for the disk either: see tests/conftest.py."""
    # What tests import, too. Once it runs, what it is to import is not looked at any more.
    multiprocessing.set_forkserver_preload([*testing.IMPORTED_ONCE, "pytest", "sklearn.metrics"])
    forkserver.ensure_running()
    return testing.on_ranks(workers, _on_a_rank, function, args)


def _on_a_rank(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.fsync = lambda descriptor: None
    return function(*args)


def open_store(
    recipe: Recipe, folder: AnyPath | str, checkpoints: int = 99, images: Images | None = None
) -> Store:
    """The store of a tiny run in `folder`."""
    identity = run_id(pinned(recipe), (images or tiny_images()).identity)
    return Store(storage_path(folder), identity, checkpoints)


SPEEDS = ("images_per_second", "seconds_data", "seconds_compute", "seconds_eval")


def without_speeds(rows: list[Row] | tuple[Row, ...], *also: str) -> list[str]:
    """Metric rows as text, without what measures time."""
    return [str({key: value for key, value in row.items() if key not in (*SPEEDS, *also)}) for row in rows]


def same_state(one: Snapshot, other: Snapshot, *but_for: str) -> None:
    """Assert that two snapshots agree bit for bit, their metrics as text but for some fields."""
    assert one.position == other.position
    for name in ("weights", "optimizer"):
        same_tensors(getattr(one, name), getattr(other, name), name)
    assert one.carried.keys() == other.carried.keys()
    for name in one.carried:
        same_tensors(one.carried[name], other.carried[name], name)
    assert without_speeds(one.rows, *but_for) == without_speeds(other.rows, *but_for)


def same_tensors(one: dict[str, Any], other: dict[str, Any], what: str) -> None:
    """Assert that two states hold the same names with the same bits."""
    assert one.keys() == other.keys(), what
    for key in one:
        assert one[key].numpy().tobytes() == other[key].numpy().tobytes(), f"{what}: {key}"


def checkpoint(folder: AnyPath | str, run_id: str, generation: int, epoch: int) -> Snapshot:
    """Read one checkpoint of a run."""
    return read_snapshot(storage_path(folder) / "checkpoints" / f"g{generation:03d}-e{epoch:03d}", run_id)
