"""Which generations of which runs are the same work: keys that depend on all that determines weights.

key(g) = H(key(g-1), all of the recipe that training reads, the phases of g, the learning rate of each of
its epochs, what the method carries). Nothing is special-cased by method: the first generation of plain
training, LLF, SEAL and knowledge evolution has the same phases and so the same key. Two runs with equal
key(g) hold bit-identical weights at the end of generation g, at equal fingerprints.

A field enters only where it differs from its default, so a new field that is off by default changes no key.
(A default that changes is a change of what a recipe computes, and raises `SEMANTICS`.)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import linecache
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_ray.errors import ConfigError
from seal_ray.phases.averaging import Averaging
from seal_ray.phases.losses import SmoothedCrossEntropy
from seal_ray.phases.optimizers import Sgd
from seal_ray.phases.schedule import Position, first_epochs, learning_rates
from seal_ray.plugins import source_digest

if TYPE_CHECKING:
    from seal_ray.phases.optimizers import Optimizer
    from seal_ray.recipe import Model, Recipe

SEMANTICS = 2
"""Raised whenever a change of this package changes what a recipe computes."""
RATES = {"lr", "schedule", "warmup_share"}
"""Fields of an optimizer that enter as the learning rate of each epoch."""


def generation_keys(recipe: Recipe, identity: str) -> tuple[str, ...]:
    """The key of each generation, 64 hex digits. identity: that of the data set, never its path."""
    keys = [""]
    common = _json(_common(recipe, identity))
    for generation in range(recipe.budget.generations):
        phases, rates = _generation(recipe, generation)
        # Only the end of a run is tested: its rows are others than those of the same generation before more.
        tested = bool(recipe.data.holdout) and generation + 1 == recipe.budget.generations
        # The canonical JSON of a mapping of the four or five, with what is common written once.
        text = (
            f'{{"before": "{keys[-1]}", "common": {common}, "phases": {phases}, "rates": {_listed(rates)}'
            + (', "tested": true}' if tested else "}")
        )
        keys.append(_sha256(text))
    return tuple(keys[1:])


def run_id(recipe: Recipe, identity: str) -> str:
    """The id of the run of a recipe on data of this identity, see `run_id_of`."""
    return run_id_of(recipe, generation_keys(recipe, identity))


def run_id_of(recipe: Recipe, keys: Sequence[str]) -> str:
    """`<method>-s<seed>-<10 hex digits>`: the last of the generations' keys together with the budget."""
    budget = recipe.budget
    digest = _sha256(_json({"key": keys[-1], "epochs": budget.epochs, "length": budget.length}))
    return f"{recipe.method.name}-s{recipe.seed}-{digest[:10]}"


def can_start_after(recipe: Recipe, generation: int) -> bool:
    """Whether the weights at the end of a generation are all that training goes on from.

    Not where the momentum lives on across the border, as in one long schedule.
    """
    budget = recipe.budget
    last = generation + 1 == budget.generations
    return last or recipe.method.phases(generation + 1, budget)[0].fresh


def _common(recipe: Recipe, identity: str) -> dict[str, Any]:
    """What every generation depends on: the recipe, less what enters by itself or as phases and rates."""
    apart: dict[str, Any] = {
        "data": {"path"},
        "model": {"init_from", "init_sha256", "new_head"},
        "optimizer": True,
        "loss": True,
        "averaging": True,
        "augment": {"then"},
        "method": True,
        "budget": True,
    }
    held = recipe.model_dump(exclude=apart, exclude_defaults=True)
    held["optimizer"] = _optimizer(recipe.optimizer)
    told = _plain(recipe.loss)
    held["loss"] = told["fields"] if isinstance(recipe.loss, SmoothedCrossEntropy) else told
    if recipe.averaging != Averaging():
        held["averaging"] = _plain(recipe.averaging)
    if recipe.augment.then:
        held["augment"] = {**held.get("augment", {}), "then": [_plain(one) for one in recipe.augment.then]}
    code = _code(type(recipe.model).factory)
    return {
        **({"network": code} if code else {}),
        "semantics": SEMANTICS,
        "data": identity,
        "weights": _initial_weights(recipe.model),
        "recipe": {name: value for name, value in held.items() if value != {}},
        "split_at": recipe.method.split_at,
        "carry": recipe.method.carry,
    }


