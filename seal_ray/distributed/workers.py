"""The workers of Ray Train: how many the cluster holds, their trainer, and what each of them runs."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seal_ray.data.images import Images
from seal_ray.data.prepared import open_dataset
from seal_ray.device import prepare_process
from seal_ray.errors import ClusterError, Diverged, SealRayError, SealRayWarning, in_a_line
from seal_ray.recipe import Job, received_job
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import owns, take_lead
from seal_ray.storage.paths import storage_path
from seal_ray.tracking.tensorboard import TensorBoard, open_tensorboard
from seal_ray.tracking.wandb import NoTracker, Wandb, open_tracker
from seal_ray.training.loop import fit
from seal_ray.training.memory import bytes_needed, check_share, resident_bytes
from seal_ray.training.world import World

if TYPE_CHECKING:
    from seal_ray.phases.schedule import Row

LEFT = {
    "status": "stopped",
    "reason": "a host that trains it is about to be taken away; the same command goes on",
}
"""How a run ends early of which Ray has been told that one of its hosts is preempted."""


def worker_counts(jobs: Sequence[Job]) -> tuple[int, ...]:
    """How many workers may train the jobs, which share one placement, ascending.

    All numbers from its least to its most that divide the shards of each job: what is computed depends on
    neither.
    """
    placement, shards = jobs[0].placement, math.gcd(*(job.recipe.shards for job in jobs))
    return tuple(n for n in range(placement.min_workers, placement.max_workers + 1) if shards % n == 0)


def check_resources(job: Job) -> bool:
    """Whether the workers get GPUs. ClusterError when the cluster cannot hold the fewest of them at once."""
    import ray

    total = ray.cluster_resources()
    return check_room(job, "the cluster", int(total.get("CPU", 0)), int(total.get("GPU", 0)))


def check_room(job: Job, where: str, cpus: int, gpus: int) -> bool:
    """The same of so many CPUs and GPUs; where: who has them."""
    workers, wish = job.placement.min_workers, job.placement.use_gpu
    use_gpu = gpus > 0 if wish == "auto" else bool(wish)
    if use_gpu and gpus == 0:
        raise ClusterError(f"placement.use_gpu: {where} has no GPU that Ray sees; set it to auto or false")
    if use_gpu and gpus < workers:
        raise ClusterError(
            f"placement.workers: {workers} workers need a GPU each, {where} has {gpus}; lower workers "
            "(recipe.shards may stay), or set placement.use_gpu to false"
        )
    if cpus < workers:
        raise ClusterError(
            f"placement.workers: {workers} workers need a CPU each, {where} has {cpus}; lower workers "
            "(recipe.shards may stay)"
        )
    return use_gpu


def lacking_room(job: Job, use_gpu: bool, groups: int = 1) -> str:
    """What its fewest workers, or those of one of so many groups of them, wait for while others use the
    cluster; empty when all have room, or would.
    """
    import ray

    from seal_ray.distributed.ray_internals import rooms_held

    total, free = ray.cluster_resources(), ray.available_resources()
    for kind, each in needs(job, use_gpu).items():
        has, now, wanted = total.get(kind, 0), free.get(kind, 0), each * job.placement.min_workers
        if now < wanted and rooms_held() < groups:
            return f"waits for {wanted:g} {kind}{'s' * (wanted > 1)}; {now:g} of the cluster's {has:g} free"
    return ""


def needs(job: Job, use_gpu: bool) -> dict[str, float]:
    """What a worker needs of Ray."""
    return {"GPU": job.placement.gpus_per_worker, "CPU": 1} if use_gpu else {"CPU": 1}


def room_for(needed: Mapping[str, float], there: Mapping[str, float]) -> int:
    """How many workers that need so much a host holds; none is spread over two GPUs."""
    held = {kind: int(there.get(kind, 0)) * int(1 / each + 1e-9) for kind, each in needed.items()}
    return min(held.values())


def room_that_stays(needed: Mapping[str, float]) -> int:
    """How many workers the hosts hold that are not about to be taken away."""
    from seal_ray.distributed.ray_internals import staying_nodes

    return sum(room_for(needed, node["Resources"]) for node in staying_nodes())


def trainer(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    name: str,
    sizes: Sequence[int],
    needed: Mapping[str, float],
    folder: Path,
    failures: int,
    timeout_s: int,
) -> Any:
    """A TorchTrainer that runs `loop` on as many workers as there is room for, one of `sizes` (ascending).

    With more than one size it is elastic. needed: see `needs`. `folder` gets nothing that matters. timeout_s:
    seconds until a collective operation of theirs (gloo, NCCL) that some have not joined fails, and with it
    all of them.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from seal_ray.distributed.ray_internals import RESIZE_INTERVAL, SizedTrainer

    return SizedTrainer(
        loop,
        sizes=sizes,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]),
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL,
            use_gpu="GPU" in needed,
            resources_per_worker=dict(needed),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=failures, controller_failure_limit=failures),
        ),
        torch_config=TorchConfig(backend="nccl" if "GPU" in needed else "gloo", timeout_s=timeout_s),
    )


