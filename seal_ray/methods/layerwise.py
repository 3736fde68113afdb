"""Layerwise re-initialisation (Alabdulmohsin et al., 2021, arXiv 2109.00267)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import RenewAbove
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Layerwise(Method):
    """Blocks are kept from the bottom up: generation g >= 1 of G starts with the lowest g K // G of K blocks
    rescaled to their initial norms and everything above drawn anew.

    The blocks are the residual blocks and, as the last, the classifier; of a network without residual blocks
    its stages. The paper also normalises the activations above the last block that is kept, which would make
    it another network: left out.
    """

    name: ClassVar[str] = "layerwise"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with what is drawn anew."""
        if generation == 0:
            return learn(budget)
        return (Phase("relearn", budget.length, LEARN, edit=RenewAbove(generation, budget.generations)),)
