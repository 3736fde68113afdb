"""Recycling dormant neurons, ReDo (Sokar et al., ICML 2023, arXiv 2302.12902)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.data_edits import RecycleDormant
from seal_ray.phases.schedule import Budget, Phase


@method
@dataclass(frozen=True)
class Redo(Method):
    """Each generation from 1 on starts dormant units anew: those whose mean activation is at most `threshold`
    of their layer's mean get new incoming weights, and outgoing weights 0; then everything descends.

    Units are channels of the layers whose outputs one other layer alone reads: in ResNets those within a
    block and the last features, in a ViT those of each MLP. Norms in between start anew with them.
    Activations are those of `batches` batches, the first of the generation. Networks without such a layer are
    refused when generation 1 begins.
    """

    name: ClassVar[str] = "redo"

    threshold: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    batches: Annotated[int, Ge(1)] = 8

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """One phase; from generation 1 on it starts with the units that start anew."""
        if generation == 0:
            return learn(budget)
        edit = RecycleDormant(self.threshold, self.batches)
        return (Phase("relearn", budget.length, LEARN, edit=edit),)
