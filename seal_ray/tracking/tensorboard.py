"""Metrics as TensorBoard's event files, under the names and on the steps that W&B gets.

`<run>/tensorboard/` on this host holds one file, begun anew at each launch from metrics.jsonl, which is the
truth: so each step is there once, however often a run was killed or goes on after another one.
"""

from __future__ import annotations

import contextlib
import socket
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seal_ray.errors import SealRayError, SealRayWarning
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job
from seal_ray.runs.folder import Store
from seal_ray.storage.paths import on_this_host
from seal_ray.tracking.wandb import NoTracker, ends_generation

EVENTS = "tensorboard"


def open_tensorboard(job: Job, store: Store) -> TensorBoard | NoTracker:
    """The event file of a run, where the placement asks for one."""
    return TensorBoard(job, store) if job.placement.tracking.tensorboard else NoTracker()


class TensorBoard:
    """A run's event file. What cannot be written is warned of, once, and costs nothing else."""

    def __init__(self, job: Job, store: Store) -> None:
        self._job, self._store = job, store
        self._file: EventFile | None = None
        self._failed = False

    def log(self, row: Row) -> None:
        """Write an epoch; the first time after all before it."""
        if self._failed:
            return
        try:
            rows = [row]
            if self._file is None:
                self._file = EventFile(on_this_host(self._store.folder) / EVENTS)
                rows = [*self._store.rows()[: row["global_epoch"]], row]  # which may not be committed yet
            for one in rows:
                self._file.write(one["global_epoch"], one)
                if ends_generation(one, self._job):
                    self._file.write(one["generation"], {"generation_top1": one["val_top1"]})
            self._file.flush()
        except (OSError, SealRayError) as error:
            self._failed = True
            text = f"TensorBoard gets no more of this launch ({error}); metrics.jsonl is complete"
            warnings.warn(text, SealRayWarning, stacklevel=2)

    def close(self) -> None:
        """Nothing is left to be written."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # which `log` has warned of
                self._file.close()


class EventFile:
    """A new event file, the only one in its folder. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = RecordWriter(
            str(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}")
        )
        self._event(file_version="brain.Event:2")
        # What a TensorBoard that is open has read of the files before is purged.
        self._event(session_log={"status": "START"}, step=0)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of `values`; what is none (names, digests, what is not known) is left out."""
        numbers = [{"tag": tag, "simple_value": value} for tag, value in values.items() if _is_number(value)]
        if numbers:
            self._event(step=step, summary={"value": numbers})

    def flush(self) -> None:
        """Hand everything to the system, which keeps it when this process is killed."""
        self._writer.flush()

    def close(self) -> None:
        """No more comes."""
        self._writer.close()

    def _event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


def write_events(folder: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Put an event file of `rows`, values by their steps, in the place of the one in `folder`."""
    file = EventFile(folder)
    for step, values in rows:
        file.write(step, values)
    file.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
