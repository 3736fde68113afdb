"""Train the runs of a sweep: a Ray Tune driver that holds back whoever waits for a shared generation.

A trial is one run; Tune asks the searcher for the next one, which the queue chooses. The run folders are the
only truth: nothing is restored from Tune's own files, and the same command again does what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

from rich.console import Console as RichConsole

from seal_ray.data.beton import verify
from seal_ray.device import auto_threads
from seal_ray.errors import CheckpointError, ClusterError, ConfigError, SealRayError
from seal_ray.launch import POLL, Planned, check_resources, ray_session, train_under_lease
from seal_ray.queue import Claim, Queue
from seal_ray.recipe import Job
from seal_ray.results import SweepRuns
from seal_ray.screen import SweepScreen
from seal_ray.store import Store
from seal_ray.sweep import EarlyStopping

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
NO_CPU = {"node:__internal_head__": 0.001}
"""What a trial occupies: nothing that its run's workers need, so that it can never keep them waiting."""


def run_sweep(
    runs: SweepRuns,
    rich: RichConsole,
    *,
    share: bool,
    address: str | None,
    concurrent: int | None,
    in_process: bool,
) -> None:
    """Train what is left of a sweep, on Ray or, `in_process`, without it.

    share: train what runs have in common once. ConfigError and ClusterError before anything starts, DataError
    when the images are damaged. SIGTERM and Ctrl-C let what runs end at its next epoch boundary; a second
    Ctrl-C interrupts at once.
    """
    stopping = runs.sweep.early_stopping
    if in_process and (address or concurrent or stopping):
        raise ConfigError(
            "--in-process: one run at a time, to its end, without Ray; leave out --address, --concurrent and "
            "early_stopping"
        )
    ended = ("finished", "diverged", "pruned") if stopping else ("finished", "diverged")
    if all(one.store.status().get("status") in ended for one in runs.planned):
        rich.print(f"{runs.sweep.name}: every run has ended already, nothing to train", markup=False)
        return
    for dataset in {one.dataset.folder: one.dataset for one in runs.planned}.values():
        verify(dataset)
    with contextlib.ExitStack() as stack:
        at_once = 1
        if not in_process:
            stack.enter_context(ray_session(address))
            at_once = concurrency(runs.planned[0].job, concurrent)
        planned = [_side_by_side(one, at_once) for one in runs.planned]
        screen = stack.enter_context(contextlib.closing(SweepScreen(planned, runs.names, rich)))
        queue = Queue(planned, share=share, ended=ended, note=screen.note)
        stack.callback(queue.close)
        if in_process:
            train_here(queue, screen.refresh)
        else:
            use_gpu = check_resources(planned[0].job)
            train_on_ray(queue, screen.refresh, concurrent=at_once, use_gpu=use_gpu, stopping=stopping)


def _side_by_side(planned: Planned, runs: int) -> Planned:
    """The run with as many threads a worker as there are cores for when so many runs train at once."""
    job, placement = planned.job, planned.job.placement
    if placement.threads != "auto":
        return planned
    placement = placement.model_copy(update={"threads": auto_threads(job.recipe.shards, runs)})
    return replace(planned, job=job.model_copy(update={"placement": placement}))


def concurrency(job: Job, wanted: int | None) -> int:
    """How many runs train at once: as many as the cluster holds, or `wanted`.

    ClusterError when the cluster cannot hold that many, before anything starts.
    """
    import ray

    total, workers = ray.cluster_resources(), job.placement.workers
    kind = "GPU" if check_resources(job) else "CPU"
    room = int(total.get(kind, 0)) // workers
    if wanted is not None and wanted > room:
        raise ClusterError(
            f"--concurrent {wanted}: {wanted} runs of {workers} workers need {wanted * workers} {kind}s, the "
            f"cluster has {int(total.get(kind, 0))}; give at most {room}"
        )
    return wanted or room


