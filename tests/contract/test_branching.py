"""A run that starts after generations which another run has trained equals the same run trained alone."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seal_ray.errors import SealRayWarning
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Recipe
from seal_ray.runs.checkpoint import Snapshot
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import generation_keys, run_id
from seal_ray.runs.sharing import Branch, branch
from seal_ray.training.loop import fit
from tests.runs import EVERYTHING, case_id, keeping, same_state, tiny_images, tiny_recipe, without_speeds

pytestmark = pytest.mark.usefixtures("onednn")
SEAL = {"name": "seal", "ascent_rate": 0.3}
RISING = {"name": "seal", "ascent_rate": {"rise": 0.5, "start": 0.1}}
SHORT = {"epochs": 8, "generation_length": 4}
BRANCHES: list[dict[str, Any]] = [SEAL, RISING, {**SEAL, "forget": "llf"}, {"name": "llf"}, {"name": "ke"}]
IMAGES = tiny_images()


def store_of(recipe: Recipe, storage: Path) -> Store:
    identity = run_id(recipe, IMAGES.identity)
    return Store(storage / identity, identity)


def train_in(
    storage: Path,
    recipe: Recipe,
    *,
    share: bool = True,
    epochs: int = 99,
    moments: tuple[str, ...] = EVERYTHING,
    threads: int = 1,
) -> Branch | None:
    """Train a run of `storage`, for at most `epochs` epochs; returns what it took over before."""
    store = store_of(recipe, storage)
    store.record_generations(generation_keys(recipe, IMAGES.identity), moments)
    store.mend()  # as a launch does
    taken = branch(store, recipe, IMAGES.identity, moments) if share else None
    placement = keeping(moments, threads=threads)
    for trained, _ in enumerate(fit(recipe, IMAGES, store=store, placement=placement), start=1):
        if trained == epochs:
            break
    return taken


Storage = Callable[..., Path]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The storage in which a run was trained by itself, for at most so many epochs; not to be changed."""

    @functools.cache
    def trained(recipe: Recipe, epochs: int = 99) -> Path:
        storage = tmp_path_factory.mktemp("alone")
        train_in(storage, recipe, share=False, epochs=epochs)
        return storage

    return trained


def copied(storage: Path, to: Path) -> None:
    """Put the runs of a storage into another."""
    shutil.copytree(storage, to, dirs_exist_ok=True)


def same_run(recipe: Recipe, branched: Path, alone: Path, *, optimizer: bool = True) -> None:
    """Assert that a finished run is the same in both storages, but for who trained an epoch."""
    ours, theirs = store_of(recipe, branched), store_of(recipe, alone)
    assert without_speeds(ours.rows(), "trained_by") == without_speeds(theirs.rows(), "trained_by")
    end = Position(recipe.budget.generations - 1, recipe.budget.length - 1)
    same_snapshot(ours.at(end), theirs.at(end), optimizer)
    names = sorted(path.name for path in (theirs.folder / "moments").iterdir())
    assert sorted(path.name for path in (ours.folder / "moments").iterdir()) == names
    for generation, name in (name.split("-") for name in names):
        at = (name, int(generation[1:]))
        same_snapshot(ours.moment(*at), theirs.moment(*at))


def same_snapshot(one: Snapshot, other: Snapshot, optimizer: bool = True) -> None:
    assert (one.run_id, one.moment) == (other.run_id, other.moment)
    if not optimizer:
        one, other = replace(one, optimizer={}), replace(other, optimizer={})
    same_state(one, other, "trained_by")


