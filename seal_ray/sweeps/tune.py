"""Train the runs of a sweep: a Ray Tune driver that holds back whoever waits for a shared generation.

A trial is one run; Tune asks the searcher for the next one, which the queue chooses. The run folders are the
only truth: nothing is restored from Tune's own files, and the same command again does what is left.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from seal_ray.data.prepared import verify
from seal_ray.distributed.launch import (
    EXIT_TIMEOUT,
    NEWS_INTERVAL,
    Planned,
    check_this_machine,
    last_line,
    pause,
    queued,
    ray_session,
    stop_on_signal,
)
from seal_ray.distributed.session import check_hosts
from seal_ray.distributed.workers import (
    check_resources,
    needs,
    open_assignment,
    room_for,
    train_to_end,
    trainer,
    warning_of_failures,
    worker_counts,
)
from seal_ray.errors import ClusterError, ConfigError, SealRayError, StorageError, in_a_line
from seal_ray.recipe import Job, Workers, check_sendable
from seal_ray.runs.folder import ENDED, WARM_WORKERS
from seal_ray.storage.files import make_folder
from seal_ray.storage.lease import hold_lease
from seal_ray.storage.paths import on_this_host
from seal_ray.sweeps.board import Assignment, Board, follow_for_tune, next_assignment
from seal_ray.sweeps.file import EarlyStopping, Search
from seal_ray.sweeps.progress import SweepProgress
from seal_ray.sweeps.queue import Claim, Queue
from seal_ray.sweeps.results import SweepRuns
from seal_ray.sweeps.search import VALUE
from seal_ray.training.world import World

if TYPE_CHECKING:
    from seal_ray.phases.schedule import Row

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a run that fails at once has no news
    "RAY_AIR_NEW_OUTPUT": "0",
}
NO_CPU = {"node:__internal_head__": 0.001}
"""What a trial occupies: nothing that its run's workers need, so that it can never keep them waiting."""


def run_sweep(
    runs: SweepRuns,
    rich: Console,
    *,
    share: bool,
    address: str | None,
    concurrent: int | None,
    in_process: bool,
    while_training: AbstractContextManager[None] | None = None,
) -> bool:
    """Train what is left of a sweep, on Ray or, `in_process`, without it; returns whether anything was.

    share: train what runs have in common once. while_training: entered once Ray is ready, left when runs have
    ended. ConfigError and ClusterError before anything starts, DataError when the images are damaged. SIGTERM
    and Ctrl-C let what runs end at its next epoch boundary; a second Ctrl-C interrupts at once.
    """
    if in_process and (address or concurrent or stopping_of(runs)):
        raise ConfigError(
            "--in-process: one run at a time, to its end, without Ray; leave out --address, --concurrent and "
            "early_stopping or search.stop"
        )
    given_up = runs.search.given_up() if runs.search else set()
    left = (one for one in runs.planned if one.run_id not in given_up)
    if (runs.search is None or runs.search.complete) and all(
        one.store.status().get("status") in _ended(runs) for one in left
    ):
        rich.print(f"{runs.sweep.name}: every run has ended already, nothing to train", markup=False)
        return False
    note = functools.partial(rich.print, markup=False)
    if not in_process:
        check_this_machine(runs.planned[0].job, address)
    for dataset in {one.dataset.folder: one.dataset for one in runs.planned}.values():
        verify(dataset)
    with (
        contextlib.nullcontext() if in_process else ray_session(address, note),
        while_training or contextlib.nullcontext(),
    ):
        train_sweep(runs, rich, share=share, concurrent=concurrent, in_process=in_process)
    return True


