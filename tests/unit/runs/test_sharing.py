"""The generation tree: what is shared, who waits for whom, how much is trained."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from seal_ray.runs.lineage import can_start_after, generation_keys, run_id
from seal_ray.runs.sharing import Branching, RunKeys, branchings, epochs_to_train, may_start, shapes
from seal_ray.sweeps.file import load_sweep


def work(name: str, keys: str, startable: bool = True) -> RunKeys:
    return RunKeys(name, tuple(keys), (startable,) * (len(keys) - 1) + (True,), length=2)


NORMAL, LLF, SEAL = work("normal", "abc"), work("llf", "ade"), work("seal", "afg")


def next_to_start(waiting: list[RunKeys], training: list[tuple[str, ...]], done: set[str]) -> RunKeys | None:
    """The first that may start beside runs of these keys."""
    return next(iter(may_start(waiting, {key for keys in training for key in keys} - done, done)), None)


def sweep_works(path: str = "tests/data/tree.yaml") -> list[RunKeys]:
    works = []
    for run in load_sweep(path).runs:
        recipe = run.job.recipe
        keys = generation_keys(recipe, "digits")
        startable = tuple(can_start_after(recipe, g) for g in range(len(keys)))
        works.append(RunKeys(run_id(recipe, "digits"), keys, startable, recipe.budget.length))
    return works


def test_of_864_epochs_of_the_tree_648_are_trained() -> None:
    works = sweep_works()
    assert len({work.run_id for work in works}) == len(works) == 36
    assert sum(len(work.keys) * work.length for work in works) == 864
    # 4 methods share the first generation, for each length and seed: 3 x 3 x (4 + 8 + 12) epochs less.
    assert sum(epochs_to_train(works)) == 864 - 3 * 3 * (4 + 8 + 12) == 648
    assert sum(epochs_to_train(list(reversed(works)))) == 648


def test_what_is_there_is_not_trained_again() -> None:
    assert epochs_to_train([NORMAL, LLF, SEAL]) == [6, 4, 4]
    assert epochs_to_train([NORMAL, LLF, SEAL], done={"a", "b", "f"}) == [2, 4, 2]
    assert epochs_to_train([NORMAL, work("longer", "abcx")]) == [6, 2]
    assert epochs_to_train([work("longer", "abcx"), NORMAL]) == [8, 0]


def test_momentum_that_crosses_borders_keeps_a_run_from_starting_inside() -> None:
    long = work("long", "abc", startable=False)
    assert long.start({"a", "b"}) == 0
    assert long.start({"a", "b", "c"}) == 3
    assert not long.waits_for({"a"}, set())
    assert epochs_to_train([NORMAL, replace(long, keys=("a", "b", "x"))]) == [6, 6]


def test_runs_wait_for_a_generation_that_is_being_trained_and_start_when_it_is_there() -> None:
    waiting = [NORMAL, LLF, SEAL]
    first = next_to_start(waiting, [], set())
    assert first == NORMAL
    waiting.remove(first)
    assert next_to_start(waiting, [NORMAL.keys], set()) is None
    assert next_to_start(waiting, [NORMAL.keys], {"a"}) == LLF  # while normal goes on
    assert next_to_start([SEAL], [NORMAL.keys, LLF.keys], {"a"}) == SEAL
    assert next_to_start(waiting, [], set()) == LLF  # normal failed: another one trains it


def test_the_run_that_most_wait_for_goes_first() -> None:
    alone = work("alone", "xyz")
    assert next_to_start([alone, LLF, SEAL], [], set()) == LLF
    assert next_to_start([alone, LLF, SEAL], [LLF.keys], set()) == alone
    assert next_to_start([], [NORMAL.keys], set()) is None


def test_a_run_waits_for_the_deepest_generation_it_shares() -> None:
    longer = work("longer", "abcx")
    assert longer.waits_for({"b", "c"}, {"a"})
    assert next_to_start([longer], [NORMAL.keys], {"a", "b"}) is None
    assert next_to_start([longer], [NORMAL.keys], {"a", "b", "c"}) == longer


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=7), st.randoms())
def test_whatever_the_order_each_generation_is_trained_once_and_no_run_waits_for_ever(names, random) -> None:
    """Simulated: several at once, ending in any order; a key names its whole past, as real ones do."""
    works = [
        RunKeys(f"{i}-{name}", tuple(itertools.accumulate(name)), (True,) * len(name), 1)
        for i, name in enumerate(names)
    ]
    waiting, training, done, trained = list(works), {}, set(), []
    while waiting or training:
        work = next_to_start(waiting, [w.keys for w in training], done) if len(training) < 3 else None
        if work:
            waiting.remove(work)
            training[work] = work.start(done)
            continue
        assert training, "every run waits and none is trained"
        work = random.choice(list(training))
        if training[work] < len(work.keys):
            trained.append(work.keys[training[work]])
            done.add(trained[-1])
            training[work] += 1
        if training[work] == len(work.keys):
            del training[work]
    assert len(trained) == len(set(trained)) == len({key for work in works for key in work.keys})
    assert len(trained) == sum(epochs_to_train(works))


def test_the_tree_branches_where_runs_part() -> None:
    longer = work("longer", "abcx")
    (tree,) = branchings([NORMAL, LLF, longer])
    assert (tree.first, tree.last, tree.runs) == (0, 0, ("normal", "llf", "longer"))
    restart, llf = tree.branches
    assert restart == Branching(1, 2, ("normal", "longer"), (Branching(3, 3, ("longer",), ()),))
    assert llf == Branching(1, 2, ("llf",), ())
    assert len(branchings([NORMAL, work("other", "xyz")])) == 2


def test_trees_that_differ_in_their_seed_only_are_told_once() -> None:
    runs = {f"{name}-{seed}": (name, seed) for seed in (0, 1) for name in ("normal", "llf")}
    works = [work(run, f"{seed}{name}{seed}") for run, (name, seed) in runs.items()]
    works = [replace(w, keys=(w.keys[0], w.keys[1] + w.keys[0])) for w in works]
    found = list(shapes(branchings(works), runs))
    assert [seeds for _, seeds in found] == [[0, 1]]
    assert len(found[0][0].branches) == 2