@pytest.mark.parametrize("method", BRANCHES, ids=case_id)
def test_a_branched_run_equals_the_same_run_trained_alone(
    method: dict[str, Any], alone: Storage, tmp_path: Path
) -> None:
    leader, recipe = tiny_recipe(), tiny_recipe(method)
    copied(alone(leader, epochs=6), tmp_path)  # it died in the middle of generation 1
    leading = store_of(leader, tmp_path).run_id

    assert train_in(tmp_path, recipe) == Branch(leading, 0)
    same_run(recipe, tmp_path, alone(recipe))
    rows = store_of(recipe, tmp_path).rows()
    own = store_of(recipe, tmp_path).run_id
    assert [row["trained_by"] for row in rows] == [leading] * 4 + [own] * 8
    assert {row["run_id"] for row in rows} == {own}


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_a_branched_run_takes_over_averaged_networks(averaging: str, tmp_path: Path) -> None:
    moments = (*EVERYTHING, "averaged")
    train_in(tmp_path / "shared", tiny_recipe(averaging=averaging), moments=moments)
    recipe = tiny_recipe(SEAL, averaging=averaging)
    taken = train_in(tmp_path / "shared", recipe, moments=moments)
    assert taken is not None
    train_in(tmp_path / "alone", recipe, share=False, moments=moments)
    same_run(recipe, tmp_path / "shared", tmp_path / "alone")
    assert train_in(tmp_path / "plain", tiny_recipe(), moments=moments) is None
    assert train_in(tmp_path / "plain", recipe, epochs=1) is None  # who keeps no average is no source


@pytest.mark.parametrize(
    "method", [*BRANCHES, {"name": "normal"}, {"name": "ban"}, {"name": "dsd"}], ids=case_id
)
def test_a_larger_budget_goes_on_from_what_a_smaller_one_has_trained(
    method: dict[str, Any], alone: Storage, tmp_path: Path
) -> None:
    short, recipe = tiny_recipe(method, budget=SHORT), tiny_recipe(method)
    copied(alone(short), tmp_path)
    assert train_in(tmp_path, recipe) == Branch(store_of(short, tmp_path).run_id, 1)
    same_run(recipe, tmp_path, alone(recipe))


def test_a_smaller_budget_is_found_in_a_larger_one_and_trains_nothing(alone: Storage, tmp_path: Path) -> None:
    copied(alone(tiny_recipe(SEAL)), tmp_path)
    short = tiny_recipe(SEAL, budget=SHORT)
    taken = train_in(tmp_path, short)
    assert taken is not None
    assert taken.generation == 1
    same_run(short, tmp_path, alone(short), optimizer=False)
    assert store_of(short, tmp_path).status()["status"] == "finished"


def test_a_branch_of_a_branch_says_who_trained_each_epoch(alone: Storage, tmp_path: Path) -> None:
    copied(alone(tiny_recipe(), epochs=6), tmp_path)
    train_in(tmp_path, tiny_recipe(SEAL, budget=SHORT))
    recipe = tiny_recipe(SEAL)
    train_in(tmp_path, recipe)
    makers = [row["trained_by"] for row in store_of(recipe, tmp_path).rows()]
    assert len(set(makers)) == 3
    assert makers == [makers[0]] * 4 + [makers[4]] * 4 + [store_of(recipe, tmp_path).run_id] * 4


def test_momentum_that_lives_on_across_the_border_is_never_cut(tmp_path: Path) -> None:
    constant = {"optimizer": {"schedule": "constant", "warmup_share": 0.0}}
    long = {"name": "normal", "schedule": "long"}
    short = tiny_recipe(long, budget=SHORT, **constant)
    train_in(tmp_path / "shared", short)
    recipe = tiny_recipe(long, **constant)
    keys = [generation_keys(one, IMAGES.identity) for one in (short, recipe)]
    assert keys[0] == keys[1][:2]  # the same work, but the moment lacks the momentum
    assert train_in(tmp_path / "shared", recipe) is None
    train_in(tmp_path / "alone", recipe, share=False)
    same_run(recipe, tmp_path / "shared", tmp_path / "alone")


def test_a_run_that_began_takes_over_only_what_is_further_on(alone: Storage, tmp_path: Path) -> None:
    recipe = tiny_recipe(SEAL)
    train_in(tmp_path, recipe, epochs=2)  # interrupted in generation 0
    copied(alone(tiny_recipe(), epochs=6), tmp_path)
    taken = train_in(tmp_path, recipe, epochs=1)
    assert taken is not None
    assert taken.generation == 0
    assert train_in(tmp_path, recipe) is None  # now in generation 1 by itself
    same_run(recipe, tmp_path, alone(recipe))


def test_a_damaged_moment_is_named_and_the_generation_trained(alone: Storage, tmp_path: Path) -> None:
    copied(alone(tiny_recipe(), epochs=6), tmp_path)
    leader = store_of(tiny_recipe(), tmp_path)
    damaged = leader.folder / "moments" / "g000-relearned" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    recipe = tiny_recipe(SEAL)
    with pytest.warns(SealRayWarning, match=rf"not branching from {leader.run_id}: .*truncated or altered"):
        assert train_in(tmp_path, recipe) is None
    same_run(recipe, tmp_path, alone(recipe))


