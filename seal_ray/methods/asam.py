"""Adaptive sharpness-aware minimisation (Kwon et al., ICML 2021, arXiv 2102.11600), whole or in one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from seal_ray.methods.base import LEARN, Method, method
from seal_ray.phases.schedule import Budget, Phase
from seal_ray.phases.steps import Sam


@method
@dataclass(frozen=True)
class AdaptiveSharpnessAware(Method):
    """As sam, but the climb is in proportion to the size of each weight, so that re-scaling a layer, which
    batch norm undoes, does not change what counts as flat. Costs two passes a step.
    """

    name: ClassVar[str] = "asam"

    rho: Annotated[float, Gt(0)] = 0.5
    part: str = "all"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase of adaptive sharpness-aware descent."""
        return (Phase("learn", budget.length, LEARN, step=Sam(self.rho, self.part, adaptive=True)),)
