"""RIFLE: re-initialising the fully connected layer (Li et al., ICML 2020, arXiv 2007.03349)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import Renew
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Rifle(Method):
    """Each generation from 1 on starts with a new classifier, weights and bias; everything descends.

    The paper does so while a pretrained network is fine-tuned (`model.init_from`), under a cyclic learning
    rate: a cycle is a generation, in which learning rate and momentum start anew. `zap` does it more often,
    without either.
    """

    name: ClassVar[str] = "rifle"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the new classifier."""
        if generation == 0:
            return learn(budget)
        return (Phase("relearn", budget.length, LEARN, edit=Renew("head")),)
