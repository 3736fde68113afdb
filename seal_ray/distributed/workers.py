"""What Ray Train runs on each worker: open the data and the store, fit, report."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TextIO

from seal_ray.data.images import Images
from seal_ray.data.staging import open_dataset
from seal_ray.device import prepare_process
from seal_ray.errors import Diverged, SealRayError, SealRayWarning
from seal_ray.recipe import Job, received_job
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import owns, take_lead
from seal_ray.storage.paths import storage_path
from seal_ray.tracking.wandb import NoTracker, open_tracker
from seal_ray.training.loop import fit
from seal_ray.training.run import Execution
from seal_ray.training.world import World

if TYPE_CHECKING:
    from seal_ray.phases.schedule import Row

LEAVING = "a host that trains it is about to be taken away; the same command goes on"
"""Why a run stops early of which Ray has been told that one of its hosts is preempted."""


def work(config: dict[str, Any]) -> dict[str, str]:
    """What Ray Train runs on each worker: train until the run ends; returns {status, reason}.

    config: {job, run_id, folder, token}; the job as plain data, with the code of its plugin files.
    """
    import ray.train
    import ray.train.torch

    job = received_job(config["job"])
    folder, token = storage_path(config["folder"]), config["token"]
    world = World.current(ray.train.torch.get_device())
    owned = take_lead(folder, token) if world.leads else functools.partial(owns, folder, token)
    store = Store(folder, config["run_id"], job.placement.keep.checkpoints, owned)
    if world.leads:
        show_warnings_in(store)

    def report(row: Row) -> bool:
        ray.train.report(dict(row))
        return ray.train.get_preemption_info() is not None

    return train_to_end(job, store, world, report)


def train_to_end(job: Job, store: Store, world: World, report: Callable[[Row], object]) -> dict[str, str]:
    """Train on this worker until the run ends, and report each epoch; returns {status, reason}.

    report: what it returns is true, on every worker alike, when the run has to make room after this epoch.
    Divergence and errors that a user caused are returned and not raised, because Ray Train would retry an
    exception, which cannot help.
    """
    try:
        with contextlib.closing(train_job(job, store, world)) as rows:
            for row in rows:
                if report(row) and row["global_epoch"] + 1 < job.recipe.budget.epochs:
                    return _make_room(store, world)
    except Diverged as error:
        return {"status": "diverged", "reason": str(error)}
    except SealRayError as error:
        if world.leads:
            with contextlib.suppress(SealRayError):
                store.set_status("failed", reason=str(error))
        return {"status": "failed", "reason": str(error)}
    return {"status": store.status()["status"], "reason": ""}


def _make_room(store: Store, world: World) -> dict[str, str]:
    """End after an epoch that is committed, since a host is taken away."""
    ended = {"status": "stopped", "reason": LEAVING}
    world.lead(lambda: store.set_status(**ended))
    return ended


def show_warnings_in(store: Store) -> None:
    """Put this process's own warnings where the launch shows them; a worker has no terminal."""
    show = warnings.showwarning

    def keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SealRayWarning):
            store.warn(str(message))
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = keep
    warnings.simplefilter("always", SealRayWarning)


def train_job(job: Job, store: Store, world: World) -> Generator[Row]:
    """Fit the job's recipe on this worker; the leader tells the tracker of each epoch."""
    recipe, placement = job.recipe, job.placement
    prepare_process(world.device, deterministic=placement.deterministic, precision=recipe.precision)
    dataset = world.together(lambda: open_dataset(recipe.data.path))
    images = Images.from_dataset(dataset, loader=placement.loader)
    execution = Execution(
        threads=1 if placement.threads == "auto" else placement.threads,
        loader=placement.loader,
        channels_last=placement.channels_last,
        compile=placement.compile,
        deterministic=placement.deterministic,
        eval_every=placement.eval_every,
        moments=placement.keep.moments,
        track_examples=placement.track_examples,
    )
    if world.leads:
        store.record_start()
    tracker = open_tracker(job, store.run_id, store.folder, dataset.name) if world.leads else NoTracker()
    try:
        for result in fit(recipe, images, store=store, world=world, execution=execution):
            tracker.log(result.row)
            yield result.row
    finally:
        tracker.close()
