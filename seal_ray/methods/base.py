"""What a training method is: frozen data that says, for any generation, which phases it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from seal_ray.schedule import Budget, Group, Phase

LEARN = (Group("early"), Group("late"))
"""Everything descends."""


@dataclass(frozen=True)
class Method:
    """A training method; its fields are what `method:` in a recipe may hold.

    `split_at` names the first stage of the late part. `carry` names state beyond weights and optimizer
    that the method keeps; it becomes part of checkpoints.
    """

    name: ClassVar[str]
    carry: ClassVar[tuple[str, ...]] = ()

    split_at: str = "layer3"

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """The phases of a generation (0-based); their epochs add up to budget.length.

        ConfigError when a share leaves no epoch for the rest of the generation.
        """
        raise NotImplementedError


def learn(budget: Budget) -> tuple[Phase, ...]:
    """The first generation of every method in which nothing is forgotten: plain descent throughout."""
    return (Phase("learn", budget.length, LEARN),)
