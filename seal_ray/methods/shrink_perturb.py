"""Shrink and perturb (Ash and Adams, NeurIPS 2020, arXiv 1910.08475)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import ShrinkAndPerturb
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class ShrinkPerturb(Method):
    """Each generation from 1 on starts from w <- `shrink` x w + `perturb` x fresh, fresh a new draw of the
    network's own initialisation; then everything descends.

    Every parameter, norms and biases included; running statistics are kept. shrink is usually 0.4 to 0.6.
    """

    name: ClassVar[str] = "shrink_perturb"

    shrink: Annotated[float, Interval(ge=0, lt=1)] = 0.4
    perturb: Annotated[float, Ge(0)] = 0.1

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts from shrunken, perturbed weights."""
        if generation == 0:
            return learn(budget)
        edit = ShrinkAndPerturb(self.shrink, self.perturb)
        return (Phase("relearn", budget.length, LEARN, edit=edit),)
