"""What a run or a sweep would do, computed without training, without a cluster: for `seal-ray plan`."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from seal_ray.data.assumed import assumed_labels, assumption
from seal_ray.data.images import Images
from seal_ray.data.subset import steps_per_epoch, training_split
from seal_ray.device import dtype_of, prepare_process, usable_cores
from seal_ray.distributed.launch import Planned
from seal_ray.errors import ConfigError
from seal_ray.networks import Parts
from seal_ray.phases.averaging import Averaging
from seal_ray.phases.schedule import (
    Phase,
    Position,
    Rise,
    owner,
)
from seal_ray.recipe import Model, Placement, Recipe
from seal_ray.runs.folder import ENDED
from seal_ray.runs.sharing import Branching, branchings, epochs_to_train, finished_generations, shapes
from seal_ray.runs.weights import beginning
from seal_ray.storage.paths import folders_in
from seal_ray.sweeps.cautions import ascent, caution, said_once, scheduled_phases
from seal_ray.sweeps.results import SweepRuns
from seal_ray.training.gradients import gradient_passes
from seal_ray.training.optimizer import state_copies
from seal_ray.training.run import Run
from seal_ray.training.world import World

START_UP = 15.0
"""Seconds that a run takes before its first step, roughly; side by side they overlap with training."""


@dataclass(frozen=True)
class PlannedPhase:
    """One phase of one generation. Rates are (first epoch, last epoch), signed, negative when climbing.

    ascent: the sum over steps of the rates of climbing parts, or its range when measured losses set it.
    """

    generation: int
    phase: str
    first_epoch: int
    epochs: int
    edit: str
    lr_early: tuple[float, float] | str
    lr_late: tuple[float, float] | str
    steps: int
    ascent: tuple[float, float] | None


@dataclass(frozen=True)
class PlannedPart:
    """The early or late part of the network: its stages in depth order, and its number of parameters."""

    stages: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class RunPlan:
    """A job's work and footprint. Sizes in bytes; images counts training images over the whole run, used
    those that there are.

    begins_with: initial weights that are not drawn, in words; empty once the run has begun. caution: what
    to say where next to nothing is forgotten; empty where something is.
    """

    run_id: str
    phases: tuple[PlannedPhase, ...]
    epochs: int
    done: int
    steps: int
    images: int
    used: int
    parameters: int
    early: PlannedPart
    late: PlannedPart
    checkpoint_bytes: int
    kept_bytes: int
    status: str
    begins_with: str
    caution: str


def make_plan(planned: Planned) -> RunPlan:
    """The plan of a job whose data is prepared or assumed. CheckpointError when its metrics are damaged or
    its initial weights do not fit, ConfigError when the recipe does not fit the data.
    """
    plan = _as_it_stands(_from_start(planned), planned)
    return plan if plan.done else replace(plan, begins_with=_beginning(planned))


def _beginning(planned: Planned) -> str:
    return beginning(planned.job.recipe.model, len(planned.dataset.classes))


def _as_it_stands(plan: RunPlan, planned: Planned) -> RunPlan:
    store = planned.store
    return replace(plan, done=len(store.rows()), status=store.status().get("status", "new"))


def _from_start(planned: Planned) -> RunPlan:
    """The plan of a run that has not begun, whose initial weights are not looked at."""
    recipe = planned.job.recipe
    labels = planned.train_labels() if planned.dataset.splits else assumed_labels(planned.dataset)
    used, _ = training_split(labels, recipe.data.per_class, recipe.data.holdout)
    per_epoch = steps_per_epoch(len(used), recipe.batch_size)
    dtype, classes = dtype_of(recipe.precision), len(planned.dataset.classes)
    network = _network(recipe.model, classes, dtype, recipe.method.split_at)
    carried = network.bytes * len(recipe.method.carry)
    keep = planned.job.placement.keep
    optimizer = dtype.itemsize * network.parameters * state_copies(recipe.optimizer)
    average = dtype.itemsize * network.parameters * (recipe.averaging != Averaging())
    checkpoint = network.bytes + carried + optimizer + average
    moments = sum(
        name in keep.moments
        for generation in range(recipe.budget.generations)
        for name in recipe.moments(generation)
    )
    return RunPlan(
        run_id=planned.run_id,
        phases=tuple(_phases(recipe, network.parts, per_epoch)),
        epochs=recipe.budget.epochs,
        done=0,
        steps=per_epoch * recipe.budget.epochs,
        images=per_epoch * recipe.batch_size * recipe.budget.epochs,
        used=len(used),
        parameters=network.parameters,
        early=network.early,
        late=network.late,
        checkpoint_bytes=checkpoint,
        kept_bytes=keep.checkpoints * checkpoint + moments * (network.bytes + carried),
        status="new",
        begins_with="",
        caution=caution(recipe, per_epoch),
    )


def cores_for(planned: Planned) -> str:
    """Whether this machine has a core for every worker, in words."""
    placement, cores = planned.job.placement, usable_cores()
    enough = placement.min_workers <= cores
    return f"{placement.workers} of this machine's {cores} cores" + ("" if enough else " (too few)")


@dataclass(frozen=True)
class _Network:
    """What a plan says of a network. bytes: of its parameters and buffers."""

    parts: Parts
    parameters: int
    bytes: int
    early: PlannedPart
    late: PlannedPart


@functools.lru_cache(maxsize=256)
def _network(model: Model, classes: int, dtype: torch.dtype, split_at: str | None) -> _Network:
    network = model.outline(classes).to(dtype)
    parts = Parts.of(network, split_at)
    return _Network(
        parts=parts,
        parameters=sum(p.numel() for p in network.parameters()),
        bytes=sum(tensor.nbytes for tensor in network.state_dict().values()),
        early=_part(network, parts, "early"),
        late=_part(network, parts, "late"),
    )


def _part(network: nn.Module, parts: Parts, part: str) -> PlannedPart:
    return PlannedPart(parts.stages_of(part), sum(p.numel() for p in parts.parameters(network, part)))


def _phases(recipe: Recipe, parts: Parts, per_epoch: int) -> Iterator[PlannedPhase]:
    for at, phase, rates in scheduled_phases(recipe):
        yield PlannedPhase(
            generation=at.generation,
            phase=phase.name,
            first_epoch=at.epoch,
            epochs=phase.epochs,
            edit=type(phase.edit).__name__ if phase.edit else "",
            lr_early=_rate(phase, parts, parts.stages[0], rates),
            lr_late=_rate(phase, parts, parts.split_at, rates),
            steps=per_epoch * phase.epochs,
            ascent=ascent(phase, [rate * per_epoch for rate in rates]),
        )


def _rate(phase: Phase, parts: Parts, stage: str, rates: Sequence[float]) -> tuple[float, float] | str:
    index = owner(phase.groups, parts, stage)
    if index is None:
        return "frozen"
    group = phase.groups[index]
    sign = -1 if group.ascend else 1
    if isinstance(group.lr, Rise):
        return f"{'-' * group.ascend}measured: +{group.lr.rise:g} nats"
    return sign * group.lr * rates[0], sign * group.lr * rates[-1]


def cautions(planned: Sequence[Planned], corners: Sequence[Planned] = ()) -> Iterator[str]:
    """What to say of runs that are about to be trained and forget next to nothing, see `said_once`.

    corners: of a search that has runs left, which are named by their settings.
    """
    left = [one for one in planned if one.store.status().get("status") not in ENDED]
    named = [(one.run_id, one) for one in left]
    named += [(one.job.placement.tracking.setting or one.run_id, one) for one in corners if left]
    alike: dict[Recipe, tuple[str, Planned]] = {}
    for name, one in named:
        alike.setdefault(one.job.recipe.model_copy(update={"seed": 0}), (name, one))
    return said_once((name, recipe, _from_start(one).caution) for recipe, (name, one) in alike.items())


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
    what to say of its ascents, and the settings that have it.
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
    phases: tuple[tuple[tuple[PlannedPhase, ...], str, tuple[str, ...]], ...]


def plan_sweep(runs: SweepRuns, images_per_second: float | None) -> SweepPlan:
    """The plan of a sweep whose data is prepared or assumed. Errors as make_plan."""
    keys = [one.run_keys for one in runs.planned]
    first = runs.planned[0]
    storage = first.store.folder.parent
    begun, alike = folders_in(storage), dict[Recipe, RunPlan]()
    plans: dict[str, RunPlan] = {}
    for one in runs.planned:
        recipe = one.job.recipe.model_copy(update={"seed": 0})
        if recipe not in alike:
            alike[recipe] = _from_start(one)
            _beginning(one)
        plan = replace(alike[recipe], run_id=one.run_id)
        plans[one.run_id] = _as_it_stands(plan, one) if one.run_id in begun else plan
    needed = {key: moments for one in runs.planned for key, moments in one.moments_needed.items()}
    there = finished_generations(storage, needed)
    own = dict(zip(plans, epochs_to_train(keys), strict=True))
    todo = dict(zip(plans, epochs_to_train(keys, there), strict=True))
    left = {run: min(todo[run], plan.epochs - plan.done) for run, plan in plans.items()}
    images = sum(plan.images // plan.epochs * left[run] for run, plan in plans.items())
    at_once = max(1, usable_cores() // first.job.placement.max_workers)
    starts = sum(epochs > 0 for epochs in left.values())
    phases: dict[tuple[tuple[PlannedPhase, ...], str], dict[str, None]] = {}
    for run, plan in plans.items():
        phases.setdefault((plan.phases, plan.caution), {})[runs.names[run][0]] = None
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
        phases=tuple((*some, tuple(names)) for some, names in phases.items()),
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
    run = Run(job.recipe, images, None, World(), Placement())
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
