"""Dynamic neural regeneration (Ramkumar et al., NeurIPS 2024; as LURE in TMLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.data_edits import RedrawLeast
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Dnr(Method):
    """Each generation from 1 on draws the weights of least saliency anew, wherever they are: the
    floor(`share` n) smallest of abs(w x g) among the n weights of all convolutions and linear layers; then
    everything descends.

    The saliency is SNIP's (arXiv 1810.02340): g is the gradient of the recipe's loss over `batches` batches,
    the first of the generation. The published code adds the sizes of the batches' gradients instead.
    """

    name: ClassVar[str] = "dnr"

    share: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    batches: Annotated[int, Ge(1)] = 8

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the weights that are drawn anew."""
        if generation == 0:
            return learn(budget)
        edit = RedrawLeast(self.share, "network", self.batches)
        return (Phase("relearn", budget.length, LEARN, edit=edit),)
