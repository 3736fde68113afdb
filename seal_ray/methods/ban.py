"""Born-again networks (Furlanello et al., ICML 2018, arXiv 1805.04770)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import EditContext, Renew
from seal_ray.phases.losses import Distill
from seal_ray.phases.schedule import Budget, Phase

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Succeed:
    """The network becomes the carried `teacher`; a freshly initialised one takes its place."""

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Replace every parameter and buffer by a new draw of the network's own initialisation."""
        context.carried["teacher"] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        Renew("all")(network, context)


@method
@dataclass(frozen=True)
class Ban(Method):
    """Each generation from 1 on trains a new network on the labels and on the previous generation's
    predictions: cross entropy + `weight` x distillation at `temperature`.
    """

    name: ClassVar[str] = "ban"
    carry: ClassVar[tuple[str, ...]] = ("teacher",)

    weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the succession and distils."""
        if generation == 0:
            return learn(budget)
        loss = Distill(self.weight, self.temperature)
        return (Phase("relearn", budget.length, LEARN, edit=Succeed(), loss=loss),)
