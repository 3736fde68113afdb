"""Bring the runs of a storage folder to Weights & Biases, from their metrics.jsonl: for `seal-ray sync`.

However many launches a run had, offline or not, it becomes one W&B run in which each epoch stands once: W&B
is asked what it holds, and gets what follows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seal_ray.errors import CheckpointError, ConfigError, SealRayError
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job, load_job
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import lease_holder
from seal_ray.storage.paths import AnyPath, listed
from seal_ray.tracking.environment import has_key
from seal_ray.tracking.wandb import (
    data_name,
    ends_generation,
    epochs_held,
    log_epoch,
    log_moments,
    speaking_to_wandb,
    start_run,
)

SYNC_AGAIN = "the same command again goes on where it stopped"


@dataclass(frozen=True)
class Synced:
    """What became of one run: the epochs it has, those that were uploaded now, or why none were tried."""

    run_id: str
    epochs: int
    uploaded: int = 0
    skipped: str = ""


def sync_storage(
    storage: AnyPath,
    *,
    project: str | None = None,
    entity: str | None = None,
    run: str | None = None,
    moments: bool = False,
) -> Iterator[Synced]:
    """Upload what W&B lacks of every run in `storage`, or of the one named `run`; yields each when done.

    project and entity: by default those of the run's own job.yaml. moments: upload their files too, all of
    them, where W&B otherwise learns only where they lie. A run that is being trained, that was not to be
    tracked, or whose files are damaged is skipped. ConfigError without an API key, CheckpointError without a
    run, SealRayError when W&B cannot be reached or takes only a part.
    """
    folders = [path.parent for path in listed(storage, "*/job.yaml") if run in (None, path.parent.name)]
    if not folders:
        raise CheckpointError(f"{storage}: holds no run{f' {run}' if run else 's'}; see `seal-ray runs`")
    if not has_key():
        raise ConfigError("W&B has no API key here; run `wandb login`, or set WANDB_API_KEY")
    changes = {key: name for key, name in (("project", project), ("entity", entity)) if name}
    return (_sync(folder, changes, moments) for folder in folders)


def _sync(folder: AnyPath, changes: dict[str, str], moments: bool) -> Synced:
    try:
        store = Store(folder, folder.name)
        job, rows = load_job(folder / "job.yaml"), store.rows()
    except SealRayError as error:
        return Synced(folder.name, 0, skipped=str(error))
    if job.placement.tracking.wandb == "off":
        return Synced(folder.name, len(rows), skipped="not tracked (placement.tracking.wandb: off)")
    if where := lease_holder(folder):
        return Synced(folder.name, len(rows), skipped=f"being trained by {where}")
    if not rows:
        return Synced(folder.name, 0, skipped="no epochs yet")
    tracking = job.placement.tracking.model_copy(update=changes)
    placement = job.placement.model_copy(update={"tracking": tracking})
    uploaded = _upload(job.model_copy(update={"placement": placement}), store, rows, moments)
    return Synced(folder.name, len(rows), uploaded)


def _upload(job: Job, store: Store, rows: list[Row], moments: bool) -> int:
    """Log the rows that W&B lacks and wait until it has them; returns how many those were."""
    with speaking_to_wandb(f"{store.run_id}: ", SYNC_AGAIN), tempfile.TemporaryDirectory() as scratch:
        tracked = start_run(job, store.run_id, Path(scratch), data_name(job), "online")
        held = epochs_held(tracked)
        for row in rows[held:]:
            log_epoch(tracked, row, job, store, upload=moments)
        for row in rows[:held]:
            if moments and ends_generation(row, job):
                log_moments(tracked, row, store, upload=True)
        tracked.finish()
        missing = len(rows) - epochs_held(tracked)
    if missing > 0:
        raise SealRayError(f"{store.run_id}: W&B did not take {missing} of {len(rows)} epochs; {SYNC_AGAIN}")
    return max(0, len(rows) - held)
