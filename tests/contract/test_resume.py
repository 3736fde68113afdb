"""At every epoch boundary, on 2 to 4 ranks: going on equals never having stopped. One: test_methods.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seal_ray.recipe import Recipe
from seal_ray.training.world import World
from tests.runs import (
    MAIN_CASES,
    case_id,
    checkpoint,
    on_ranks,
    open_store,
    same_state,
    tiny_recipe,
    train_run,
    without_speeds,
)

SHARDS = {2: 4, 3: 3, 4: 4}
"""By number of workers: with 2 of them each accumulates two shards."""
FEW = [method for method in MAIN_CASES if method["name"] in ("seal", "ban")]
"""For four ranks, which have a shard each as three have."""
TRAINED = [(n, method) for n, methods in {2: MAIN_CASES, 3: MAIN_CASES, 4: FEW}.items() for method in methods]


def recipe_of(method: dict[str, Any], workers: int) -> Recipe:
    """Two generations of three epochs."""
    return tiny_recipe(method, shards=SHARDS[workers], budget={"epochs": 6, "generation_length": 3})


def undisturbed_and_interrupted(folder: str) -> None:
    methods = [method for workers, method in TRAINED if workers == World.current().workers]
    for method in methods:
        recipe = recipe_of(method, World.current().workers)
        train_run(recipe, f"{folder}/undisturbed/{case_id(method)}")
        for _ in range(recipe.budget.epochs):  # builds everything anew, from the checkpoint
            train_run(recipe, f"{folder}/interrupted/{case_id(method)}", epochs=1)


def test_a_run_that_goes_on_says_once_that_its_ascents_miss_their_target(tmp_path: Path) -> None:
    recipe = tiny_recipe({"name": "seal", "ascent_rate": {"rise": 50.0}})  # twice, in three generations
    train_run(recipe, tmp_path, epochs=6)
    train_run(recipe, tmp_path)
    rows, (said,) = open_store(recipe, tmp_path).rows(), open_store(recipe, tmp_path).warnings()
    (climbed,) = [row for row in rows if (row["generation"], row["phase"]) == (1, "ascend")]
    rise = climbed["train_loss"] - rows[3]["train_loss"]
    assert f"generation 1 was to raise the training loss by 50 nats; at most it was {rise:+.2f}: " in said


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Where the runs of so many workers lie; they are trained when first asked for."""

    @functools.cache
    def trained(workers: int) -> Path:
        folder = tmp_path_factory.mktemp(f"workers-{workers}")
        on_ranks(workers, undisturbed_and_interrupted, str(folder))
        return folder

    return trained


@pytest.mark.faults
@pytest.mark.parametrize(
    ("workers", "method"),
    TRAINED,
    ids=lambda value: case_id(value) if isinstance(value, dict) else str(value),
)
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    workers: int, method: dict[str, Any], folders: Callable[[int], Path]
) -> None:
    names = [folders(workers) / name / case_id(method) for name in ("undisturbed", "interrupted")]
    recipe = recipe_of(method, workers)
    run_id = open_store(recipe, names[0]).run_id
    for generation in range(recipe.budget.generations):
        for epoch in range(3):
            same_state(*(checkpoint(name, run_id, generation, epoch) for name in names))
    rows = [open_store(recipe, name).rows() for name in names]
    assert without_speeds(rows[0]) == without_speeds(rows[1])
    assert [row["global_epoch"] for row in rows[1]] == list(range(recipe.budget.epochs))
    moments = [
        {p.name: (p / "weights.safetensors").read_bytes() for p in (name / "moments").iterdir()}
        for name in names
    ]
    assert moments[0] == moments[1]
