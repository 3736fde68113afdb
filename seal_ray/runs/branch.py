"""Start a run after the generations that another run has trained already: none is ever trained twice.

What two runs share is said by their generations' keys (`seal_ray.runs.lineage`). A branched run holds, bit
for bit, what it would have trained itself: checkpoint, moments, metrics. In its metrics the shared epochs
have another `trained_by`; its optimizer is fresh there, as it would be at any generation that can be started
at.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from seal_ray.errors import CheckpointError, SealRayWarning
from seal_ray.phases.schedule import Position, moments_of
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.folder import GENERATIONS, Store, moment_label
from seal_ray.runs.lineage import can_start_after, generation_keys
from seal_ray.storage.paths import AnyPath, listed

if TYPE_CHECKING:
    from seal_ray.recipe import Recipe


@dataclass(frozen=True)
class Branch:
    """What was taken over: generations 0..generation, from the run `source`."""

    source: str
    generation: int


def branch(store: Store, recipe: Recipe, identity: str, moments: Collection[str]) -> Branch | None:
    """Take over the most generations that any run beside `store` has finished, if that is further on.

    identity: the data set's; moments: which the run keeps. A source that is damaged is skipped with a
    warning. None: nothing is there to take over, and the run stands where it stood.
    """
    keys = generation_keys(recipe, identity)
    done = len(store.rows()) // recipe.budget.length
    holders: dict[str, list[Store]] = {}
    for key, run in finished_generations(store.folder.parent, moments):
        if run.run_id != store.run_id:
            holders.setdefault(key, []).append(run)
    for generation in reversed(range(done, recipe.budget.generations)):
        if not can_start_after(recipe, generation):
            continue
        for source in holders.get(keys[generation], ()):
            try:
                _take_over(store, source, recipe, generation, moments)
            except CheckpointError as error:
                warnings.warn(f"not branching from {source.run_id}: {error}", SealRayWarning, stacklevel=2)
            else:
                return Branch(source.run_id, generation)
    return None


def finished_generations(storage: AnyPath, moments: Collection[str]) -> Iterator[tuple[str, Store]]:
    """The key of each generation in `storage` that can be taken over, and a run that has finished it.

    A run that lacks some of `moments` does not count: who branched from it would lack them too.
    """
    for path in listed(storage, f"*/{GENERATIONS}"):
        run = Store(path.parent, path.parent.name)
        known = run.generations()
        if known is None or not set(moments) <= set(known.moments):
            continue
        completed = run.completed_moments()
        for generation, key in enumerate(known.keys):
            if moment_label("relearned", generation) not in completed:
                break
            yield key, run


def _take_over(
    store: Store, source: Store, recipe: Recipe, generation: int, moments: Collection[str]
) -> None:
    """Copy moments and tracked examples, then the state as a checkpoint, which makes it count."""
    end = _renamed(source.moment("relearned", generation), store.run_id)
    for g in range(generation + 1):
        for name in moments_of(recipe.method.phases(g, recipe.budget), g):
            if name in moments:
                store.keep_moment(name, g, _renamed(source.moment(name, g), store.run_id))
        for epoch in range(recipe.budget.length):
            right = source.examples(Position(g, epoch))
            if right is not None:
                store.keep_examples(Position(g, epoch), right)
    store.adopt(replace(end, moment=None))


def _renamed(snapshot: Snapshot, run_id: str) -> Snapshot:
    """The snapshot as the run `run_id` would hold it."""
    return replace(snapshot, run_id=run_id, rows=tuple({**row, "run_id": run_id} for row in snapshot.rows))
