"""The generation tree of a sweep: which runs share which generations, and what is therefore trained once.

Pure. A run is a list of generation keys (`seal_ray.runs.lineage`); equal keys are the same work. Runs that
begin alike share the beginning; the tree branches where the first of them forgets something.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seal_ray.runs.lineage import can_start_after

if TYPE_CHECKING:
    from seal_ray.recipe import Recipe


@dataclass(frozen=True)
class Work:
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


def work_of(run_id: str, keys: tuple[str, ...], recipe: Recipe) -> Work:
    """A run as the generation tree sees it."""
    startable = tuple(can_start_after(recipe, g) for g in range(recipe.budget.generations))
    return Work(run_id, keys, startable, recipe.budget.length)


def next_to_start(
    waiting: Sequence[Work], training: Sequence[Sequence[str]], done: Container[str]
) -> Work | None:
    """The run to start next: the one whose first generation most others wait for, then the first listed.

    training: the keys of each run that is being trained. None when every waiting run would train what is
    being trained already.
    """
    busy = {key for keys in training for key in keys if key not in done}
    free = [work for work in waiting if not work.waits_for(busy, done)]
    demand = [sum(_shares(work, other, done) for other in waiting) for work in free]
    return free[demand.index(max(demand))] if free else None


def _shares(work: Work, other: Work, done: Container[str]) -> bool:
    """Whether `other` needs the first generation that `work` would train."""
    start = work.start(done)
    return work.keys[start : start + 1] == other.keys[start : start + 1]


def epochs_to_train(works: Sequence[Work], done: Container[str] = ()) -> list[int]:
    """Epochs that each run trains itself when each in turn takes over what there is, `done` to begin with."""
    there = {key for work in works for key in work.keys if key in done}
    epochs = []
    for work in works:
        epochs.append((len(work.keys) - work.start(there)) * work.length)
        there.update(work.keys)
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


def branchings(works: Sequence[Work], generation: int = 0) -> tuple[Branching, ...]:
    """The tree of `works` from `generation` on, in which they agree up to there."""
    return tuple(_stretch(group, generation) for group in _grouped(works, generation))


def _stretch(works: Sequence[Work], first: int) -> Branching:
    """The longest stretch from `first` on through which all of `works` go together."""
    last = first
    while len(_grouped(works, last + 1)) == 1 and len(_reaching(works, last + 1)) == len(works):
        last += 1
    runs = tuple(work.run_id for work in works)
    return Branching(first, last, runs, branchings(_reaching(works, last + 1), last + 1))


def _reaching(works: Sequence[Work], generation: int) -> list[Work]:
    return [work for work in works if len(work.keys) > generation]


def _grouped(works: Sequence[Work], generation: int) -> list[list[Work]]:
    """Those that have the generation, by what it is."""
    groups: dict[str, list[Work]] = {}
    for work in _reaching(works, generation):
        groups.setdefault(work.keys[generation], []).append(work)
    return list(groups.values())


def shapes(
    trees: Sequence[Branching], names: dict[str, tuple[str, int]]
) -> Iterator[tuple[Branching, list[int]]]:
    """Trees that differ in the seed only, once each, with their seeds. names: each run's (setting, seed)."""
    seeds: dict[str, list[int]] = {}
    first: dict[str, Branching] = {}
    for tree in trees:
        shape = repr(_named(tree, {run: setting for run, (setting, _) in names.items()}))
        first.setdefault(shape, tree)
        seeds.setdefault(shape, []).append(names[tree.runs[0]][1])
    for shape, tree in first.items():
        yield tree, seeds[shape]


def _named(tree: Branching, settings: dict[str, str]) -> Branching:
    runs = tuple(settings[run] for run in tree.runs)
    return Branching(tree.first, tree.last, runs, tuple(_named(b, settings) for b in tree.branches))
