"""Every method with the usual regularisers, all at once: it trains, and resumes to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seal_ray.recipe import Recipe
from tests.runs import MAIN_CASES, case_id, tiny_images, tiny_recipe, train_run, without_speeds

IMAGES = tiny_images(train=24)  # a step an epoch


def recipe_of(method: dict[str, Any]) -> Recipe:
    """Label smoothing, mixup, dropout and averaged weights."""
    return tiny_recipe(
        method,
        model={"arch": "resnet18", "width": 4, "dropout": 0.3},
        loss={"name": "ce", "label_smoothing": 0.3},
        augment={"crop_padding": 2, "then": ["mixup"]},
        averaging={"name": "ema", "decay": 0.9},
        batch_size=24,
        budget={"epochs": 6, "generation_length": 3},
    )


@pytest.mark.parametrize("method", MAIN_CASES, ids=case_id)
def test_a_method_with_all_regularisers(method: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(method)
    whole = train_run(recipe, None, images=IMAGES)
    pieces = [train_run(recipe, tmp_path, epochs=count, images=IMAGES) for count in (4, 1, None)]
    resumed = [result.row for piece in pieces for result in piece]
    assert without_speeds(resumed) == without_speeds([result.row for result in whole])
    assert len({row["weights_sha256"] for row in resumed}) == 6
    assert all(row["val_averaged_loss"] > 0 for row in resumed)
