"""From a job to a finished run: check everything that can be checked, then hand it to Ray Train.

The run folder is the only truth. Launching the same job again goes on at the next epoch, and a finished
run trains nothing; Ray keeps no state that matters.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import FrameType
from typing import Any

import psutil

from seal_ray.config.plugin_files import write_copies
from seal_ray.data.beton import BetonFile
from seal_ray.data.dataset import Labels
from seal_ray.data.prepared import Dataset, absolute, open_dataset, verify
from seal_ray.data.subset import steps_per_epoch
from seal_ray.device import usable_cores
from seal_ray.distributed.obstacles import obstacles
from seal_ray.distributed.session import check_hosts
from seal_ray.errors import ClusterError, ConfigError, SealRayError, SealRayWarning, StorageError
from seal_ray.recipe import Job, check_images, check_sendable, check_shards, dump_job
from seal_ray.runs.folder import ENDED, Store
from seal_ray.runs.lineage import generation_keys, run_id_of
from seal_ray.runs.sharing import RunKeys, branch, moments_needed, run_keys
from seal_ray.runs.weights import beginning, pinned
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.lease import hold_lease, owns
from seal_ray.storage.paths import (
    RAY_JOB,
    AnyPath,
    ObjectPath,
    check_bucket,
    check_outlives_job,
    on_this_host,
    storage_path,
)
from seal_ray.tracking.environment import overruled, sent_variables, settled
from seal_ray.tracking.terminal import RunProgress

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report costs up to one of these
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": "4",  # it warns at four times as many
}
EXIT_TIMEOUT = 5.0
"""Seconds that Ray's processes get to exit by themselves."""
NEWS_INTERVAL = 0.2
"""Seconds between two looks at a run's metrics."""
QUEUE_INTERVAL = 10.0
"""Seconds between two looks whether workers that have not begun wait for room."""
OBJECTS_INTERVAL = 1.0
"""The same where each look is some requests to S3."""


@dataclass(frozen=True)
class Planned:
    """A job with all that its launch needs to know of the data and the storage."""

    job: Job
    dataset: Dataset
    store: Store
    keys: tuple[str, ...]
    """Of the run's generations."""

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return self.store.run_id

    @functools.cached_property
    def run_keys(self) -> RunKeys:
        """The run as the generation tree sees it."""
        return run_keys(self.run_id, self.keys, self.job.recipe)

    @property
    def moments_needed(self) -> dict[str, frozenset[str]]:
        """Which moments it has to find of generations that it takes over, by their keys."""
        return moments_needed(self.job.recipe, self.keys, self.job.placement.keep.moments)

    def assignment(self, token: str) -> dict[str, Any]:
        """What workers are sent; token: of the run's lease."""
        return {"job": self.job.model_dump(mode="json"), "folder": str(self.store.folder), "token": token}

    def train_labels(self) -> Labels:
        """Labels of the training images, from the .beton file."""
        return BetonFile.open(self.dataset.folder / self.dataset.splits["train"].file).labels


def prepare_job(
    job: Job,
    digest: Callable[[str], str] | None = None,
    open_data: Callable[[str], Dataset] = open_dataset,
) -> Planned:
    """Open the job's data, every path made absolute.

    digest: see `seal_ray.runs.weights.pinned`, as which it raises. Raises as open_data; ConfigError when the
    storage is not, and cannot become, a folder or one in S3, when the network cannot read the images, and
    when they are fewer than a batch.
    """
    data = job.recipe.data.model_copy(update={"path": absolute(job.recipe.data.path)})
    storage = _storage(job.placement.storage)
    for line in overruled(job.placement.tracking):
        warnings.warn(line, SealRayWarning, stacklevel=2)
    tracking = settled(job.placement.tracking)
    placement = job.placement.model_copy(update={"storage": str(storage), "tracking": tracking})
    recipe = pinned(job.recipe.model_copy(update={"data": data}), digest)
    job = job.model_copy(update={"recipe": recipe, "placement": placement})
    dataset = open_data(data.path)
    if dataset.splits:
        check_images(recipe.model, dataset.size)
        check_shards(recipe, dataset.size)
        per_class, train = recipe.data.per_class, dataset.splits["train"]
        used = per_class * len(dataset.classes) if per_class else train.count
        # A rounding of each class may leave more; the run itself counts them.
        most = used - int(recipe.data.holdout * used - len(dataset.classes) / 2)
        steps_per_epoch(most if recipe.data.holdout else used, recipe.batch_size)
    keys = generation_keys(recipe, dataset.training_identity)
    identity = run_id_of(recipe, keys)
    return Planned(job, dataset, Store(storage / identity, identity, placement.keep.checkpoints), keys)


def _storage(storage: str) -> AnyPath:
    try:
        folder = storage_path(storage).resolve()
    except ConfigError as error:
        raise ConfigError(f"placement.storage: {error}") from None
    check_outlives_job(storage, "placement.storage")
    if isinstance(folder, ObjectPath):
        check_bucket(folder)
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"placement.storage: {storage} is not a folder; name one, or a new one")
    return folder


