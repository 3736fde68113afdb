"""Every augmentation and optimizers with states of many kinds: exact on resume, the same on any workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seal_ray.augmentations import AUGMENTATIONS
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.testing import on_ranks
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import checkpoint, open_store, same_state, tiny_images, tiny_recipe, train_run, without_speeds

METHODS: list[dict[str, Any]] = [
    {"name": "seal", "ascent_rate": 0.3, "ascent_weight_decay": "decay"},
    {"name": "seal", "ascent_loss": "confident_error", "ascent_rate": 0.5},
    {"name": "ban"},
    {"name": "normal", "schedule": "long"},  # whose optimizer goes on over generations
]
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adamw", "lr": 0.01},
    {"name": "nadam", "lr": 0.01},
    {"name": "adafactor"},
    {"name": "asgd"},
]
CASES = list(zip(METHODS, OPTIMIZERS, strict=True))


def recipe_of(method: dict[str, Any], optimizer: dict[str, Any], **changes: Any) -> Recipe:
    augment = {"crop_padding": 2, "then": list(AUGMENTATIONS)}
    budget = {"epochs": 6, "generation_length": 3}
    return tiny_recipe(method, optimizer=optimizer, augment=augment, batch_size=24, budget=budget, **changes)


def case_id(value: dict[str, Any]) -> str:
    return str(value["name"])


@pytest.mark.parametrize(("method", "optimizer"), CASES, ids=case_id)
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    method: dict[str, Any], optimizer: dict[str, Any], tmp_path: Path
) -> None:
    recipe = recipe_of(method, optimizer)
    train_run(recipe, tmp_path / "undisturbed")
    for _ in range(6):
        train_run(recipe, tmp_path / "interrupted", epochs=1)
    run_id = open_store(recipe, tmp_path).run_id
    for generation in range(2):
        for epoch in range(3):
            one, other = (
                checkpoint(tmp_path / name, run_id, generation, epoch)
                for name in ("undisturbed", "interrupted")
            )
            same_state(one, other)
    assert {name.split(":")[1] for name in one.optimizer} >= {"step"}
    assert len({row["weights_sha256"] for row in one.rows}) == 6


def trained() -> list[list[str]]:
    images = tiny_images(train=48)
    runs = [train_run(recipe_of(*case, shards=4), None, images=images) for case in CASES]
    return [without_speeds([result.row for result in run], "workers") for run in runs]


def test_one_result_for_any_number_of_workers() -> None:
    one = on_ranks(1, trained)[0]
    for workers in (2, 4):
        for rank in on_ranks(workers, trained):
            assert rank == one, workers


def test_mixed_images_have_mixed_targets_and_each_augmentation_has_its_own_draws() -> None:
    def epoch(*then: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        recipe = tiny_recipe(augment={"crop_padding": 2, "then": then}, batch_size=12)
        run = Run(recipe, tiny_images(), None, World(), Placement())
        return [(x, y) for step in run.training_epoch(Position(0, 1)) for x, y, _ in step]

    plain, cut, both = epoch(), epoch("cutmix"), epoch("cutmix", "cutout")
    for (_, labels), (_, targets), (_, same) in zip(plain, cut, both, strict=True):
        assert targets.shape == (6, 3)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        assert (targets.gather(1, labels[:, None]) > 0).all() or len(set(labels.tolist())) > 1
        assert torch.equal(targets, same)  # listing more leaves what comes before as it was
    assert any(len(row.nonzero()) == 2 for _, targets in cut for row in targets)


def test_the_way_through_floats_gives_the_images_of_the_way_through_bytes() -> None:
    plain, jittered = (
        Run(tiny_recipe(augment={"crop_padding": 2, "then": then}), tiny_images(), None, World(), Placement())
        for then in (
            [],
            [{"name": "colour_jitter", "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}],
        )
    )
    one, other = (
        [x for step in run.training_epoch(Position(0, 0)) for x, _, _ in step] for run in (plain, jittered)
    )
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=3e-6)
        assert x.stride() == y.stride()
