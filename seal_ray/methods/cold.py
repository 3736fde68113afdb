"""A fresh start each generation: the control of every method that keeps something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import Renew
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Cold(Method):
    """Each generation from 1 on forgets everything: every parameter and buffer is drawn anew.

    What is left of the generations before is nothing, so that each one is a run of its own length.
    """

    name: ClassVar[str] = "cold"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with a new network."""
        if generation == 0:
            return learn(budget)
        return (Phase("relearn", budget.length, LEARN, edit=Renew("all")),)