def train_on_ray(
    queue: Queue,
    show_news: Callable[[], None],
    *,
    concurrent: int,
    use_gpu: bool,
    stopping: EarlyStopping | None,
) -> None:
    """Train the queue's runs, `concurrent` at once, under a Ray that is initialised, until none is left."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    failure: list[BaseException] = []

    def tune() -> None:
        try:
            _tune(queue, concurrent, use_gpu, stopping)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=tune, daemon=True)
    with _stop_on_signal(queue):
        thread.start()
        while thread.is_alive():
            thread.join(POLL)
            show_news()
    show_news()
    if failure:
        raise failure[0]


def train_here(queue: Queue, show_news: Callable[[], None]) -> None:
    """Train the queue's runs one after the other in this process, without Ray, until none is left."""
    from seal_ray.worker import train_to_end
    from seal_ray.world import World

    with _stop_on_signal(queue):
        while queue.left:
            claim = queue.claim()
            if claim is None:
                time.sleep(POLL)  # what it waits for is trained elsewhere
                continue
            show_news()
            alone = claim.planned.job.placement.model_copy(update={"workers": 1})
            job = claim.planned.job.model_copy(update={"placement": alone})
            train_to_end(job, claim.planned.store, World(), lambda _: show_news())
            queue.release(claim.planned)
    show_news()


def _tune(queue: Queue, concurrent: int, use_gpu: bool, stopping: EarlyStopping | None) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    scheduler = stopping and ASHAScheduler(
        time_attr="epochs",
        max_t=sys.maxsize,
        grace_period=stopping.after_epochs,
        reduction_factor=stopping.reduction_factor,
    )
    with tempfile.TemporaryDirectory(prefix="seal-ray-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(trial, tune.PlacementGroupFactory([NO_CPU])),
            tune_config=tune.TuneConfig(
                metric="top1",
                mode="max",
                search_alg=_searcher(queue, use_gpu),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="sweep", storage_path=scratch, verbose=0),
        ).fit()


def trial(config: dict[str, Any]) -> None:
    """What a Tune trial runs: Ray Train, and a report to Tune at the end of each generation."""
    from ray import tune

    job, store = Job.model_validate(config["job"]), Store(**config["store"])
    length, told = job.recipe.budget.length, 0

    def report_generations() -> None:
        nonlocal told
        with contextlib.suppress(CheckpointError):  # being rewritten; the next look finds it whole
            rows = store.rows()
            while len(rows) >= told + length:
                told += length
                tune.report({"epochs": told, "top1": rows[told - 1]["val_top1"]})

    train_under_lease(job, store, config["token"], config["use_gpu"], report_generations)


def _searcher(queue: Queue, use_gpu: bool) -> Any:
    """The queue as a Tune searcher."""
    from ray.tune.search import Searcher

    class Generations(Searcher):  # type: ignore[misc]
        """Suggests the run that may start next, or None while each waits for a shared generation."""

        def __init__(self) -> None:
            super().__init__(metric="top1", mode="max")
            self.claims: dict[str, Claim] = {}
            self.starts: dict[str, int] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            claim = queue.claim()
            if claim is None:
                return None if queue.left else Searcher.FINISHED
            self.claims[trial_id] = claim
            planned = claim.planned
            self.starts[planned.run_id] = self.starts.get(planned.run_id, 0) + 1
            return {
                "job": planned.job.model_dump(mode="json"),
                "store": {"folder": planned.store.folder, "run_id": planned.run_id},
                "token": claim.token,
                "use_gpu": use_gpu,
            }

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """The queue reads the run folders."""

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            planned = self.claims.pop(trial_id).planned
            again = error and self.starts[planned.run_id] <= planned.job.placement.retries
            if not again:
                _say_how_it_ended(planned, error)
            queue.release(planned, again=again)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the run folders are the truth."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Generations()


def _say_how_it_ended(planned: Planned, error: bool) -> None:
    """Record why a run that did not end by itself is not trained any further."""
    if planned.store.status().get("status") != "running":
        return
    with contextlib.suppress(SealRayError):
        epochs = len(planned.store.rows())
        if error:
            planned.store.set_status("failed", reason="its trial died again and again; see Ray's logs")
        else:
            planned.store.set_status("pruned", reason=f"by early stopping, after {epochs} epochs")


@contextlib.contextmanager
def _stop_on_signal(queue: Queue) -> Iterator[None]:
    """SIGINT and SIGTERM let what runs end at its next epoch boundary; a second SIGINT interrupts."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and queue.stopping:
            raise KeyboardInterrupt
        queue.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
