"""A loss that pairs each image with another of its class: the same for any workers, exact on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.modules.module import register_module_forward_hook

from seal_ray.data.images import epoch_order, with_partners
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.testing import on_ranks
from seal_ray.training.loop import fit
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import (
    MAIN_CASES,
    case_id,
    checkpoint,
    open_store,
    same_state,
    tiny_images,
    tiny_recipe,
    train_run,
)

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0, 2, 1])
KEPT = np.array([0, 1, 2, 3, 4, 5, 6, 8])
"""Of label 0 three images, of label 1 two, of label 2 three."""


def paired(method: dict[str, Any] | str = "normal", **changes: Any) -> Recipe:
    """Two generations of three epochs of one step of two shards, everything random switched on."""
    fields: dict[str, Any] = {
        "data": {"path": "unused", "label_noise": 0.2},
        "model": {"arch": "resnet18", "width": 4, "dropout": 0.2},
        "augment": {"crop_padding": 2, "then": ["cutout"]},
        "loss": "cs_kd",
        "budget": {"epochs": 6, "generation_length": 3},
        "batch_size": 24,
    }
    return tiny_recipe(method, **{**fields, **changes})


def pairs(seed: int = 0, generation: int = 1, epoch: int = 2, shards: int = 2) -> dict[int, int]:
    """The partner of each image of an epoch of two steps of four images."""
    at = {"seed": seed, "generation": generation, "epoch": epoch}
    order = epoch_order(KEPT, batch_size=4, shards=shards, **at)
    both = with_partners(order, KEPT, LABELS, **at)
    assert both.shape == (2, 2 * shards, 4 // shards)
    assert (both[:, ::2] == order).all()
    return dict(zip(order.ravel().tolist(), (both[:, 1::2].ravel() - len(LABELS)).tolist(), strict=True))


def test_partners_are_drawn_uniformly_from_the_training_images_of_the_label() -> None:
    drawn = [pairs(epoch=epoch) for epoch in range(600)]
    for image in KEPT:
        alike = [other for other in KEPT if LABELS[other] == LABELS[image]]
        counts = [sum(one[int(image)] == other for one in drawn) for other in alike]
        assert sum(counts) == 600
        # Five standard deviations of a binomial count.
        share = 1 / len(alike)
        assert counts == pytest.approx([600 * share] * len(alike), abs=5 * (600 * share * (1 - share)) ** 0.5)


def test_partners_are_a_function_of_the_position_and_the_image_alone() -> None:
    assert pairs() == pairs() == pairs(shards=4)
    others = [pairs(), pairs(seed=1), pairs(generation=0), pairs(epoch=3)]
    assert all(a != b for i, a in enumerate(others) for b in others[:i])


@pytest.mark.parametrize("augment", [{"crop_padding": 0, "flip": False}, {"crop_padding": 2}], ids=str)
def test_a_shard_is_followed_by_the_images_of_its_partners(augment: dict[str, Any]) -> None:
    images = tiny_images()
    run = Run(paired(augment=augment), images, None, World(), Placement())
    own = run.epoch_order(Position(0, 1))
    order = with_partners(own, run.indices, run.labels, seed=0, generation=0, epoch=1)
    (step,) = run.training_epoch(Position(0, 1))
    assert len(step) == 4
    (whole,) = images.open("train", 30).batches(np.arange(30))
    plain = run.normaliser.of_bytes(whole)
    for (pixels, labels, keep), indices in zip(step, order[0], strict=True):
        assert labels.tolist() == run.labels[indices % 30].tolist()
        assert keep is not None
        assert keep.shape == (12, 32)
        assert torch.equal(pixels, plain[indices % 30]) == (augment["crop_padding"] == 0)
    for (_, labels, _), (_, others, _) in zip(step[::2], step[1::2], strict=True):
        assert torch.equal(labels, others)


def test_an_image_that_is_its_own_partner_is_cropped_anew() -> None:
    """Of three images of three classes each is its own partner."""
    changes: dict[str, Any] = {"data": {"path": "unused"}, "batch_size": 3, "shards": 1}
    run = Run(paired(augment={"crop_padding": 8}, **changes), tiny_images(3), None, World(), Placement())
    ((own, labels, _), (other, again, _)) = next(run.training_epoch(Position(0, 1)))
    assert labels.tolist() == again.tolist()
    assert all(not torch.equal(a, b) for a, b in zip(own, other, strict=True))  # 17 x 17 places for each


@pytest.mark.parametrize("method", MAIN_CASES, ids=case_id)
def test_an_epoch_has_the_passes_that_are_counted(method: dict[str, Any]) -> None:
    for loss in ("ce", "cs_kd"):
        recipe = paired(method, loss=loss)
        calls: list[int] = []

        def note(module: torch.nn.Module, given: Any, output: Any, calls: list[int] = calls) -> None:
            if isinstance(module, torch.nn.Linear) and module.training:
                calls[-1] += 1

        hook = register_module_forward_hook(note)
        calls.append(0)
        try:
            for _ in fit(recipe, tiny_images()):
                calls.append(0)
        finally:
            hook.remove()
        expected = [
            2 * phase.passes(recipe.loss)  # one step of two shards
            for generation in range(2)
            for phase in recipe.method.phases(generation, recipe.budget)
            for _ in range(phase.epochs)
        ]
        assert calls[:-1] == expected


def digests() -> list[tuple[str, str]]:
    return [
        (result.row["weights_sha256"], repr(result.row["train_loss"]))
        for method in MAIN_CASES
        for result in train_run(paired(method), None)
    ]


def test_two_shards_in_one_process_give_the_bits_of_two_ranks_with_every_method() -> None:
    [one] = on_ranks(1, digests)
    assert len(one) == 6 * len(MAIN_CASES)
    for rank in on_ranks(2, digests):
        assert rank == one


@pytest.mark.parametrize("method", [MAIN_CASES[-1], {"name": "ban"}], ids=case_id)
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    method: dict[str, Any], tmp_path: Path
) -> None:
    recipe = paired(method)
    train_run(recipe, tmp_path / "undisturbed")
    for _ in range(6):
        train_run(recipe, tmp_path / "interrupted", epochs=1)
    run_id = open_store(recipe, tmp_path).run_id
    for generation in range(2):
        for epoch in range(3):
            same_state(
                checkpoint(tmp_path / "undisturbed", run_id, generation, epoch),
                checkpoint(tmp_path / "interrupted", run_id, generation, epoch),
            )
    counted = checkpoint(tmp_path / "undisturbed", run_id, 0, 2).weights["bn1.num_batches_tracked"]
    assert int(counted) == 2 * 3  # running statistics see images and partners


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_images_of_several_classes_have_no_partner(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} mixes images of several classes, and the loss cs_kd"):
        paired(augment={"then": [name]})