def test_a_source_that_lacks_a_moment_the_run_keeps_is_not_used(tmp_path: Path) -> None:
    train_in(tmp_path, tiny_recipe(), epochs=4, moments=("relearned",))
    assert train_in(tmp_path, tiny_recipe(SEAL), epochs=1) is None  # it keeps `init` too


def test_moments_that_a_run_does_not_have_are_not_asked_of_a_source(tmp_path: Path) -> None:
    """SEAL has an ascent from generation 1 on, and an average only where the recipe keeps one."""
    budget = {"epochs": 8, "generation_length": 4}
    asked = ("ascended", "relearned", "averaged")
    for method in (SEAL, {"name": "normal"}):
        storage = tmp_path / method["name"]
        short = tiny_recipe(method, budget=budget)
        train_in(storage, short, moments=("relearned",))
        taken = train_in(storage, tiny_recipe(method), epochs=1, moments=asked)
        assert taken == Branch(store_of(short, storage).run_id, 0 if method is SEAL else 1)
    for kept in (("relearned",), asked):
        train_in(tmp_path / kept[0], tiny_recipe(averaging="ema", budget=budget), moments=kept)
        taken = train_in(tmp_path / kept[0], tiny_recipe(averaging="ema"), epochs=1, moments=asked)
        assert (taken is not None) is ("averaged" in kept)


def test_other_seeds_data_and_damaged_lists_are_never_taken_for_the_same(tmp_path: Path) -> None:
    train_in(tmp_path, tiny_recipe(seed=1), epochs=4)
    assert train_in(tmp_path, tiny_recipe(SEAL), epochs=1) is None
    train_in(tmp_path, tiny_recipe(seed=2), epochs=4)
    path = store_of(tiny_recipe(seed=2), tmp_path).folder / "generations.json"
    for damage in ("", "[", json.dumps({"keys": 1, "moments": 2}), json.dumps({"keys": []}), "[" * 100_000):
        path.write_text(damage)
        assert train_in(tmp_path, tiny_recipe(SEAL, seed=2), epochs=1) is None


def test_a_kill_while_taking_over_leaves_the_run_as_it_was(
    alone: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(alone(tiny_recipe(), epochs=6), tmp_path)
    recipe = tiny_recipe(SEAL)
    for survived in range(5):  # dies before each of the writes in turn
        writes = iter(range(99))

        def dying(*_: Any, survived: int = survived, writes: Any = writes) -> None:
            if next(writes) == survived:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            for name in ("keep_moment", "adopt", "open"):
                real = getattr(Store, name)
                patch.setattr(Store, name, lambda *a, real=real: (dying(), real(*a))[1])
            with pytest.raises(KeyboardInterrupt):
                train_in(tmp_path, recipe)
    train_in(tmp_path, recipe)
    same_run(recipe, tmp_path, alone(recipe))


def test_sharing_what_was_computed_with_other_threads_is_warned_of(alone: Storage, tmp_path: Path) -> None:
    copied(alone(tiny_recipe(), epochs=6), tmp_path)
    with pytest.warns(SealRayWarning, match=r"another fingerprint \(threads 1 -> 2\)"):
        train_in(tmp_path, tiny_recipe(SEAL), epochs=1, threads=2)


def test_a_run_killed_while_it_took_over_takes_over_again(
    alone: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the moment by then, so that who looks finds it as one that has the generation."""
    plain, recipe = tiny_recipe(budget=SHORT), tiny_recipe(SEAL, budget=SHORT)
    copied(alone(plain), tmp_path)
    store = store_of(recipe, tmp_path)
    keys = generation_keys(recipe, IMAGES.identity)
    store.record_generations(keys, EVERYTHING)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "adopt", killed)
        with pytest.raises(KeyboardInterrupt):
            branch(store, recipe, IMAGES.identity, EVERYTHING)
    assert not store.rows()
    taken = branch(store, recipe, IMAGES.identity, EVERYTHING, {keys[0]: [store]})
    assert taken == Branch(store_of(plain, tmp_path).run_id, 0)
    assert len(store.rows()) == 4
