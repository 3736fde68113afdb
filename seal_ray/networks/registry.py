"""The networks that recipes may name: factories `(classes, **fields) -> nn.Module`, by the name of `arch`."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from seal_ray.errors import ConfigError
from seal_ray.networks import timm
from seal_ray.plugins import Registry

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[..., "nn.Module"]
"""Makes a network: called with `classes` and the fields, by name."""
F = TypeVar("F", bound=Factory)

NETWORKS: Registry[nn.Module] = Registry("network")
"""Classes and functions alike: whatever is called with `classes` and the fields."""

COMMON = ("arch", "dropout", "init_from", "init_sha256", "new_head")
"""Fields that `model:` in a recipe has for every network."""


def network(name: str) -> Callable[[F], F]:
    """Decorator: recipes may name this network, a function or class `(classes: int, **fields) -> nn.Module`.

    The network maps images (N, 3, H, W) to logits (N, classes). Fields have a type, which may be annotated
    with a range, and a default. Initial weights are whatever it draws from torch's own generator while it is
    made, which is seeded for it; or, where it has a method `initialise(generator)`, what that draws. With
    timm's `group_matcher` its stages are those groups, and else its children in order; the classifier is
    `get_classifier()`, and else its last linear layer. ConfigError for what cannot be read, and for a name
    that another network has.
    """

    def add(factory: F) -> F:
        named = re.fullmatch(r"[a-z][a-z0-9_]*", name)
        problem = "" if named else "give it a name of small letters, digits and _"
        parameters = list(inspect.signature(factory, eval_str=True).parameters.values())
        if not parameters or parameters[0].name != "classes":
            problem = "its first parameter must be `classes`, the number of classes"
        for one in parameters[1:]:
            if one.default is one.empty or one.annotation is one.empty:
                problem = f"give its field {one.name} a type and a default, as in `width: int = 64`"
            elif one.name in COMMON:
                problem = f"{one.name} is a field of every network; call its own otherwise"
        if problem:
            raise ConfigError(f"the network {name!r}: {problem}")
        NETWORKS.add(name, cast("type[nn.Module]", factory))
        return factory

    return add


def factory_of(arch: str) -> Factory:
    """What makes the network of that name. ConfigError with the nearest names when there is none."""
    if arch.startswith(timm.PREFIX):
        return timm.factory(arch)
    if arch in NETWORKS:
        return NETWORKS[arch]
    meant_by = arch.lower().replace("-", "")
    near = difflib.get_close_matches(meant_by, NETWORKS, n=1) or timm.nearest_arch(arch)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"must be {', '.join(map(repr, NETWORKS))} or {timm.PREFIX}NAME, not {arch!r}{meant}")


def network_fields(factory: Factory) -> dict[str, tuple[Any, Any]]:
    """Type and default of each field of a network."""
    parameters = inspect.signature(factory, eval_str=True).parameters
    return {name: (one.annotation, one.default) for name, one in parameters.items() if name != "classes"}