def offline(planned: Planned) -> Planned:
    """The same, whose metrics are logged offline."""
    tracking = planned.job.placement.tracking.model_copy(update={"wandb": "offline"})
    placement = planned.job.placement.model_copy(update={"tracking": tracking})
    return replace(planned, job=planned.job.model_copy(update={"placement": placement}))


def launch(planned: Planned, console: RunProgress) -> dict[str, str]:
    """Train a job under a Ray that is initialised; returns {status, reason} when it has ended.

    ClusterError when the cluster cannot hold its workers, when its hosts do not see the same, or when the run
    is being trained already; DataError when its files are damaged; ConfigError when its method is code that
    workers would not have: before anything starts. SIGTERM and Ctrl-C
    ask the run to stop at its next epoch boundary; a second Ctrl-C interrupts at once.
    """
    from seal_ray.distributed.workers import check_resources

    before = planned.store.status()
    if before.get("status") in ENDED:
        console.note(f"{planned.run_id}: {before['status']} already, nothing to train")
        return {"status": before["status"], "reason": before.get("reason", "")}
    check_sendable(planned.job)
    verify(planned.dataset)
    use_gpu = check_resources(planned.job)
    check_hosts(planned.job.placement.storage, [planned.job.recipe.data.path])
    with hold_lease(planned.store.folder) as token:
        store = replace(planned.store, owned=lambda: owns(planned.store.folder, token))
        begin(replace(planned, store=store), console.note)
        console.start(planned.job, planned.run_id, len(planned.store.rows()))
        try:
            with stop_on_signal(functools.partial(_request_stop, planned.store, console)):
                news = _follow(planned, use_gpu, console)
                return _train(planned, token, use_gpu, news)
        finally:
            console.finish()


def begin(
    planned: Planned,
    note: Callable[[str], None],
    sources: Mapping[str, Sequence[Store]] | None = None,
) -> None:
    """Make the folder of a run whose lease is held ready; start it after generations that others trained.

    sources: of these, by key; None: whoever has in the storage. Its status is `starting` until workers train
    it.
    """
    store, moments = planned.store, planned.job.placement.keep.moments
    store.clear_stop()
    store.say_waiting("")
    with saving(store.folder):
        write_copies(store.folder, planned.job.plugins)
        write_durably(store.folder / "job.yaml", dump_job(planned.job).encode())
    store.record_generations(planned.keys, moments)
    store.mend()
    recipe = planned.job.recipe
    taken = branch(store, recipe, planned.dataset.training_identity, moments, sources)
    if recipe.model.init_from is not None and not store.rows():
        note(f"{planned.run_id}: begins with {beginning(recipe.model, len(planned.dataset.classes))}")
    if taken:
        generations = "generation 0" if taken.generation == 0 else f"generations 0 to {taken.generation}"
        note(f"{planned.run_id}: {generations} taken over from {taken.source}")
    store.set_status("starting")


def _train(planned: Planned, token: str, use_gpu: bool, show_news: Callable[[], None]) -> dict[str, str]:
    """Run Ray Train, in a thread, until the run has ended; this one calls `show_news` again and again."""
    from seal_ray.distributed.workers import (
        LEFT,
        needs,
        room_that_stays,
        train_run,
        trainer,
        worker_counts,
    )

    store, retries = planned.store, planned.job.placement.retries
    ended = {"status": "failed", "reason": "Ray Train ended without a result"}
    assignment = planned.assignment(token)
    scratch, sizes = on_this_host(store.folder) / "ray", worker_counts([planned.job])

    timeout_s, needed = planned.job.placement.timeout_s, needs(planned.job, use_gpu)

    def fit() -> None:
        nonlocal ended
        try:
            while True:
                name = secrets.token_hex(4)
                run = trainer(train_run, assignment, name, sizes, needed, scratch, retries, timeout_s)
                ended = run.fit().return_value
                moves = ended == LEFT and not store.stop_requested()
                if not moves or room_that_stays(needed) < sizes[0]:
                    return
                store.warn("a host was about to be taken away: going on on others")
        except Exception as error:
            why = f"{last_line(error)}; the same command goes on after the last committed epoch"
            ended = {"status": "failed", "reason": why}

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(pause(store.folder))
        show_news()
    show_news()
    with contextlib.suppress(SealRayError):
        if owns(store.folder, token):  # else another launch has taken the run over
            if ended["status"] == "failed":
                store.set_status(**ended)
            store.clear_stop()
            shutil.rmtree(scratch, ignore_errors=True)
    return ended


def pause(folder: AnyPath) -> float:
    """Seconds between two looks at what a run writes."""
    return OBJECTS_INTERVAL if isinstance(folder, ObjectPath) else NEWS_INTERVAL


