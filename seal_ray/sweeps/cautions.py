"""Whether a recipe forgets next to nothing, which its author may not have meant."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

from seal_ray.errors import ConfigError
from seal_ray.phases.optimizers import Sgd
from seal_ray.phases.schedule import Budget, Phase, Position, Rise, first_epochs, learning_rates
from seal_ray.recipe import Recipe

FAINT_ASCENT = 1.0
"""Sums of ascent rates below this have been seen to change nothing; SEAL's paper has PAPER_ASCENT."""
PAPER_ASCENT = 94.0


def scheduled_phases(recipe: Recipe) -> Iterator[tuple[Position, Phase, tuple[float, ...]]]:
    """Each phase with the position that it begins at and the scheduled rate of each of its epochs."""
    for generation in range(recipe.budget.generations):
        phases = recipe.method.phases(generation, recipe.budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True):
            at = Position(generation, first)
            yield at, phase, learning_rates(recipe.optimizer.rates, phase, at, recipe.budget)


def ascent(phase: Phase, scheduled: list[float]) -> tuple[float, float] | None:
    """The least and most that the climbing part's rates can add up to over the phase's steps.

    scheduled: for each epoch, the scheduled rate summed over its steps.
    """
    for group in phase.groups:
        if not group.forgets:
            continue
        if not isinstance(group.lr, Rise):
            total = group.lr * sum(scheduled)
            return total, total
        weakest = strongest = min(group.lr.start, group.lr.cap)
        low = high = 0.0
        for rate in scheduled:
            low, high = low + rate * weakest, high + rate * strongest
            weakest, strongest = weakest / group.lr.factor, min(strongest * group.lr.factor, group.lr.cap)
        return low, high
    return None


def caution(recipe: Recipe, steps: int) -> str:
    """What to say of a recipe by which next to nothing is forgotten; empty of others. steps: in an epoch."""
    method, budget = recipe.method, recipe.budget
    if budget.generations == 1:
        with contextlib.suppress(ConfigError):  # a generation too short to forget something and relearn
            later = method.phases(1, Budget(2 * budget.length, budget.length))
            if not any(phase.edit or phase.ascends for phase in later):
                return ""
        return (
            f"{method.name} forgets at the start of each generation but the first, and there is one; lower "
            "budget.generation_length"
        )
    climbs = [
        (reach[1], phase)
        for _, phase, rates in scheduled_phases(recipe)
        if (reach := ascent(phase, [rate * steps for rate in rates]))
    ]
    most, climb = max(climbs, key=lambda one: one[0], default=(FAINT_ASCENT, None))
    if climb is None or most >= FAINT_ASCENT or not isinstance(recipe.optimizer, Sgd):  # others scale steps
        return ""
    return (
        f"its ascent's rates add up to {most:.1g}, in the paper to {PAPER_ASCENT:.0f}: likely too little to "
        f"forget anything; {_stronger(climb)}"
    )


def _stronger(climb: Phase) -> str:
    """What lets an ascent climb further, in words."""
    rise = climb.rise
    if rise is None:
        return "raise method.ascent_rate, or write {rise: 0.5}, the loss' rise in nats"
    capped = (climb.epochs - 1) * math.log(rise.factor) >= math.log(rise.cap / rise.start)
    binding = [f"start ({rise.start:g})"] * (rise.start < rise.cap) + [f"cap ({rise.cap:g})"] * capped
    return (
        f"raise {' and '.join(binding)} of method.ascent_rate, or method.ascent_share, for more than "
        f"{climb.epochs} epoch{'s' * (climb.epochs > 1)} of ascent"
    )


def said_once(cautions: Iterable[tuple[str, Recipe, str]]) -> Iterator[str]:
    """Cautions of what is called by these names: once of each method that forgets nothing, and once of each
    that forgets next to nothing, with the numbers of the first.
    """
    found: dict[tuple[str, bool], list[tuple[str, str]]] = {}
    for name, recipe, text in cautions:
        if text:
            found.setdefault((recipe.method.name, recipe.budget.generations == 1), []).append((name, text))
    for (name, text), *others in found.values():
        more = f" and {len(others)} more" if others else ""
        yield f"{name}{more}: {text}"
