"""Sharpness-aware minimisation (Foret et al., ICLR 2021, arXiv 2010.01412), whole or in one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from seal_ray.methods.base import LEARN, Method, method
from seal_ray.phases.schedule import Budget, Phase
from seal_ray.phases.steps import Sam


@method
@dataclass(frozen=True)
class SharpnessAware(Method):
    """Every step takes the gradient at w + rho g / |g|. `part: early` is a foil for SEAL: the early
    layers climb within each step, not for a stretch of epochs. Costs two passes a step.
    """

    name: ClassVar[str] = "sam"

    rho: Annotated[float, Gt(0)] = 0.05
    part: str = "all"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase of sharpness-aware descent."""
        return (Phase("learn", budget.length, LEARN, step=Sam(self.rho, self.part)),)
