"""Networks of timm (Wightman, github.com/huggingface/pytorch-image-models), as `arch: timm/NAME`.

Nothing pretrained is downloaded; weights from elsewhere come by `init_from`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from seal_ray.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm/"
OURS = ("self", "num_classes", "in_chans", "device", "dtype")
"""Parameters of timm's classes that are no fields: what they are follows from the recipe."""
YAML_TYPES = (bool, int, float, str)


@functools.cache
def factory(arch: str) -> Callable[..., nn.Module]:
    """What makes timm's network of that name; a field that is None is as timm's factory has it.

    Its fields are the parameters of the network's class. ConfigError when timm is missing, or has no such
    network.
    """
    if find_spec("timm") is None:
        raise ConfigError(f"{arch} needs timm; pip install 'seal-ray[timm]'")
    timm, name = import_module("timm"), arch.removeprefix(PREFIX)
    if name not in timm.list_models():
        if timm.is_model(name):
            raise ConfigError(
                f"{arch} names pretrained weights, which are never downloaded; write "
                f"{PREFIX}{name.partition('.')[0]}, and where the weights lie as init_from"
            )
        near = nearest_arch(name)
        raise ConfigError(f"timm has no network {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    def make(classes: int, **fields: Any) -> nn.Module:
        given = {name: value for name, value in fields.items() if value is not None}
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **given)
        return network

    import torch

    with torch.device("meta"):
        of_class = inspect.signature(type(make(2)).__init__).parameters.values()
    named = (one for one in of_class if one.kind is not one.VAR_KEYWORD and one.name not in OURS)
    parameters = [inspect.Parameter("classes", inspect.Parameter.POSITIONAL_OR_KEYWORD)] + [
        one.replace(kind=one.KEYWORD_ONLY, default=None, annotation=_type(one.annotation)) for one in named
    ]
    make.__name__ = make.__qualname__ = arch
    make.__doc__ = inspect.getdoc(timm.model_entrypoint(name))
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return make


def nearest_arch(name: str) -> list[str]:
    """The network of timm whose name is most like this one, as `arch` has it; none without timm."""
    if find_spec("timm") is None:
        return []
    names = import_module("timm").list_models()
    return [PREFIX + near for near in difflib.get_close_matches(name, names, n=1)]


def groups(network: nn.Module) -> list[list[str]]:
    """The parameters of a network in groups in depth order; none where it says no coarse ones."""
    given: Any = getattr(network, "group_matcher", None)
    try:
        matcher = given and given(coarse=True)
    except AssertionError:
        matcher = None
    if not matcher:
        return []
    found: dict[int, Sequence[str]] = import_module("timm.models").group_parameters(network, matcher)
    return [list(found[depth]) for depth in sorted(found)]


def _type(annotation: Any) -> Any:
    """What a field may hold: a number, text or a switch where timm says so, else any value of YAML."""
    return annotation | None if annotation in YAML_TYPES else Any
