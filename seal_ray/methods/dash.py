"""Direction-aware shrinking, DASH (Shin et al., NeurIPS 2024, arXiv 2410.23495)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.data_edits import ShrinkByDirection
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Dash(Method):
    """Each generation from 1 on starts from w <- w x max(`floor`, cos(w, -g)) for each kernel of a
    convolution, row of a linear layer and bias of either; then everything descends.

    g is the gradient of the recipe's loss over `batches` batches, the first of the generation: what it pulls
    on in the direction of w is kept, the rest shrinks. Norms are kept.
    """

    name: ClassVar[str] = "dash"

    floor: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    batches: Annotated[int, Ge(1)] = 8

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with shrunken weights."""
        if generation == 0:
            return learn(budget)
        edit = ShrinkByDirection(self.floor, self.batches)
        return (Phase("relearn", budget.length, LEARN, edit=edit),)
