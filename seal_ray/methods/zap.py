"""Zapping: resetting the last layer again and again (Frati et al., 2023, arXiv 2310.07996)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import Renew
from seal_ray.phases.schedule import Budget, Phase, epochs_of


@method
@dataclass(frozen=True)
class Zap(Method):
    """From generation 1 on the classifier is drawn anew every `every` epochs in the first `zap_share` of the
    generation; then it is left to learn. Everything descends throughout.

    Unlike in `rifle`, where a new classifier comes with a new cycle, neither learning rate nor momentum
    starts anew with it. The paper zaps while it pretrains and puts another classifier on top, so that it
    needs no end without zapping.
    """

    name: ClassVar[str] = "zap"

    every: Annotated[int, Ge(1)] = 1
    zap_share: Annotated[float, Interval(gt=0, lt=1)] = 0.5

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """A phase from each new classifier to the next; the last one lasts to the end."""
        if generation == 0:
            return learn(budget)
        starts = range(0, epochs_of(self.zap_share, budget.length, "method.zap_share"), self.every)
        return tuple(
            Phase("relearn", end - start, LEARN, edit=Renew("head", draw=draw), fresh=draw == 0)
            for draw, (start, end) in enumerate(zip(starts, [*starts[1:], budget.length], strict=True))
        )
