"""Dense-sparse-dense training (Han et al., ICLR 2017, arXiv 1607.04381)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from seal_ray.errors import ConfigError
from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import Prune
from seal_ray.phases.schedule import Budget, Group, Phase, epochs_of
from seal_ray.phases.steps import Masked


@method
@dataclass(frozen=True)
class Dsd(Method):
    """Each generation from 1 on: dense; the smallest `prune_share` of each layer's weights pruned and
    the rest trained; dense again from there, the pruned weights restarting at 0, at a tenth of the
    learning rate. dense_share, sparse_share: the first two stretches (thirds by default).
    """

    name: ClassVar[str] = "dsd"

    prune_share: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    dense_share: Annotated[float, Interval(gt=0, lt=1)] = 1 / 3
    sparse_share: Annotated[float, Interval(gt=0, lt=1)] = 1 / 3

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """Dense, sparse, dense; generation 0 only learns."""
        if generation == 0:
            return learn(budget)
        dense = epochs_of(self.dense_share, budget.length, "method.dense_share")
        sparse = epochs_of(self.sparse_share, budget.length, "method.sparse_share")
        last = budget.length - dense - sparse
        if last < 1:
            raise ConfigError(
                f"method: dense_share and sparse_share fill the {budget.length} epochs of a generation; "
                "lower them or lengthen the generation"
            )
        slow = tuple(Group(group.part, lr=0.1) for group in LEARN)
        return (
            Phase("dense", dense, LEARN),
            Phase("sparse", sparse, LEARN, edit=Prune(self.prune_share), step=Masked()),
            Phase("redense", last, slow),
        )