def train_run(assignment: dict[str, Any]) -> dict[str, str]:
    """What Ray Train runs on each worker: train until the run ends; returns {status, reason}."""
    import ray.train
    import ray.train.torch

    world = World.current(ray.train.torch.get_device())
    job, store = open_assignment(assignment, world)

    def report(row: Row) -> bool:
        ray.train.report(dict(row))
        return ray.train.get_preemption_info() is not None

    with warning_of_failures(store):
        return train_to_end(job, store, world, report)


def open_assignment(assignment: dict[str, Any], world: World) -> tuple[Job, Store]:
    """The job that a worker was sent, and the store that its leader writes to; warnings go there.

    assignment: {job, folder, token}; the job as plain data, with the code of its plugin files; the run's
    folder, and the token of its lease.
    """
    job, folder = received_job(assignment["job"]), storage_path(assignment["folder"])
    token = assignment["token"]
    owned = take_lead(folder, token) if world.leads else functools.partial(owns, folder, token)
    store = Store(folder, folder.name, job.placement.keep.checkpoints, owned)
    if world.leads:
        show_warnings_in(store)
    return job, store


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
                    world.lead(lambda: store.set_status(**LEFT))
                    return LEFT
    except Diverged as error:
        return {"status": "diverged", "reason": str(error)}
    except SealRayError as error:
        if world.leads:
            with contextlib.suppress(SealRayError):
                store.set_status("failed", reason=str(error))
        return {"status": "failed", "reason": str(error)}
    ended = store.status()
    return {"status": ended["status"], "reason": ended.get("reason", "")}


@contextlib.contextmanager
def warning_of_failures(store: Store) -> Iterator[None]:
    """Say of an exception in the block what it is: Ray Train starts the workers again, and says nothing."""
    try:
        yield
    except Exception as error:
        store.warn(f"a worker failed: {in_a_line(error)}")
        raise


def show_warnings_in(store: Store) -> None:
    """Put this process's own warnings where the launch shows them; a worker has no terminal."""
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], *where: Any, **told: Any) -> None:
        if issubclass(category, SealRayWarning):
            store.warn(str(message))
        else:
            show(message, category, *where, **told)

    warnings.showwarning = keep
    warnings.simplefilter("always", SealRayWarning)


def train_job(job: Job, store: Store, world: World) -> Generator[Row]:
    """Fit the job's recipe on this worker; the leader tells the trackers of each epoch."""
    recipe, placement = job.recipe, job.placement
    share = placement.gpus_per_worker
    prepare_process(
        world.device, deterministic=placement.deterministic, precision=recipe.precision, gpu_share=share
    )
    dataset = world.together(lambda: open_dataset(recipe.data.path))
    if world.device.type == "cuda" and share < 1:
        memory = torch.cuda.get_device_properties(world.device).total_memory
        count = sum(split.count for split in dataset.splits.values())
        size = (dataset.size, dataset.size)
        held = resident_bytes(count, size, share * memory) if placement.resident == "auto" else 0
        check_share(bytes_needed(recipe, len(dataset.classes), size) + held, share, memory)
    images = Images.from_dataset(dataset, loader=placement.loader)
    trackers: list[Wandb | TensorBoard | NoTracker] = []
    if world.leads:
        store.record_start()
        trackers = [
            open_tracker(job, store.run_id, store.folder, dataset.name),
            open_tensorboard(job, store),
        ]
    try:
        epochs = fit(recipe, images, store=store, world=world, placement=placement)
        with contextlib.closing(epochs):
            for result in epochs:
                for tracker in trackers:
                    tracker.log(result.row)
                yield result.row
    finally:
        for tracker in trackers:
            tracker.close()
