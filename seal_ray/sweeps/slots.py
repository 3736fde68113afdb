"""Slots: groups of Ray Train workers that train one run of a sweep after the other and stay warm between.

Starting workers takes as long as a short run, so a sweep starts them once. When one dies, Ray Train starts
the slot's workers anew and they go on with the run at its last committed epoch.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_ray.distributed.launch import last_line
from seal_ray.distributed.workers import show_warnings_in, train_to_end, trainer
from seal_ray.recipe import Workers, received_job
from seal_ray.runs.folder import SLOTS, Store
from seal_ray.storage.files import make_folder
from seal_ray.storage.lease import hold_lease, owns, take_lead
from seal_ray.storage.paths import AnyPath, on_this_host, storage_path
from seal_ray.sweeps.desk import Task, ask
from seal_ray.training.world import World

if TYPE_CHECKING:
    from seal_ray.phases.schedule import Row


class Slots:
    """`count` groups of workers, each of one of `sizes`, that train what lies on the desk until it closes.

    folder: the sweep's; a new one in it, or in what stands for it on this host, is in use until `close`.
    failures: how often workers may die in all.
    """

    def __init__(
        self, desk: Any, sizes: Sequence[int], *, count: int, use_gpu: bool, folder: AnyPath, failures: int
    ) -> None:
        folder = on_this_host(folder)
        make_folder(folder)
        self._desk, self._scratch = desk, Path(tempfile.mkdtemp(prefix=SLOTS, dir=folder))
        self._lease = contextlib.ExitStack()
        self._lease.enter_context(hold_lease(self._scratch))  # for `seal-ray clean`
        self._settings = (sizes, use_gpu, self._scratch, failures)
        self._threads = [threading.Thread(target=self._fit, args=(i,), daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def close(self, timeout: float) -> None:
        """Let the workers end, for `timeout` seconds at most; what is left of them ends with Ray."""
        import ray

        ray.get(self._desk.close.remote())
        for thread in self._threads:
            thread.join(timeout)
        self._lease.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _fit(self, slot: int) -> None:
        import ray

        try:
            trainer(serve, {"desk": self._desk, "slot": slot}, f"slot-{slot}", *self._settings).fit()
        except Exception as error:
            ray.get(self._desk.lose.remote(slot, last_line(error)))


def serve(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker of a slot. config: {desk, slot}."""
    import ray
    import ray.train.torch

    desk, slot = config["desk"], config["slot"]
    world = World.current(ray.train.torch.get_device())
    while (task := world.lead(lambda: ask(desk, slot, world.workers))) is not None:
        if not isinstance(task, str):  # WAIT: ask again
            outcome = _train(task, world, desk)
            if world.leads:
                ray.get(desk.end.remote(slot, outcome))


def _train(task: Task, world: World, desk: Any) -> dict[str, str]:
    import ray
    import ray.train

    job, folder, token = received_job(task["job"]), storage_path(task["folder"]), task["token"]
    owned = take_lead(folder, token) if world.leads else functools.partial(owns, folder, token)
    store = Store(folder, folder.name, job.placement.keep.checkpoints, owned)
    if world.leads:
        show_warnings_in(store)

    def report(row: Row) -> None:
        if isinstance(job.placement.workers, Workers):
            ray.train.report({})  # an occasion for more workers
        if world.leads and row["epoch"] + 1 == job.recipe.budget.length:
            news = {"epochs": row["global_epoch"] + 1, "top1": row["val_top1"]}
            ray.get(desk.tell.remote(token, news))

    return train_to_end(job, store, world, report)
