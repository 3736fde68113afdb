"""The runs in a storage folder, summed up from what they wrote: for `seal-ray runs`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import yaml

from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job, load_job
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import lease_holder
from seal_ray.storage.paths import AnyPath, asked, folders_in

STATUSES = (
    *("queued", "starting", "running", "interrupted"),
    *("stopped", "pruned", "failed", "diverged", "finished"),
)
"""How a run whose files are intact may stand."""
NUMBERS = ("epochs_done", "top1", "best_top1", "images_per_second")
"""What of a run is shown as a number; sorted by one of these, the largest come first."""


def list_runs(storage: AnyPath) -> list[dict[str, Any]]:
    """One plain dictionary a run, by method and seed. CheckpointError when the folder does not exist.

    Keys: id name method seed generation epoch epochs_done epochs status top1 best_top1 images_per_second
    weights_sha256 ascents (a list of {generation, loss_before, loss_after}, validation loss in nats) reason.
    """
    if not storage.is_dir():
        raise CheckpointError(f"{storage}: no such folder; name the one that runs were stored in")
    names = sorted(folders_in(storage))
    found = (run for run in asked(lambda name: _listed(storage / name), names, storage) if run)
    return sorted(found, key=lambda run: (run["method"], run["seed"], run["id"]))


def chosen_runs(
    runs: Sequence[dict[str, Any]],
    statuses: Sequence[str] = (),
    methods: Sequence[str] = (),
    order: str | None = None,
) -> list[dict[str, Any]]:
    """Those runs with one of the statuses and of one of the methods, of any where none is given.

    order: a key to sort by. ConfigError for a status that there is not, and for a method that no run has.
    """
    there = [*dict.fromkeys(run["method"] for run in runs if run["method"])]
    for option, names, known in (("--status", statuses, STATUSES), ("--method", methods, there)):
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"{option} {unknown[0]}: no run has it; choose from {', '.join(known)}")
    found = [
        run
        for run in runs
        if (not statuses or run["status"] in statuses) and (not methods or run["method"] in methods)
    ]
    if order in NUMBERS:
        return sorted(found, key=lambda run: -math.inf if run[order] is None else run[order], reverse=True)
    return found if order is None else sorted(found, key=lambda run: run[order])


def _listed(folder: AnyPath) -> dict[str, Any] | None:
    """`summarise` of a run, of whose job no more is checked than is shown; None where there is no job."""
    try:
        job = yaml.compose((folder / "job.yaml").read_bytes(), yaml.CBaseLoader)
        name, method = _text(job, "name"), _text(job, "recipe", "method", "name")
        seed, epochs = int(_text(job, "recipe", "seed")), int(_text(job, "recipe", "budget", "epochs"))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, StopIteration, AttributeError, TypeError, ValueError, OSError):
        return summarise(folder)  # which can tell what is wrong with it
    return _summary(folder, Shown(name, method, seed, epochs))


def _text(node: Any, *path: str) -> str:
    """The text at a path of a YAML document."""
    for field in path:
        node = next(value for name, value in node.value if name.value == field)
    return str(node.value)


@dataclass(frozen=True)
class Shown:
    """What is shown of a run's job."""

    name: str = ""
    method: str = ""
    seed: int = -1
    epochs: int = 0


def summarise(folder: AnyPath, job: Job | None = None) -> dict[str, Any]:
    """What the run in `folder` is and how it stands; damaged files make its status `damaged`.

    job: what it trains, where that is known; else its job.yaml is read.
    """
    try:
        job = job or load_job(folder / "job.yaml")
    except ConfigError as error:
        return _damaged(folder, str(error))
    recipe = job.recipe
    return _summary(folder, Shown(job.name, recipe.method.name, recipe.seed, recipe.budget.epochs))


def _summary(folder: AnyPath, shown: Shown) -> dict[str, Any]:
    store = Store(folder, folder.name)
    status = store.status()
    try:
        measured = _summed(store.rows())
    except CheckpointError as error:
        return _damaged(folder, str(error))
    except (KeyError, TypeError, AttributeError) as error:  # some other JSON
        return _damaged(folder, f"{folder / 'metrics.jsonl'}: damaged ({error!r})")
    name = status.get("status", "new")
    if name in ("starting", "running") and lease_holder(folder) is None:
        name = "interrupted"
    if name == "starting" and (why := store.waiting()):
        name, status = "queued", {"reason": why}
    return _as_row(folder, shown, name, status.get("reason", ""), measured)


def _damaged(folder: AnyPath, reason: str) -> dict[str, Any]:
    return _as_row(folder, Shown(), "damaged", reason, _summed([]))


def _as_row(
    folder: AnyPath, shown: Shown, status: str, reason: str, measured: dict[str, Any]
) -> dict[str, Any]:
    return {"id": folder.name, **asdict(shown), "status": status, "reason": reason, **measured}


def _summed(rows: Sequence[Row]) -> dict[str, Any]:
    last: Row = rows[-1] if rows else {}
    scored = [row["val_top1"] for row in rows if row["val_top1"] is not None]
    speeds = [row["images_per_second"] for row in rows]
    return {
        "generation": last.get("generation"),
        "epoch": last.get("epoch"),
        "epochs_done": len(rows),
        "top1": last.get("test_top1", scored[-1] if scored else None),
        "best_top1": max(scored, default=None),
        "images_per_second": round(sum(speeds) / len(speeds), 1) if speeds else None,
        "weights_sha256": last.get("weights_sha256"),
        "ascents": ascents(rows),
    }


def generation_ends(rows: Sequence[Row], length: int) -> tuple[float, ...]:
    """Validation top-1 (%) at the end of each generation of `length` epochs that has come to it, in order.

    Every phase ends with an evaluation, so it is there.
    """
    return tuple(row["val_top1"] for row in rows if row["epoch"] == length - 1)


def held_top1(rows: Sequence[Row]) -> float | None:
    """Top-1 (%) after the last epoch on images held out of training, of a run that has tested others."""
    return rows[-1]["val_top1"] if rows and "test_top1" in rows[-1] else None


def averaged_top1(rows: Sequence[Row]) -> float | None:
    """As top1 of a finished run, of its averaged weights: on the test split where it has tested one.

    None where it keeps no average, or has tested the last weights alone, as earlier versions did.
    """
    split = "test" if "test_top1" in rows[-1] else "val"
    return rows[-1].get(f"{split}_averaged_top1")


def ascents(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Validation loss before each stretch of `ascend` epochs, and at its last evaluation so far.

    Every phase ends with an evaluation, so the loss before is there; a stretch without one yet is left out.
    """
    found: dict[int, dict[str, float]] = {}
    start = None
    for before, row in pairwise(rows):
        if row["phase"] != "ascend":
            continue
        if before["phase"] != "ascend":
            start = before["val_loss"]
        if row["val_loss"] is not None:
            losses = {"loss_before": start, "loss_after": row["val_loss"]}
            found[row["generation"]] = {"generation": row["generation"], **losses}
    return list(found.values())
