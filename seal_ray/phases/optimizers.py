"""Optimizers by name, as frozen values: SGD, and the classes of torch.optim that a step of ours can use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt

from seal_ray.phases.schedule import Schedule

REFUSED = {
    "lbfgs": "LBFGS computes the loss again inside a step, which a step over shards and workers cannot",
    "muon": "Muon moves matrices only, and networks have convolutions, norms and biases",
    "rprop": "Rprop reads the learning rate once, so that no schedule and no ascent rate would do anything",
    "sparseadam": "SparseAdam needs sparse gradients, which networks for images do not have",
}
"""Classes of torch.optim that cannot be used, and why."""
_SET_BY_US = {"params", "maximize", "foreach", "capturable", "differentiable", "fused"}


@dataclass(frozen=True)
class Optimizer:
    """What every optimizer has: a learning-rate schedule, weight decay, and a bound on gradients.

    weight_decay: of every parameter, norms and biases too, before the multiple of a phase's group; coupled to
    the gradient or not as the optimizer does it. clip_norm: largest gradient norm; null: no clipping.
    """

    name: ClassVar[str]
    kind: ClassVar[type[Any]]

    lr: Annotated[float, Gt(0)] = 0.1
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_share: Annotated[float, Ge(0), Lt(1)] = 0.125
    clip_norm: Annotated[float, Gt(0)] | None = None

    @property
    def rates(self) -> Schedule:
        """The learning rate over one cycle."""
        return Schedule(self.schedule, self.lr, self.warmup_share)

    @property
    def own(self) -> dict[str, Any]:
        """The fields that only this optimizer has: arguments of torch's constructor."""
        shared = {item.name for item in fields(Optimizer)}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in shared}


@dataclass(frozen=True)
class Sgd(Optimizer):
    """SGD with momentum, Nesterov's or not: v <- m v + g; w <- w - lr v (Nesterov: w - lr (g + m v))."""

    name: ClassVar[str] = "sgd"
    kind: ClassVar[type[Any]] = torch.optim.SGD

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False


class _ByName(Mapping[str, type[Optimizer]]):
    """The optimizers by torch's name in small letters, however it is written."""

    def __getitem__(self, name: str) -> type[Optimizer]:
        return Sgd if name.lower() == Sgd.name else _of_torch(_kinds()[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(_kinds())

    def __len__(self) -> int:
        return len(_kinds())


OPTIMIZERS: Mapping[str, type[Optimizer]] = _ByName()
"""The optimizers that recipes may name."""


def torch_optimizer(optimizer: Optimizer, groups: list[Any]) -> torch.optim.Optimizer:
    """Torch's optimizer of parameters or groups of them, at learning rate 0 until one is set.

    ValueError, in torch's words, for fields that are out of range or do not go together.
    """
    made: torch.optim.Optimizer = optimizer.kind(groups, lr=0.0, **optimizer.own)
    return made


@functools.cache
def _kinds() -> dict[str, Any]:
    """The usable classes of torch.optim by name in small letters, the usual ones first."""
    classes = [cls for cls in vars(torch.optim).values() if inspect.isclass(cls)]
    named = {cls.__name__.lower(): cls for cls in classes if issubclass(cls, torch.optim.Optimizer)}
    order = ["sgd", "adamw", *sorted(named.keys() - {"sgd", "adamw", "optimizer"} - REFUSED.keys())]
    return {name: named[name] for name in order}


@functools.cache
def _of_torch(cls: Any) -> type[Optimizer]:
    """The value of a class of torch.optim: its constructor's arguments, with torch's defaults."""
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    hints = inspect.get_annotations(Optimizer, eval_str=True)
    made = [
        (name, hints.get(name) or _type(default), field(default=_plain(default)))
        for name, default in defaults.items()
        if name not in _SET_BY_US
    ]
    namespace = {
        "__module__": __name__,
        "__doc__": f"torch.optim.{cls.__name__}, with torch's defaults.",
        "name": cls.__name__.lower(),
        "kind": cls,
    }
    return make_dataclass(cls.__name__, made, bases=(Optimizer,), namespace=namespace, frozen=True)


def __getattr__(name: str) -> type[Optimizer]:
    """The value of a class of torch.optim, where pickle looks for it."""
    if name.lower() in _kinds() and hasattr(torch.optim, name):
        return _of_torch(getattr(torch.optim, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _type(default: Any) -> Any:
    """What an argument may be, by its default: torch annotates no ranges and allows tensors."""
    if isinstance(default, tuple):
        return GenericAlias(tuple, tuple(float | None if item is None else _type(item) for item in default))
    return bool if isinstance(default, bool) else float


def _plain(default: Any) -> Any:
    return float(default) if isinstance(default, int) and not isinstance(default, bool) else default
