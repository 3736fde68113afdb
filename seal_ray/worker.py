"""What Ray Train runs on each worker: open the data and the store, fit, report."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from seal_ray.data.beton import load_dataset
from seal_ray.data.images import Images
from seal_ray.device import auto_threads, prepare_process
from seal_ray.errors import Diverged, SealRayError, SealRayWarning
from seal_ray.lease import owns
from seal_ray.recipe import Job
from seal_ray.run import Execution
from seal_ray.store import Store
from seal_ray.tracking import NoTracker, open_tracker
from seal_ray.train import fit
from seal_ray.world import World

if TYPE_CHECKING:
    from seal_ray.schedule import Row


def work(config: dict[str, Any]) -> dict[str, str]:
    """What Ray Train runs on each worker: train until the run ends; returns {status, reason}.

    config: {job, run_id, folder, token}.
    """
    import ray.train
    import ray.train.torch

    job = Job.model_validate(config["job"])
    folder, token = Path(config["folder"]), config["token"]
    world = World.current(ray.train.torch.get_device())
    store = Store(folder, config["run_id"], job.placement.keep.checkpoints, lambda: owns(folder, token))
    if world.leads:
        show_warnings_in(store)
    return train_to_end(job, store, world, lambda row: ray.train.report(dict(row)))


def train_to_end(job: Job, store: Store, world: World, report: Callable[[Row], object]) -> dict[str, str]:
    """Train on this worker until the run ends, and report each epoch; returns {status, reason}.

    Divergence and errors that a user caused are returned and not raised, because Ray Train would retry an
    exception, which cannot help.
    """
    try:
        for row in train_job(job, store, world):
            report(row)
    except Diverged as error:
        return {"status": "diverged", "reason": str(error)}
    except SealRayError as error:
        if world.leads:
            with contextlib.suppress(SealRayError):
                store.set_status("failed", reason=str(error))
        return {"status": "failed", "reason": str(error)}
    return {"status": store.status()["status"], "reason": ""}


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


def train_job(job: Job, store: Store, world: World) -> Iterator[Row]:
    """Fit the job's recipe on this worker; the leader tells the tracker of each epoch."""
    recipe, placement = job.recipe, job.placement
    threads = auto_threads(recipe.shards) if placement.threads == "auto" else placement.threads
    prepare_process(threads, world.device, deterministic=placement.deterministic, precision=recipe.precision)
    dataset = world.together(lambda: load_dataset(Path(recipe.data.path)))
    images = Images.from_dataset(dataset, loader=placement.loader)
    execution = Execution(
        threads=threads,
        loader=placement.loader,
        channels_last=placement.channels_last,
        compile=placement.compile,
        deterministic=placement.deterministic,
        eval_every=placement.eval_every,
        moments=placement.keep.moments,
        track_examples=placement.track_examples,
    )
    tracker = open_tracker(job, store.run_id, store.folder, dataset.name) if world.leads else NoTracker()
    try:
        for result in fit(recipe, images, store=store, world=world, execution=execution):
            tracker.log(result.row)
            yield result.row
    finally:
        tracker.close()
