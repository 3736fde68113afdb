"""Selective weight re-initialisation (Hernandez-Garcia et al., CoLLAs 2025, arXiv 2508.00212)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.data_edits import RedrawLeast
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Swr(Method):
    """Each generation from 1 on draws the least useful weights of each layer anew: the floor(`share` n)
    smallest abs(w x g) of its n; then everything descends.

    g is the gradient of the recipe's loss over `batches` batches, the first of the generation; with 0 batches
    the use of a weight is abs(w). Convolutions and linear layers; norms and biases are kept. The paper draws
    a few weights anew every few steps; here the period is a generation. Unlike in `dnr` each layer gives the
    same share.
    """

    name: ClassVar[str] = "swr"

    share: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    batches: Annotated[int, Ge(0)] = 8

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the weights that are drawn anew."""
        if generation == 0:
            return learn(budget)
        edit = RedrawLeast(self.share, "layer", self.batches)
        return (Phase("relearn", budget.length, LEARN, edit=edit),)
