"""Optimizers by name, as frozen values: SGD, and the classes of torch.optim that a step of ours can use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from seal_ray.phases.schedule import Schedule

if TYPE_CHECKING:
    import torch

REFUSED = {
    "lbfgs": "LBFGS computes the loss again inside a step, which a step over shards and workers cannot",
    "muon": "Muon moves matrices only, and networks have convolutions, norms and biases",
    "rprop": "Rprop reads the learning rate once, so that no schedule and no ascent rate would do anything",
    "sparseadam": "SparseAdam needs sparse gradients, which networks for images do not have",
}
"""Classes of torch.optim that cannot be used, and why."""
_ADAM: Mapping[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
TORCH: Mapping[str, Mapping[str, Any]] = {
    "AdamW": {"lr": 1e-3, **_ADAM, "weight_decay": 1e-2, "amsgrad": False},
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
    "Adafactor": {"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0},
    "Adagrad": {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "weight_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
    },
    "Adam": {"lr": 1e-3, **_ADAM, "amsgrad": False, "decoupled_weight_decay": False},
    "Adamax": {"lr": 2e-3, **_ADAM},
    "ASGD": {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0},
    "NAdam": {"lr": 2e-3, **_ADAM, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
    "RAdam": {"lr": 1e-3, **_ADAM, "decoupled_weight_decay": False},
    "RMSprop": {
        "lr": 1e-2,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "centered": False,
    },
}
"""The arguments of the classes of torch.optim, with its defaults, so that a recipe is read without torch."""
_CLASSES = {"sgd": "SGD", **{name.lower(): name for name in TORCH}}


@dataclass(frozen=True)
class Optimizer:
    """What every optimizer has: a learning-rate schedule, weight decay, and a bound on gradients.

    weight_decay: of every parameter, norms and biases too, before the multiple of a phase's group; coupled to
    the gradient or not as the optimizer does it. clip_norm: largest gradient norm; null: no clipping.
    """

    name: ClassVar[str]

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
    def is_checked(self) -> bool:
        """Whether torch takes the fields, which their types alone do not say: it takes its defaults."""
        return self.own == type(self)().own

    @property
    def own(self) -> dict[str, Any]:
        """The fields that only this optimizer has: arguments of torch's constructor."""
        shared = {item.name for item in fields(Optimizer)}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in shared}


@dataclass(frozen=True)
class Sgd(Optimizer):
    """SGD with momentum, Nesterov's or not: v <- m v + g; w <- w - lr v (Nesterov: w - lr (g + m v))."""

    name: ClassVar[str] = "sgd"

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False

    @property
    def is_checked(self) -> bool:
        """Nesterov's needs a momentum."""
        return self.momentum > 0 or not self.nesterov


class _ByName(Mapping[str, type[Optimizer]]):
    """The optimizers by torch's name in small letters, however it is written."""

    def __getitem__(self, name: str) -> type[Optimizer]:
        return Sgd if name.lower() == Sgd.name else _of_torch(_CLASSES[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


OPTIMIZERS: Mapping[str, type[Optimizer]] = _ByName()
"""The optimizers that recipes may name."""


def torch_optimizer(optimizer: Optimizer, groups: list[Any]) -> torch.optim.Optimizer:
    """Torch's optimizer of parameters or groups of them, at learning rate 0 until one is set.

    ValueError, in torch's words, for fields that are out of range or do not go together.
    """
    import torch

    kind = getattr(torch.optim, _CLASSES[optimizer.name])
    made: torch.optim.Optimizer = kind(groups, lr=0.0, **optimizer.own)
    return made


@functools.cache
def _of_torch(name: str) -> type[Optimizer]:
    """The value of a class of torch.optim: its constructor's arguments, with torch's defaults."""
    hints = inspect.get_annotations(Optimizer, eval_str=True)
    made = [
        (argument, hints.get(argument) or _type(default), field(default=default))
        for argument, default in TORCH[name].items()
    ]
    namespace = {
        "__module__": __name__,
        "__doc__": f"torch.optim.{name}, with torch's defaults.",
        "name": name.lower(),
    }
    return make_dataclass(name, made, bases=(Optimizer,), namespace=namespace, frozen=True)


def __getattr__(name: str) -> type[Optimizer]:
    """The value of a class of torch.optim, where pickle looks for it."""
    if name in TORCH:
        return _of_torch(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _type(default: Any) -> Any:
    """What an argument may be, by its default: torch annotates no ranges and allows tensors."""
    if isinstance(default, tuple):
        return GenericAlias(tuple, tuple(float | None if item is None else _type(item) for item in default))
    return bool if isinstance(default, bool) else float
