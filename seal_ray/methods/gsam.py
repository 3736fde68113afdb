"""Surrogate-gap-guided sharpness-aware minimisation (Zhuang et al., ICLR 2022, arXiv 2203.08065)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from seal_ray.methods.base import LEARN, Method, method
from seal_ray.phases.schedule import Budget, Phase
from seal_ray.phases.steps import Gsam


@method
@dataclass(frozen=True)
class SurrogateGap(Method):
    """As sam, and besides, `alpha` times what of the gradient at w is orthogonal to the one at
    w + rho g / |g| is climbed, which narrows the gap between the two losses. Costs two passes a step.
    """

    name: ClassVar[str] = "gsam"

    rho: Annotated[float, Gt(0)] = 0.05
    alpha: Annotated[float, Ge(0)] = 0.4

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase of that descent."""
        return (Phase("learn", budget.length, LEARN, step=Gsam(self.rho, self.alpha)),)
