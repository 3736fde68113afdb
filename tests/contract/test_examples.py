"""Which validation images each epoch had right: kept on request, through resumes and branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seal_ray.errors import CheckpointError
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import generation_keys, run_id
from seal_ray.runs.sharing import branch
from seal_ray.testing import on_ranks
from seal_ray.training.loop import fit
from tests.runs import EVERYTHING, keeping, open_store, tiny_images, tiny_recipe, train_run

TRACKING = keeping(EVERYTHING, track_examples=True)
SEAL = {"name": "seal", "ascent_rate": 0.3}


def accuracies(store: Store) -> list[float | None]:
    """Per epoch the share of images that were right, in per cent."""
    found = []
    for row in store.rows():
        right = store.examples(Position(row["generation"], row["epoch"]))
        found.append(None if right is None else 100 * float(right.mean()))
    return found


def test_what_was_right_adds_up_to_the_accuracy_at_every_epoch_across_resumes(tmp_path: Path) -> None:
    recipe = tiny_recipe(SEAL)
    for _ in range(12):
        train_run(recipe, tmp_path, epochs=1, placement=TRACKING)
    store = open_store(recipe, tmp_path)
    assert accuracies(store) == pytest.approx([row["val_top1"] for row in store.rows()])
    assert {len(store.examples(Position(g, e))) for g in range(3) for e in range(4)} == {17}  # type: ignore[arg-type]


def track_on_a_rank(recipe: Recipe, folder: str) -> None:
    train_run(recipe, folder, placement=TRACKING)


def test_two_ranks_keep_what_one_keeps(tmp_path: Path) -> None:
    recipe = tiny_recipe("normal", budget={"epochs": 2, "generation_length": 2})
    for workers in (1, 2):
        on_ranks(workers, track_on_a_rank, recipe, str(tmp_path / str(workers)))
    one, two = (open_store(recipe, tmp_path / name) for name in ("1", "2"))
    for epoch in range(2):
        assert np.array_equal(one.examples(Position(0, epoch)), two.examples(Position(0, epoch)))  # type: ignore[arg-type]


def test_an_epoch_without_evaluation_keeps_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe("normal", budget={"epochs": 4, "generation_length": 4})
    placement = Placement(eval_every=3, track_examples=True)
    train_run(recipe, tmp_path, placement=placement)
    kept = [accuracy is not None for accuracy in accuracies(open_store(recipe, tmp_path))]
    assert kept == [False, False, True, True]


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    train_run(tiny_recipe("normal"), tmp_path, epochs=1)
    assert not (tmp_path / "examples").exists()


def test_a_branched_run_has_those_of_the_shared_epochs(tmp_path: Path) -> None:
    images = tiny_images()
    stores = []
    for method in ("normal", SEAL):
        recipe = tiny_recipe(method)
        identity = run_id(recipe, images.identity)
        store = Store(tmp_path / identity, identity)
        store.record_generations(generation_keys(recipe, images.identity), EVERYTHING)
        branch(store, recipe, images.identity, EVERYTHING)
        list(fit(recipe, images, store=store, placement=TRACKING))
        stores.append(store)
    normal, seal = stores
    assert accuracies(seal) == pytest.approx([row["val_top1"] for row in seal.rows()])
    for epoch in range(4):
        at = Position(0, epoch)
        assert np.array_equal(normal.examples(at), seal.examples(at))  # type: ignore[arg-type]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    recipe = tiny_recipe("normal")
    train_run(recipe, tmp_path, epochs=1, placement=TRACKING)
    (path,) = (tmp_path / "examples").iterdir()
    for damage in ("", "{}", '{"count": 3, "right": "xy"}', "[1]"):
        path.write_text(damage)
        with pytest.raises(CheckpointError, match=rf"{path.name}: damaged"):
            open_store(recipe, tmp_path).examples(Position(0, 0))
