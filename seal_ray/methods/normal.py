"""Plain training: the compute-matched controls, in which nothing is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Normal(Method):
    """schedule `restart`: learning rate and momentum start anew each generation; `long`: one schedule
    over the whole budget, the momentum never reset.
    """

    name: ClassVar[str] = "normal"

    schedule: Literal["restart", "long"] = "restart"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase of plain descent."""
        if self.schedule == "restart":
            return learn(budget)
        return (Phase("learn", budget.length, LEARN, fresh=generation == 0, cycle="budget"),)
