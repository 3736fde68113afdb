"""Knowledge evolution (Taha et al., CVPR 2021, arXiv 2103.05152)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import MaskedReinit
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Ke(Method):
    """A mask fixed at the start keeps a fraction `keep` of each layer (`kels`: leading filters and
    channels; `wels`: random weights); each generation from 1 on re-draws what lies outside it.

    part: where weights are re-drawn, all of the network or its early or late part.
    """

    name: ClassVar[str] = "ke"

    keep: Annotated[float, Interval(gt=0, lt=1)] = 0.8
    mask: Literal["kels", "wels"] = "kels"
    part: str = "all"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the masked re-initialisation."""
        if generation == 0:
            return learn(budget)
        edit = MaskedReinit(self.keep, self.mask, self.part)
        return (Phase("relearn", budget.length, LEARN, edit=edit),)