def train_sweep(
    runs: SweepRuns, rich: Console, *, share: bool, concurrent: int | None, in_process: bool
) -> None:
    """The same with data that was verified, under a Ray that is initialised unless `in_process`."""
    at_once = 1 if in_process else concurrency(runs.planned[0].job, concurrent)
    if not in_process:
        for one in runs.planned:
            check_sendable(one.job)
        check_hosts(runs.planned[0].job.placement.storage, [one.job.recipe.data.path for one in runs.planned])
    runs = runs.anew(tries=True)
    with contextlib.ExitStack() as stack:
        shown = SweepProgress(runs.planned, runs.names, rich, share=share, searching=runs.search is not None)
        progress = stack.enter_context(contextlib.closing(shown))
        queue = Queue(runs.planned, share=share, ended=_ended(runs), note=progress.note)
        stack.callback(queue.close)
        tasks = Tasks(queue, progress, runs)
        tasks.go_on()

        def show_news() -> None:
            progress.refresh(queue.changing())

        if in_process:
            train_here(tasks, show_news)
        else:
            say_what_waits = queued(
                runs.planned[0].job, check_resources(runs.planned[0].job), at_once, progress.note
            )

            def show_all() -> None:
                show_news()
                with contextlib.suppress(StorageError):  # the next look may find it answering again
                    say_what_waits(queue.claimed())

            train_on_ray(tasks, show_all, runs, at_once)
        progress.refresh()


class Tasks:
    """The queue of a sweep, into which a search puts more runs as results come."""

    def __init__(self, queue: Queue, progress: SweepProgress, runs: SweepRuns) -> None:
        self.queue, self._progress, self._runs = queue, progress, runs
        self._known = {one.run_id for one in runs.planned}
        self._looked = -math.inf

    @property
    def left(self) -> bool:
        """Whether a run is still to be claimed, or may be once others have ended."""
        search = self._runs.search
        return self.queue.left or not (search is None or search.complete or self.queue.stopping)

    def claim(self) -> Claim | None:
        """The run to start now; None when each must wait, or a search for results that others make."""
        claim = self.queue.claim()
        while claim is None and (failed := self.queue.take_failed()):
            self._ended(failed)
            claim = self.queue.claim()
        if claim is None and not self.queue.left and self.left:
            if time.monotonic() - self._looked < pause(self._runs.folder):
                return None
            self.go_on()
            self._looked = time.monotonic()  # after it, or a slow storage would be read without end
            return self.claim()
        return claim

    def release(self, planned: Planned, *, again: bool = False) -> None:
        """A claimed run has ended, or, `again`, is to be started once more."""
        self.queue.release(planned, again=again)
        if not again:
            self._ended([planned.run_id])

    def _ended(self, run_ids: Sequence[str]) -> None:
        """Before another run is claimed, which may be of a setting that these have decided."""
        if self._runs.search is not None:
            for run_id in run_ids:
                self._runs.search.ended(run_id)
            self.go_on()

    def go_on(self) -> None:
        """Queue what a search suggests by results so far, and forget what these have made needless."""
        if (search := self._runs.search) is None or self.queue.stopping:
            return
        runs = self._runs.latest()
        if new := [one for one in runs.planned if one.run_id not in self._known]:
            for one in new:
                check_sendable(one.job)
                self.queue.add(one)
            self._known |= {one.run_id for one in new}
            self._progress.add(new, runs.names)
        given_up = search.given_up()
        self.queue.forget(given_up)
        self._progress.forget(given_up)


def stopping_of(runs: SweepRuns) -> EarlyStopping | Search | None:
    """What decides early that a run is given up."""
    space = runs.sweep.space
    return space.search if space and space.search.stop != "none" else runs.sweep.early_stopping


def _ended(runs: SweepRuns) -> tuple[str, ...]:
    """How a run stands that the sweep leaves alone: with early stopping also when it was pruned."""
    return ENDED if stopping_of(runs) is None else (*ENDED, "pruned")


