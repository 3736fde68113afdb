"""What a job would do, computed without training, without a cluster: for `seal-ray plan`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from seal_ray.data.assumed import assumed_labels
from seal_ray.data.subset import steps_per_epoch, training_indices
from seal_ray.device import dtype_of, usable_cores
from seal_ray.distributed.launch import Planned
from seal_ray.networks import Parts, ResNet, stages
from seal_ray.phases.schedule import (
    Phase,
    Position,
    Rise,
    first_epochs,
    learning_rate,
    moments_of,
    owner,
)
from seal_ray.recipe import Recipe
from seal_ray.runs.weights import beginning
from seal_ray.training.optimizer import state_copies


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
class Plan:
    """A job's work and footprint. Sizes in bytes; images counts training images over the whole run.

    begins_with: initial weights that are not drawn, in words; empty once the run has begun.
    """

    run_id: str
    phases: tuple[PlannedPhase, ...]
    epochs: int
    done: int
    steps: int
    images: int
    parameters: int
    checkpoint_bytes: int
    kept_bytes: int
    status: str
    begins_with: str


def make_plan(planned: Planned) -> Plan:
    """The plan of a job whose data is prepared or assumed. CheckpointError when its metrics are damaged or
    its initial weights do not fit, ConfigError when the recipe does not fit the data.
    """
    recipe, store = planned.job.recipe, planned.store
    labels = planned.train_labels() if planned.dataset.splits else assumed_labels(planned.dataset)
    per_epoch = steps_per_epoch(training_indices(labels, recipe.data.per_class), recipe.batch_size)
    model, dtype = recipe.model, dtype_of(recipe.precision)
    with torch.device("meta"):  # sizes only
        classes = len(planned.dataset.classes)
        network = ResNet(model.arch, classes=classes, stem=model.stem, width=model.width).to(dtype)
    parts = Parts(stages(network), recipe.method.split_at)
    parameters = sum(p.numel() for p in network.parameters())
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    carried = weights * len(recipe.method.carry)
    keep, done = planned.job.placement.keep, len(store.rows())
    checkpoint = weights + carried + dtype.itemsize * parameters * state_copies(recipe.optimizer)
    phases = tuple(_phases(recipe, parts, per_epoch))
    moments = sum(
        name in keep.moments
        for generation in range(recipe.budget.generations)
        for name in moments_of(recipe.method.phases(generation, recipe.budget), generation)
    )
    return Plan(
        run_id=planned.run_id,
        phases=phases,
        epochs=recipe.budget.epochs,
        done=done,
        steps=per_epoch * recipe.budget.epochs,
        images=per_epoch * recipe.batch_size * recipe.budget.epochs,
        parameters=parameters,
        checkpoint_bytes=checkpoint,
        kept_bytes=keep.checkpoints * checkpoint + moments * (weights + carried),
        status=store.status().get("status", "new"),
        begins_with="" if done else beginning(model, classes),
    )


def cores_for(planned: Planned) -> str:
    """Whether this machine has a core for every worker, in words."""
    placement, cores = planned.job.placement, usable_cores()
    enough = placement.min_workers <= cores
    return f"{placement.workers} of this machine's {cores} cores" + ("" if enough else " (too few)")


def _phases(recipe: Recipe, parts: Parts, per_epoch: int) -> list[PlannedPhase]:
    planned = []
    for generation in range(recipe.budget.generations):
        phases = recipe.method.phases(generation, recipe.budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True):
            rates = [
                learning_rate(recipe.optimizer.rates, phase, Position(generation, first + e), recipe.budget)
                for e in range(phase.epochs)
            ]
            planned.append(
                PlannedPhase(
                    generation=generation,
                    phase=phase.name,
                    first_epoch=first,
                    epochs=phase.epochs,
                    edit=type(phase.edit).__name__ if phase.edit else "",
                    lr_early=_rate(phase, parts, parts.stages[0], rates),
                    lr_late=_rate(phase, parts, parts.split_at, rates),
                    steps=per_epoch * phase.epochs,
                    ascent=_ascent(phase, [rate * per_epoch for rate in rates]),
                )
            )
    return planned


def _rate(phase: Phase, parts: Parts, stage: str, rates: list[float]) -> tuple[float, float] | str:
    index = owner(phase.groups, parts, stage)
    if index is None:
        return "frozen"
    group = phase.groups[index]
    sign = -1 if group.ascend else 1
    if isinstance(group.lr, Rise):
        return f"{'-' * group.ascend}measured: +{group.lr.rise:g} nats"
    return sign * group.lr * rates[0], sign * group.lr * rates[-1]


def _ascent(phase: Phase, scheduled: list[float]) -> tuple[float, float] | None:
    """The least and most that the climbing part's rates can add up to over the phase's steps.

    scheduled: for each epoch, the scheduled rate summed over its steps.
    """
    for group in phase.groups:
        if not group.ascend and group.loss is None:
            continue
        if isinstance(group.lr, float):
            total = group.lr * sum(scheduled)
            return total, total
        weakest = strongest = min(group.lr.start, group.lr.cap)
        low = high = 0.0
        for rate in scheduled:
            low, high = low + rate * weakest, high + rate * strongest
            weakest, strongest = weakest / group.lr.factor, min(strongest * group.lr.factor, group.lr.cap)
        return low, high
    return None
