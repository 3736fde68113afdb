"""Where an epoch's metrics go beside metrics.jsonl: Weights & Biases, or nowhere.

Training never waits for a tracker. W&B is spoken to from a thread of its own; when it fails or hangs it
is given up with one warning, and metrics.jsonl still has everything.
"""

from __future__ import annotations

import netrc
import os
import queue
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlparse

from seal_ray.errors import SealRayWarning
from seal_ray.schedule import Row

if TYPE_CHECKING:
    from seal_ray.recipe import Job

PATIENCE = 30.0
"""Seconds that closing a tracker may take."""


class Tracker(Protocol):
    """Receives each committed epoch, in order."""

    def log(self, row: Row) -> None:
        """One epoch; returns at once."""
        ...

    def close(self) -> None:
        """No more epochs come."""
        ...


class NoTracker:
    """Tracks nothing."""

    def log(self, row: Row) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def wandb_mode(asked: str) -> str:
    """`auto` as what it means here: `online` where W&B has an API key, `offline` elsewhere."""
    if asked != "auto":
        return asked
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    """Whether `wandb login` has left a key."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def open_tracker(job: Job, run_id: str, folder: Path, data: str) -> Tracker:
    """The tracker that the placement asks for. data: the data set's name, a tag."""
    mode = wandb_mode(job.placement.tracking.wandb)
    return NoTracker() if mode == "off" else Wandb(job, run_id, folder, data, mode)


@dataclass(frozen=True)
class _Closed:
    """The last thing in the queue."""


class Wandb:
    """A W&B run that is fed from a thread, on the axis `global_epoch`."""

    def __init__(self, job: Job, run_id: str, folder: Path, data: str, mode: str) -> None:
        self._queue: queue.SimpleQueue[Row | _Closed] = queue.SimpleQueue()
        self._failed = threading.Event()
        settings = _settings(job, run_id, folder, data, mode)
        self._thread = threading.Thread(target=self._feed, args=(settings,), daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Hand an epoch to the thread."""
        if not self._failed.is_set():
            self._queue.put(row)

    def close(self) -> None:
        """Let the thread finish, for PATIENCE seconds at most."""
        self._queue.put(_Closed())
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            warnings.warn(
                f"W&B did not finish within {PATIENCE:g} s and is left behind; metrics.jsonl is complete",
                SealRayWarning,
                stacklevel=2,
            )

    def _feed(self, start: Callable[[], Any]) -> None:
        try:
            run = start()
            while not isinstance(row := self._queue.get(), _Closed):
                run.log(dict(row))
            run.finish()
        except Exception as error:
            self._failed.set()
            warnings.warn(
                f"W&B is given up for this launch ({type(error).__name__}: {error}); training goes on and "
                "metrics.jsonl is complete",
                SealRayWarning,
                stacklevel=2,
            )


def _settings(job: Job, run_id: str, folder: Path, data: str, mode: str) -> Callable[[], Any]:
    """A function that starts the W&B run; called in the tracker's thread, where W&B is imported."""
    recipe, tracking = job.recipe, job.placement.tracking

    def start() -> Any:
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            id=run_id,
            name=run_id,
            group=job.name,
            job_type="train",
            tags=[recipe.method.name, recipe.model.arch, data],
            config=recipe.model_dump(mode="json"),
            dir=str(folder),
            mode="online" if mode == "online" else "offline",
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=PATIENCE,
                x_disable_stats=True,
                x_transaction_log_flush_interval=1.0,
            ),
        )
        run.define_metric("global_epoch")
        run.define_metric("*", step_metric="global_epoch")
        run.define_metric("val_top1", step_metric="global_epoch", summary="last,max")
        return run

    return start
