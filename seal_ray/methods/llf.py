"""Later-layer forgetting (Zhou et al., Fortuitous Forgetting, ICLR 2022, arXiv 2202.00155)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import Reinit
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Llf(Method):
    """Each generation from 1 on starts with new weights in the late layers, then everything descends.

    init `reference`: the published code's draw; `model`: the network's own initialisation. part `early`
    forgets the early layers instead, an ablation of SEAL's published code (its `reverse`).
    """

    name: ClassVar[str] = "llf"

    init: Literal["reference", "model"] = "reference"
    part: Literal["late", "early"] = "late"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the re-initialisation."""
        if generation == 0:
            return learn(budget)
        return (Phase("relearn", budget.length, LEARN, edit=Reinit(self.part, self.init)),)
