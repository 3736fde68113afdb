"""What a training method is: frozen data that says, for any generation, which phases it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from seal_ray.errors import ConfigError
from seal_ray.phases.schedule import Budget, Group, Phase
from seal_ray.plugins import Registry

LEARN = (Group("early"), Group("late"))
"""Everything descends."""


@dataclass(frozen=True)
class Method:
    """A training method; its fields are what `method:` in a recipe may hold.

    `split_at` names the first stage of the late part, or a block inside a stage; null, which a recipe
    replaces: the stage in the middle, layer3 in ResNets (`seal_ray.networks.stages.middle`). `carry` names
    state beyond weights and optimizer that the method keeps; it becomes part of checkpoints.
    """

    name: ClassVar[str]
    carry: ClassVar[tuple[str, ...]] = ()

    split_at: str | None = None

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """The phases of a generation (0-based); their epochs add up to budget.length.

        ConfigError when a share leaves no epoch for the rest of the generation.
        """
        raise NotImplementedError


MethodClass = TypeVar("MethodClass", bound=Method)

METHODS: Registry[Method] = Registry("method")
"""The methods that recipes may name."""


def method(cls: type[MethodClass]) -> type[MethodClass]:
    """Class decorator: recipes may name this method. Write it above `@dataclass(frozen=True)`.

    ConfigError for a class that is no method, and for a name that another one has.
    """
    if Method not in cls.__mro__:
        raise ConfigError(f"the method {cls.__qualname__} does not extend seal_ray.Method")
    return METHODS.register(cls, "says no phases" if cls.phases is Method.phases else "")


def learn(budget: Budget) -> tuple[Phase, ...]:
    """The first generation of every method in which nothing is forgotten: plain descent throughout."""
    return (Phase("learn", budget.length, LEARN),)
