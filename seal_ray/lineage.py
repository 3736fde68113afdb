"""Which generations of which runs are the same work: keys that depend on all that determines weights.

key(g) = H(key(g-1), all of the recipe that training reads, the phases of g, the learning rate of each of
its epochs, what the method carries). Nothing is special-cased by method: the first generation of plain
training, LLF, SEAL and knowledge evolution has the same phases and so the same key. Two runs with equal
key(g) hold bit-identical weights at the end of generation g, at equal fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from seal_ray.errors import ConfigError
from seal_ray.schedule import Position, first_epochs, learning_rate

if TYPE_CHECKING:
    from seal_ray.recipe import Model, Recipe

SEMANTICS = 1
"""Raised whenever a change of this package changes what a recipe computes."""


def generation_keys(recipe: Recipe, identity: str) -> tuple[str, ...]:
    """The key of each generation, 64 hex digits. identity: that of the data set, never its path."""
    keys = [""]
    common = _common(recipe, identity)
    for generation in range(recipe.budget.generations):
        keys.append(_digest({"before": keys[-1], "common": common, **_generation(recipe, generation)}))
    return tuple(keys[1:])


def run_id(recipe: Recipe, identity: str) -> str:
    """`<method>-s<seed>-<10 hex digits>`: the last generation's key together with the budget."""
    budget = recipe.budget
    last = generation_keys(recipe, identity)[-1]
    digest = _digest({"key": last, "epochs": budget.epochs, "length": budget.length})
    return f"{recipe.method.name}-s{recipe.seed}-{digest[:10]}"


def can_start_after(recipe: Recipe, generation: int) -> bool:
    """Whether the weights at the end of a generation are all that training goes on from.

    Not where the momentum lives on across the border, as in one long schedule.
    """
    budget = recipe.budget
    last = generation + 1 == budget.generations
    return last or recipe.method.phases(generation + 1, budget)[0].fresh


def _common(recipe: Recipe, identity: str) -> dict[str, Any]:
    """What every generation depends on."""
    data = recipe.data
    return {
        "semantics": SEMANTICS,
        "data": [identity, data.per_class, data.label_noise],
        "model": _network(recipe.model),
        "augment": recipe.augment.model_dump(),
        "optimizer": [
            recipe.optimizer.name,
            recipe.optimizer.momentum,
            recipe.optimizer.weight_decay,
            recipe.optimizer.clip_norm,
        ],
        "loss": recipe.loss.model_dump(),
        "batch": [recipe.batch_size, recipe.shards],
        "precision": recipe.precision,
        "seed": recipe.seed,
        "split_at": recipe.method.split_at,
        "carry": recipe.method.carry,
    }


def _network(model: Model) -> dict[str, Any]:
    """The network, and by their digest, never their path, the weights that it begins with if it has any."""
    held = model.model_dump(exclude={"init_from", "init_sha256", "new_head"})
    if model.init_from is None:
        return held
    if model.init_sha256 is None:
        raise ConfigError(
            f"model.init_from: {model.init_from} is not read yet, so it is not known which run this is; give "
            "init_sha256, or the recipe that `seal_ray.weights.pinned` returns"
        )
    return {**held, "weights": [model.init_sha256, model.new_head]}


def _generation(recipe: Recipe, generation: int) -> dict[str, Any]:
    """What one generation adds: its phases as data, and the learning rate of each of its epochs."""
    phases = recipe.method.phases(generation, recipe.budget)
    rates = [
        learning_rate(recipe.optimizer.rates, phase, Position(generation, first + e), recipe.budget)
        for phase, first in zip(phases, first_epochs(phases), strict=True)
        for e in range(phase.epochs)
    ]
    return {"phases": [_plain(p) for p in phases], "rates": rates}


def _plain(value: Any) -> Any:
    """Nested dataclasses as JSON values, each with the name of its type."""
    if is_dataclass(value):
        named = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **named}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _digest(value: Any) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