def _initial_weights(model: Model) -> tuple[str, bool] | None:
    """The weights that training begins with if they come from elsewhere: their digest, never their path."""
    if model.init_from is None:
        return None
    if model.init_sha256 is None:
        raise ConfigError(
            f"model.init_from: {model.init_from} is not read yet, so it is not known which run this is; give "
            "init_sha256, or the recipe that `seal_ray.runs.weights.pinned` returns"
        )
    return model.init_sha256, model.new_head


def _optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer but for its rates, which enter by themselves.

    Of SGD what differs from its defaults; of others also what does not, since the defaults are torch's.
    """
    ours = isinstance(optimizer, Sgd)
    fixed = {"weight_decay", *optimizer.own} if not ours else set()
    told = {
        field.name: getattr(optimizer, field.name)
        for field in fields(optimizer)
        if field.name in fixed or getattr(optimizer, field.name) != field.default
    }
    named = {} if ours else {"name": optimizer.name}
    return named | {name: value for name, value in told.items() if name not in RATES}


def _generation(recipe: Recipe, generation: int) -> tuple[str, tuple[float, ...]]:
    """What one generation adds: its phases as JSON, and the learning rate of each of its epochs."""
    schedule, budget = recipe.optimizer.rates, recipe.budget
    phases = recipe.method.phases(generation, budget)
    rates = (
        learning_rates(schedule, phase, Position(generation, first), budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True)
    )
    return _json([_plain(p) for p in phases]), tuple(itertools.chain.from_iterable(rates))


def _plain(value: Any) -> Any:
    """What a phase holds as JSON values. ConfigError for what could not be told from something else."""
    if is_dataclass(value) and not isinstance(value, type):
        held = [(name, default, _plain(getattr(value, name))) for name, default in _defaults(type(value))]
        told = {name: plain for name, default, plain in held if plain != default}
        return {"type": _kind(type(value)), "fields": told}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"method: a phase holds {value!r}, of which it cannot be told whether two are the same; use numbers, "
        "text, tuples and frozen dataclasses"
    )


@functools.cache
def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass, each with its default."""
    return tuple((field.name, _default(field)) for field in fields(cls))


def _default(field: Field[Any]) -> Any:
    """The default as `_plain` has it; MISSING, which equals nothing else, where there is none."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return value if value is MISSING else _plain(value)


@functools.cache
def _kind(cls: type) -> Any:
    """The name of a class; of one from outside this package also what it is, since names are not unique.

    That is the digest of the source of each of its classes that are from outside: of the file that defines
    it, or of its cell in a notebook. What these import from elsewhere is not seen.
    """
    code = _code(cls)
    return [cls.__qualname__, *code] if code else cls.__qualname__


def _code(of: Any) -> list[str]:
    """The digests of the source of a function, or of each class that a class is made of, from outside."""
    parts = of.__mro__ if isinstance(of, type) else [of]
    return [_source_sha256(part) for part in parts if not _is_known(part)]


def _is_known(cls: Any) -> bool:
    """Whether a class or function is of this package or of Python, whatever a user's modules are called.

    torch's Module counts as known.
    """
    module = cls.__module__.partition(".")[0]
    if module == __name__.partition(".")[0]:
        return True
    from torch import nn

    if cls is nn.Module:
        return True
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    of_python = file is None or Path(file).is_relative_to(sysconfig.get_path("stdlib"))
    return module in sys.stdlib_module_names and of_python


@functools.cache
def _source_sha256(cls: Any) -> str:
    """Digest of the source of a class or function, as it was when first asked."""
    from torch import nn

    kind = "model" if inspect.isfunction(cls) or issubclass(cls, nn.Module) else "method"
    if "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{kind}: {cls.__qualname__} is defined inside a function, on whose values it may depend, so its "
            "runs could not be told apart; define it at the top of a file"
        )
    if (digest := source_digest(cls)) is not None:
        return digest
    held = [cls] if inspect.isfunction(cls) else vars(cls).values()
    parts = (getattr(one, "__func__", getattr(one, "fget", one)) for one in held)
    files = {part.__code__.co_filename for part in parts if inspect.isfunction(part)} - {dataclasses.__file__}
    cells = [text for file in sorted(files) if (text := "".join(linecache.getlines(file)))]
    if not cells:
        raise ConfigError(
            f"{kind}: the source of {cls.__qualname__} cannot be read, so its runs could not be told "
            "from those of another class of that name; define it in a file"
        )
    return hashlib.sha256("".join(cells).encode()).hexdigest()


def _json(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True)


@functools.lru_cache(maxsize=64)
def _listed(rates: tuple[float, ...]) -> str:
    """Rates as JSON, which takes longest of all; most generations have the same."""
    return _json(rates)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
