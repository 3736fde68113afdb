"""What a sweep would do, computed without training, without a cluster: for `seal-ray plan`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from seal_ray.data.assumed import assumption
from seal_ray.data.images import Images
from seal_ray.device import prepare_process, usable_cores
from seal_ray.errors import ConfigError
from seal_ray.phases.schedule import Position
from seal_ray.runs.sharing import Branching, branchings, epochs_to_train, finished_generations, shapes
from seal_ray.sweeps.plan import PlannedPhase, make_plan
from seal_ray.sweeps.results import SweepRuns
from seal_ray.training.gradients import gradient_passes
from seal_ray.training.run import Execution, Run
from seal_ray.training.world import World

START_UP = 15.0
"""Seconds that a run takes before its first step, roughly; side by side they overlap with training."""


@dataclass(frozen=True)
class RunLine:
    """One run: its setting and seed, the epochs asked for, those it would train itself, and how it stands."""

    run_id: str
    setting: str
    seed: int
    epochs: int
    trains: int
    status: str


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's work and footprint. bytes: kept on storage in the end; seconds: None without a speed.

    asked, shared, left: epochs in all, epochs that remain when what runs have in common is trained once, and
    those of them that nobody has trained yet; images: to train on in these. phases: each kind that there is,
    with the settings that have it.
    """

    runs: tuple[RunLine, ...]
    asked: int
    shared: int
    left: int
    images: int
    bytes: int
    seconds: float | None
    at_once: int
    cores: int
    tree: tuple[str, ...]
    phases: tuple[tuple[tuple[PlannedPhase, ...], tuple[str, ...]], ...]


def plan_sweep(runs: SweepRuns, images_per_second: float | None) -> SweepPlan:
    """The plan of a sweep whose data is prepared or assumed. Errors as make_plan."""
    keys = [one.run_keys for one in runs.planned]
    plans = {one.run_id: make_plan(one) for one in runs.planned}
    first = runs.planned[0]
    moments = first.job.placement.keep.moments
    there = {key for key, _ in finished_generations(first.store.folder.parent, moments)}
    own = dict(zip(plans, epochs_to_train(keys), strict=True))
    todo = dict(zip(plans, epochs_to_train(keys, there), strict=True))
    left = {run: min(todo[run], plan.epochs - plan.done) for run, plan in plans.items()}
    images = sum(plan.images // plan.epochs * left[run] for run, plan in plans.items())
    at_once = max(1, usable_cores() // first.job.placement.max_workers)
    starts = sum(epochs > 0 for epochs in left.values())
    phases: dict[tuple[PlannedPhase, ...], dict[str, None]] = {}
    for run, plan in plans.items():
        phases.setdefault(plan.phases, {})[runs.names[run][0]] = None
    return SweepPlan(
        runs=tuple(
            RunLine(run, *runs.names[run], plan.epochs, own[run], plan.status) for run, plan in plans.items()
        ),
        asked=sum(plan.epochs for plan in plans.values()),
        shared=sum(own.values()),
        left=sum(left.values()),
        images=images,
        bytes=sum(plan.kept_bytes for plan in plans.values()),
        seconds=images_per_second and images / images_per_second + START_UP * starts / at_once,
        at_once=at_once,
        cores=usable_cores(),
        tree=tuple(_drawn_trees(branchings(keys), runs)),
        phases=tuple((some, tuple(names)) for some, names in phases.items()),
    )


def measured_speed(runs: SweepRuns, steps: int = 8) -> float:
    """Images a second that this machine's CPU trains the first run at, all its cores busy.

    From a few steps of one thread, loading and both passes, after two of warm-up, times the cores.
    ConfigError when its data is not prepared.
    """
    if missing := assumption(runs.planned[0].dataset):
        raise ConfigError(f"--measure: {missing}; prepare it, or give --images-per-second")
    job = runs.planned[0].job
    prepare_process(torch.device("cpu"), deterministic=True, precision=job.recipe.precision)
    images = Images.from_dataset(runs.planned[0].dataset, loader="torch")
    run = Run(job.recipe, images, None, World(), Execution())
    run.network.train()
    backward = gradient_passes(run, job.recipe.method.phases(0, job.recipe.budget)[0])
    epochs = (run.training_epoch(Position(0, epoch)) for epoch in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    for shards in itertools.islice(batches, 2):
        backward(shards, None)
    started = time.perf_counter()
    for shards in itertools.islice(batches, steps):
        backward(shards, None)
    return steps * job.recipe.batch_size / (time.perf_counter() - started) * usable_cores()


def _drawn_trees(trees: Sequence[Branching], runs: SweepRuns) -> Iterator[str]:
    """The generation tree as lines of text; trees that differ in their seed only are drawn once."""
    for tree, seeds in shapes(trees, runs.names):
        many = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
        yield from _drawn(tree, runs, "", "", f"  [{many}]")


def _drawn(tree: Branching, runs: SweepRuns, before: str, below: str, after: str = "") -> Iterator[str]:
    names = [runs.names[run][0] or "all" for run in tree.runs]
    span = f"g{tree.first}" if tree.first == tree.last else f"g{tree.first}-g{tree.last}"
    shared = f"  (trained once for {len(names)})" if len(names) > 1 else ""
    yield f"{before}{span} {', '.join(names)}{shared}{after}"
    for i, branch in enumerate(tree.branches):
        last = i == len(tree.branches) - 1
        yield from _drawn(
            branch, runs, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")
        )
