"""What runs share: which generations are the same work, and starting after those that another has trained.

A run is a list of generation keys (`seal_ray.runs.lineage`); equal keys are the same work, and none is ever
trained twice. Runs that begin alike share the beginning; the tree branches where the first of them forgets
something. A branched run holds, bit for bit, what it would have trained itself: checkpoint, moments, metrics.
In its metrics the shared epochs have another `trained_by`; its optimizer is fresh there, as it would be at
any generation that can be started at.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seal_ray.errors import CheckpointError, SealRayWarning
from seal_ray.phases.schedule import Position
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.folder import Generations, Store, moment_label
from seal_ray.runs.lineage import can_start_after, generation_keys
from seal_ray.storage.paths import AnyPath, asked, folders_in

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
        """The first generation that is left to train where the generations `done` are there to take over.

        A key holds those before it, and so does `done`.
        """
        if self.keys[0] not in done:
            return 0
        for generation in reversed(range(len(self.keys))):
            if self.startable[generation] and self.keys[generation] in done:
                return generation + 1
        return 0

    def waits_for(self, busy: Container[str], done: Container[str]) -> bool:
        """Whether a generation that is being trained would spare this run some of its own."""
        left = range(self.start(done), len(self.keys))
        if not left or self.keys[left.start] not in busy:
            return False  # who trains a later one would train this one first
        return any(self.startable[g] and self.keys[g] in busy for g in left)


def run_keys(run_id: str, keys: tuple[str, ...], recipe: Recipe) -> RunKeys:
    """A run as the generation tree sees it."""
    startable = tuple(can_start_after(recipe, g) for g in range(recipe.budget.generations))
    return RunKeys(run_id, keys, startable, recipe.budget.length)


def may_start(waiting: Sequence[RunKeys], busy: Container[str], done: Container[str]) -> list[RunKeys]:
    """The runs that would train nothing that is being trained, in the order in which to start them.

    First those of which nothing is left to train, then those whose first generation most others wait for,
    then the first listed. busy: keys of generations that are being trained.
    """
    wanted = Counter(itertools.chain.from_iterable(run.keys for run in waiting))

    def demand(run: RunKeys) -> int:
        return next((wanted[key] for key in run.keys[run.start(done) :]), len(waiting) + 1)

    return sorted((run for run in waiting if not run.waits_for(busy, done)), key=demand, reverse=True)


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


def branch(
    store: Store,
    recipe: Recipe,
    identity: str,
    moments: Collection[str],
    sources: Mapping[str, Sequence[Store]] | None = None,
) -> Branch | None:
    """Take over the most generations that any run beside `store` has finished, if that is further on.

    identity: the data set's; moments: which the run keeps; sources: see `finished_generations`, which is
    asked if it is None. A source that is damaged is skipped with a warning. None: nothing is there to take
    over, and the run stands where it stood.
    """
    keys = generation_keys(recipe, identity)
    done = len(store.rows()) // recipe.budget.length
    # Killed while it took over, it holds moments that it has not adopted, and is named as who has them.
    if sources is None or any(
        store.run_id == one.run_id for key in keys[done:] for one in sources.get(key, ())
    ):
        sources = finished_generations(store.folder.parent, moments_needed(recipe, keys, moments))
    for generation in reversed(range(done, recipe.budget.generations)):
        if not can_start_after(recipe, generation):
            continue
        for source in sources.get(keys[generation], ()):
            if source.run_id == store.run_id:
                continue
            try:
                _take_over(store, source, recipe, generation, moments)
            except CheckpointError as error:
                warnings.warn(f"not branching from {source.run_id}: {error}", SealRayWarning, stacklevel=2)
            else:
                return Branch(source.run_id, generation)
    return None


def moments_needed(
    recipe: Recipe, keys: Sequence[str], moments: Collection[str]
) -> dict[str, frozenset[str]]:
    """Which of the kept `moments` a run has of each generation, by its key, and of those before it.

    Who branched from a run that has not kept them would lack them. A run without an ascent, an average or
    forgetting needs no moments of these, and neither does the first generation of one that has them later.
    """
    needed, had = dict[str, frozenset[str]](), frozenset[str]()
    for generation, key in enumerate(keys):
        had = had.union(recipe.moments(generation)).intersection(moments)
        needed[key] = had
    return needed


class RunIndex:
    """Which generations the runs in a storage consist of, and which of these can be taken over.

    Remembered from one look to the next, since a storage holds thousands of runs: `refresh` lists them and
    reads what the new ones consist of, `look` reads how far one of them is. A run is a source of a generation
    if it keeps the moments that `need` was told of.
    """

    def __init__(self, storage: AnyPath) -> None:
        self._storage = storage
        self._needed: dict[str, frozenset[str]] = {}
        self._recorded: dict[str, Generations] = {}
        self._holders: dict[str, set[str]] = {}
        self._finished: dict[str, Sequence[str]] = {}
        self._sources: dict[str, set[str]] = {}
        self.folders: set[str] = set()

    @property
    def done(self) -> Container[str]:
        """The keys of the generations that can be taken over, as far as it was looked."""
        return self._sources.keys()

    def need(self, needed: Mapping[str, frozenset[str]]) -> None:
        """The moments that are needed of generations, by key, see `moments_needed`; of others none are."""
        for run_id in self.holders([key for key in needed if key not in self._needed]):
            self._note(self._sources, run_id, self._finished.pop(run_id, ()), ())
        self._needed |= needed

    def refresh(self) -> None:
        """Learn which folders there are, and what the runs consist of that have recorded it since."""
        self.folders = folders_in(self._storage)
        for run_id in self._recorded.keys() - self.folders:
            self._learn(run_id, None)
        new = sorted(self.folders - self._recorded.keys())
        for run_id, known in zip(new, asked(self._read, new, self._storage), strict=True):
            self._learn(run_id, known)

    def look(self, run_ids: Collection[str]) -> None:
        """Learn how far runs are."""
        run_ids = sorted(run_ids)
        for run_id, (known, finished) in zip(
            run_ids, asked(self._progress, run_ids, self._storage), strict=True
        ):
            self._learn(run_id, known)
            self._note(self._sources, run_id, self._finished.get(run_id, ()), finished)
            self._finished[run_id] = finished

    def keys(self, run_id: str) -> Sequence[str]:
        """Of the generations that a run consists of; none where it has not recorded them."""
        return self._recorded[run_id].keys if run_id in self._recorded else ()

    def holders(self, keys: Sequence[str]) -> set[str]:
        """The runs that consist, among others, of some of these generations."""
        return set().union(*(self._holders.get(key, ()) for key in keys))

    def source(self, keys: Sequence[str]) -> set[str]:
        """A run that has finished some of these generations, as far as it was looked; if there is one."""
        found = (run_id for key in keys for run_id in self._sources.get(key, ()))
        return set(itertools.islice(found, 1))

    def sources(self, keys: Sequence[str]) -> dict[str, list[Store]]:
        """The runs that have finished each of these generations, by its key, as far as it was looked."""
        found = {key: sorted(self._sources.get(key, ())) for key in keys}
        return {key: [self._store(run) for run in runs] for key, runs in found.items() if runs}

    def _store(self, run_id: str) -> Store:
        return Store(self._storage / run_id, run_id)

    def _read(self, run_id: str) -> Generations | None:
        return self._store(run_id).generations()

    def _progress(self, run_id: str) -> tuple[Generations | None, Sequence[str]]:
        """What a run consists of, and the keys of what can be taken over of it."""
        store = self._store(run_id)
        known = store.generations()
        if known is None:
            return known, ()
        completed = store.completed_moments()
        finished = 0
        for generation, key in enumerate(known.keys):
            lacks = self._needed.get(key, frozenset()).difference(known.moments)
            if lacks or moment_label("relearned", generation) not in completed:
                break
            finished += 1
        return known, known.keys[:finished]

    def _learn(self, run_id: str, known: Generations | None) -> None:
        self._note(self._holders, run_id, self.keys(run_id), known.keys if known else ())
        if known:
            self._recorded[run_id] = known
        else:
            self._recorded.pop(run_id, None)
            self._note(self._sources, run_id, self._finished.pop(run_id, ()), ())

    @staticmethod
    def _note(runs: dict[str, set[str]], run_id: str, before: Sequence[str], now: Sequence[str]) -> None:
        """Let a run be there of the keys that it has now, and no more of those it had before."""
        for key in before:
            runs[key].discard(run_id)
            if not runs[key]:
                del runs[key]
        for key in now:
            runs.setdefault(key, set()).add(run_id)


def finished_generations(storage: AnyPath, needed: Mapping[str, frozenset[str]]) -> dict[str, list[Store]]:
    """The generations of these keys that can be taken over, each with the runs in `storage` that have
    finished it and keep the moments that are needed of it, see `moments_needed`.
    """
    index = RunIndex(storage)
    index.need(needed)
    index.refresh()
    index.look(index.holders([*needed]))
    return index.sources([*needed])


def _take_over(
    store: Store, source: Store, recipe: Recipe, generation: int, moments: Collection[str]
) -> None:
    """Copy moments and tracked examples, then the state as a checkpoint, which makes it count."""
    end = _renamed(source.moment("relearned", generation), store.run_id)
    for g in range(generation + 1):
        for name in recipe.moments(g):
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