@contextlib.contextmanager
def ray_session(address: str | None, note: Callable[[str], None]) -> Iterator[None]:
    """A Ray cluster for the length of the block: the one at `address`, or a local one of our own.

    In a Ray job it is the cluster that runs the job. note: is told which one it is, and when it is ready.
    ClusterError says what keeps Ray from starting, or from the cluster, and what to set.
    """
    address, cores, began = _cluster(address), usable_cores(), time.monotonic()
    if found := obstacles(address, os.environ):
        raise ClusterError("\n".join(found))
    note(f"Ray: connecting to {address}" if address else f"Ray: starting on this machine's {cores} cores")
    sent = sent_variables()
    for name, value in {**RAY_SETTINGS, **sent}.items():
        os.environ.setdefault(name, value)
    import ray

    # What a launch imports takes seconds, and starting a cluster is mostly waiting.
    importing = threading.Thread(target=import_module, args=("ray.train.torch",))
    importing.start()
    local: dict[str, Any] = {"address": "local", "num_cpus": cores, "include_dashboard": False}
    there: dict[str, Any] = {"address": address}
    if sent and RAY_JOB not in os.environ:  # a job has them already
        there["runtime_env"] = {"env_vars": sent}
    try:
        ray.init(**(there if address else local), log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if address is None:
            raise ClusterError(
                f"Ray does not start on this machine: {_first_line(error)}; `seal-ray doctor` looks for why"
            ) from error
        raise ClusterError(
            f"no Ray cluster at {address}: {_first_line(error)}; start one with `ray start --head`, or leave "
            "--address out to use this machine"
        ) from error
    importing.join()
    has = ray.cluster_resources()
    room = ", ".join(f"{int(has.get(kind, 0))} {kind}s" for kind in ("CPU", "GPU"))
    note(f"Ray: ready after {time.monotonic() - began:.1f} s with {room}")
    try:
        yield
    finally:
        started = _ray_processes()
        ray.shutdown()
        for process in psutil.wait_procs(started, timeout=EXIT_TIMEOUT)[1]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _cluster(address: str | None) -> str | None:
    return "auto" if address is None and RAY_JOB in os.environ else address


def check_this_machine(job: Job, address: str | None) -> None:
    """Where Ray is to be started here: ClusterError, as `check_resources`, without starting it."""
    if _cluster(address) is None:
        import torch

        from seal_ray.distributed.workers import check_room

        check_room(job, "this machine", usable_cores(), torch.cuda.device_count())


def _ray_processes() -> list[psutil.Process]:
    """What the local Ray of this process has started. One of them now and then hangs while it exits."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            found += child.children(recursive=True) if child.name() == "raylet" else []
    return found


def _follow(planned: Planned, use_gpu: bool, console: RunProgress) -> Callable[[], None]:
    """A function that shows the epochs and warnings that have come since it was last called, and what
    workers that have not begun wait for.
    """
    store = planned.store
    epochs, warned, size = len(store.rows()), len(store.warnings()), -1
    say_what_waits = queued(planned.job, use_gpu, 1, console.note)

    def show_news() -> None:
        with contextlib.suppress(StorageError):  # the next look may find it answering again
            look()
            say_what_waits([store])

    def look() -> None:
        nonlocal epochs, warned, size
        for text in store.warnings()[warned:]:
            console.note(f"warning: {text}")
            warned += 1
        if (now := store.metrics_size()) != size:
            rows, size = store.rows(), now
            for row in rows[epochs:]:
                console.epoch(row)
            epochs = max(epochs, len(rows))

    return show_news


def queued(
    job: Job, use_gpu: bool, groups: int, note: Callable[[str], None]
) -> Callable[[Sequence[Store]], None]:
    """A function of the runs that are begun: it notes, every QUEUE_INTERVAL at most, what those wait for that
    no worker has started. groups: of workers, as of `job`, that train them.
    """
    from seal_ray.distributed.workers import lacking_room

    looked, said = time.monotonic(), dict[str, str]()

    def look(stores: Sequence[Store]) -> None:
        nonlocal looked
        if time.monotonic() - looked < QUEUE_INTERVAL:
            return
        looked = time.monotonic()
        starting = {store.run_id for store in stores if store.status().get("status") == "starting"}
        lacking = lacking_room(job, use_gpu, groups) if starting else ""
        for store in stores:
            why = lacking if store.run_id in starting else ""
            if why != said.get(store.run_id, ""):
                said[store.run_id] = why
                store.say_waiting(why)
                if why:
                    note(f"{store.run_id}: queued: {why}")

    return look


def _request_stop(store: Store, console: RunProgress, why: str) -> None:
    try:
        store.request_stop(why)
    except SealRayError as error:
        console.note(f"not stopping: {error}; press Ctrl-C again to stop at once")
    else:
        console.note("stopping at the next epoch boundary; press Ctrl-C again to stop at once")


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop` with their name; a SIGINT after one of them interrupts."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked = True
        stop("Ctrl-C" if number == signal.SIGINT else "SIGTERM")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """Of a remote traceback the last line is the error itself."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
