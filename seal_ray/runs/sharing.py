"""What runs share: which generations are the same work, and starting after those that another has trained.

A run is a list of generation keys (`seal_ray.runs.lineage`); equal keys are the same work, and none is ever
trained twice. Runs that begin alike share the beginning; the tree branches where the first of them forgets
something. A branched run holds, bit for bit, what it would have trained itself: checkpoint, moments, metrics.
In its metrics the shared epochs have another `trained_by`; its optimizer is fresh there, as it would be at
any generation that can be started at.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seal_ray.errors import CheckpointError, SealRayWarning
from seal_ray.phases.schedule import Position, moments_of
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.folder import GENERATIONS, Generations, Store, moment_label
from seal_ray.runs.lineage import can_start_after, generation_keys
from seal_ray.storage.paths import AnyPath, listed

if TYPE_CHECKING:
    from seal_ray.recipe import Recipe


@dataclass(frozen=True)
class RunKeys:
    """What a run consists of.

    keys: of each generation; startable: after which generations weights are all that training goes on
    from; length: epochs in a generation.
    """

    run_id: str
    keys: tuple[str, ...]
    startable: tuple[bool, ...]
    length: int

    def start(self, done: Container[str]) -> int:
        """The first generation that is left to train where the generations `done` are there to take over."""
        for generation in reversed(range(len(self.keys))):
            if self.startable[generation] and self.keys[generation] in done:
                return generation + 1
        return 0

    def waits_for(self, busy: Container[str], done: Container[str]) -> bool:
        """Whether a generation that is being trained would spare this run some of its own."""
        left = range(self.start(done), len(self.keys))
        return any(self.startable[g] and self.keys[g] in busy for g in left)


def run_keys(run_id: str, keys: tuple[str, ...], recipe: Recipe) -> RunKeys:
    """A run as the generation tree sees it."""
    startable = tuple(can_start_after(recipe, g) for g in range(recipe.budget.generations))
    return RunKeys(run_id, keys, startable, recipe.budget.length)


def next_to_start(
    waiting: Sequence[RunKeys], training: Sequence[Sequence[str]], done: Container[str]
) -> RunKeys | None:
    """The run to start next: the one whose first generation most others wait for, then the first listed.

    training: the keys of each run that is being trained. None when every waiting run would train what is
    being trained already.
    """
    busy = {key for keys in training for key in keys if key not in done}
    free = [run for run in waiting if not run.waits_for(busy, done)]
    firsts = [slice(run.start(done), run.start(done) + 1) for run in free]
    demand = [
        sum(run.keys[first] == other.keys[first] for other in waiting)
        for run, first in zip(free, firsts, strict=True)
    ]
    return free[demand.index(max(demand))] if free else None


def epochs_to_train(runs: Sequence[RunKeys], done: Container[str] = ()) -> list[int]:
    """Epochs that each run trains itself when each in turn takes over what there is, `done` to begin with."""
    there = {key for run in runs for key in run.keys if key in done}
    epochs = []
    for run in runs:
        epochs.append((len(run.keys) - run.start(there)) * run.length)
        there.update(run.keys)
    return epochs


@dataclass(frozen=True)
class Branching:
    """A stretch of generations that the same runs share, and how it goes on.

    first, last: generations; runs: in the order of the sweep; branches: empty where the runs end.
    """

    first: int
    last: int
    runs: tuple[str, ...]
    branches: tuple[Branching, ...]


def branchings(runs: Sequence[RunKeys], generation: int = 0) -> tuple[Branching, ...]:
    """The tree of `runs` from `generation` on, in which they agree up to there."""
    found = []
    for group in _grouped(runs, generation):
        last = generation  # of the longest stretch through which all of the group go together
        while [len(alike) for alike in _grouped(group, last + 1)] == [len(group)]:
            last += 1
        named = tuple(run.run_id for run in group)
        found.append(Branching(generation, last, named, branchings(group, last + 1)))
    return tuple(found)


def _grouped(runs: Sequence[RunKeys], generation: int) -> list[list[RunKeys]]:
    """Those that have the generation, by what it is."""
    groups: dict[str, list[RunKeys]] = {}
    for run in runs:
        for key in run.keys[generation : generation + 1]:
            groups.setdefault(key, []).append(run)
    return list(groups.values())


def shapes(
    trees: Sequence[Branching], names: dict[str, tuple[str, int]]
) -> Iterator[tuple[Branching, list[int]]]:
    """Trees that differ in the seed only, once each, with their seeds. names: each run's (setting, seed)."""

    def shape(tree: Branching) -> tuple[Any, ...]:
        settings = tuple(names[run][0] for run in tree.runs)
        return tree.first, tree.last, settings, tuple(map(shape, tree.branches))

    alike: dict[tuple[Any, ...], list[Branching]] = {}
    for tree in trees:
        alike.setdefault(shape(tree), []).append(tree)
    for same in alike.values():
        yield same[0], [names[tree.runs[0]][1] for tree in same]


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


def recorded(storage: AnyPath) -> Iterator[tuple[Store, Generations]]:
    """Each run in `storage` that has recorded its generations, with these."""
    for path in listed(storage, f"*/{GENERATIONS}"):
        run = Store(path.parent, path.parent.name)
        if known := run.generations():
            yield run, known


def finished_generations(storage: AnyPath, moments: Collection[str]) -> Iterator[tuple[str, Store]]:
    """The key of each generation in `storage` that can be taken over, and a run that has finished it.

    A run that lacks some of `moments` does not count: who branched from it would lack them too.
    """
    for run, known in recorded(storage):
        if not set(moments) <= set(known.moments):
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