def concurrency(job: Job, wanted: int | None) -> int:
    """How many runs train at once: as many as the cluster holds, or `wanted`.

    ClusterError when the cluster cannot hold that many, before anything starts.
    """
    import ray

    total, workers = ray.cluster_resources(), job.placement.max_workers
    needed = needs(job, check_resources(job))
    kind = min(needed, key=lambda kind: room_for({kind: needed[kind]}, total))
    room = max(1, room_for(needed, total) // workers)  # elastic ones start with less
    if wanted is not None and wanted > room:
        raise ClusterError(
            f"--concurrent {wanted}: {wanted} runs of {workers} workers need "
            f"{wanted * workers * needed[kind]:g} {kind}s, the cluster has {total.get(kind, 0):g}; give at "
            f"most {room}"
        )
    return wanted or room


def train_on_ray(tasks: Tasks, show_news: Callable[[], None], runs: SweepRuns, concurrent: int) -> None:
    """Train the runs that are left, `concurrent` at once, under a Ray that is initialised."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    failure: list[BaseException] = []
    board = open_board(concurrent)

    def tune() -> None:
        try:
            _tune(tasks, board, concurrent, runs)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=tune, daemon=True)
    with warm_workers(board, runs, concurrent), stop_on_signal(tasks.queue.stop):
        thread.start()
        while thread.is_alive():
            thread.join(pause(runs.folder))
            show_news()
    show_news()
    if failure:
        raise failure[0]


def open_board(groups: int) -> Any:
    """The board of a sweep with so many groups of workers, in a process of this host.

    Ray would put it on any, and a sweep must not end with a host that is not the driver's own.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote(groups)


@contextlib.contextmanager
def warm_workers(board: Any, runs: SweepRuns, groups: int) -> Iterator[None]:
    """So many groups of workers train what is on the board until the block ends.

    Starting workers takes as long as a short run, so a sweep starts them once. When one dies, Ray Train
    starts its group anew, which goes on with the run at its last committed epoch.
    """
    import ray

    jobs, folder = [one.job for one in runs.planned], on_this_host(runs.folder)
    make_folder(folder)
    sizes, needed = worker_counts(jobs), needs(jobs[0], check_resources(jobs[0]))
    placement = jobs[0].placement
    failures = runs.sweep.most[0] * (placement.retries + 1)
    scratch = Path(tempfile.mkdtemp(prefix=WARM_WORKERS, dir=folder))

    def fit(group: int) -> None:
        config = {"board": board, "group": group}
        try:
            name, timeout_s = f"group-{group}", placement.timeout_s
            trainer(train_assigned, config, name, sizes, needed, scratch, failures, timeout_s).fit()
        except Exception as error:
            ray.get(board.lose.remote(group, last_line(error)))

    threads = [threading.Thread(target=fit, args=(i,), daemon=True) for i in range(groups)]
    with hold_lease(scratch):  # for `seal-ray clean`
        for thread in threads:
            thread.start()
        yield
        ray.get(board.close.remote())
        for thread in threads:
            thread.join(EXIT_TIMEOUT)  # what is left of them ends with Ray
    shutil.rmtree(scratch, ignore_errors=True)


def train_assigned(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker of a group: one run after the other. config: {board, group}."""
    import ray
    import ray.train.torch

    board, group = config["board"], config["group"]
    world = World.current(ray.train.torch.get_device())
    while (assignment := world.lead(lambda: next_assignment(board, group, world.workers))) is not None:
        if not isinstance(assignment, str):  # WAIT: ask again
            try:
                outcome = _train(assignment, world, board)
            except Exception as error:
                ray.get(board.explain.remote(group, in_a_line(error)))
                raise
            if world.leads:
                ray.get(board.end.remote(group, outcome))


def _train(assignment: Assignment, world: World, board: Any) -> dict[str, str]:
    import ray.train

    job, store = open_assignment(assignment, world)

    def report(row: Row) -> None:
        if isinstance(job.placement.workers, Workers):
            ray.train.report({})  # an occasion for more workers
        value = row[assignment["metric"]]
        if world.leads and row["epoch"] + 1 == job.recipe.budget.length and value is not None:
            news = {"epochs": row["global_epoch"] + 1, VALUE: value}
            ray.get(board.tell.remote(assignment["token"], news))

    with warning_of_failures(store):
        return train_to_end(job, store, world, report)


def train_here(tasks: Tasks, show_news: Callable[[], None]) -> None:
    """Train the runs one after the other in this process, without Ray, until none is left."""
    with stop_on_signal(tasks.queue.stop):
        while tasks.left:
            claim = tasks.claim()
            if claim is None:
                time.sleep(NEWS_INTERVAL)  # what it waits for is trained elsewhere
                continue
            show_news()
            alone = claim.planned.job.placement.model_copy(update={"workers": 1})
            job = claim.planned.job.model_copy(update={"placement": alone})
            try:
                with claim.store.failing():
                    train_to_end(job, claim.store, World(), lambda _: show_news())
            except Exception:  # of this run alone; the reader may have written its method
                traceback.print_exc()
            tasks.release(claim.planned)
    show_news()


def _scheduler(runs: SweepRuns) -> Any:
    """What decides at the ends of generations which runs are given up; None: nothing does."""
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    stopping = stopping_of(runs)
    if stopping is None:
        return None
    after = stopping.after_epochs or 2 * runs.planned[0].job.recipe.budget.length
    if isinstance(stopping, Search) and stopping.stop == "median":
        return MedianStoppingRule(time_attr="epochs", grace_period=after)
    factor = 3.0 if isinstance(stopping, Search) else stopping.reduction_factor
    return ASHAScheduler(time_attr="epochs", max_t=sys.maxsize, grace_period=after, reduction_factor=factor)


def _tune(tasks: Tasks, board: Any, concurrent: int, runs: SweepRuns) -> None:
    """Let Tune run a trial for each run that is left."""
    from ray import tune

    search = runs.sweep.space.search if runs.sweep.space else None
    follow = functools.partial(follow_for_tune, board)
    with tempfile.TemporaryDirectory(prefix="seal-ray-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(follow, tune.PlacementGroupFactory([NO_CPU])),
            tune_config=tune.TuneConfig(
                metric=VALUE,
                mode=search.mode if search else "max",
                search_alg=_searcher(tasks, board, search),
                scheduler=_scheduler(runs),
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="sweep", storage_path=scratch, verbose=0),
        ).fit()


def _searcher(tasks: Tasks, board: Any, search: Search | None) -> Any:
    """What is left as a Tune searcher."""
    import ray
    from ray.tune.search import Searcher

    # A number of an analysis is not known at the end of a generation, and stops nothing.
    metric = "val_top1" if search is None or "/" in search.metric else search.metric
    why = "by early stopping" if search is None else f"by the search ({search.stop}); `train` goes on"

    class Generations(Searcher):  # type: ignore[misc]
        """Suggests the run that may start next, or None while each waits for a shared generation."""

        def __init__(self, tasks: Tasks, board: Any) -> None:
            super().__init__(metric=VALUE, mode="max")
            self.tasks, self.board = tasks, board
            self.claims: dict[str, Claim] = {}

        def __getstate__(self) -> dict[str, Any]:
            """Tune pickles what it was given, to restore from; nobody does."""
            return {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            claim = self.tasks.claim()
            if claim is None:
                return None if self.tasks.left else Searcher.FINISHED
            self.claims[trial_id] = claim
            ray.get(self.board.put.remote(_assignment(claim, metric)))
            return {"run": claim.planned.run_id, "token": claim.token}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            claim = self.claims.pop(trial_id)
            _, outcome = ray.get(self.board.follow.remote(claim.token, 0))
            if outcome is None and not error:
                _say(claim.planned, "pruned", why)
            elif outcome and outcome["status"] == "failed":
                _say(claim.planned, **outcome)
            self.tasks.release(claim.planned, again=outcome is None and error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the run folders are the truth."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Generations(tasks, board)


def _assignment(claim: Claim, metric: str) -> Assignment:
    """A claimed run for the board, with news of the generations that are there already."""
    job, store = claim.planned.job, claim.planned.store
    rows, length = store.rows(), job.recipe.budget.length
    ends = [row for row in rows if row["epoch"] + 1 == length]
    return {
        **claim.planned.assignment(claim.token),
        "retries": job.placement.retries,
        "metric": metric,
        "news": [
            {"epochs": row["global_epoch"] + 1, VALUE: row[metric]}
            for row in ends
            if row.get(metric) is not None
        ],
    }


def _say(planned: Planned, status: str, reason: str) -> None:
    """Record why a run that did not end by itself is not trained any further."""
    with contextlib.suppress(SealRayError):
        planned.store.set_status(status, reason=reason)
