"""How many wrong labels are predicted while training: as a forward pass by hand says, for any workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seal_ray.data.subset import noisy_labels
from seal_ray.recipe import Recipe
from seal_ray.testing import on_ranks
from tests.runs import checkpoint, open_store, tiny_images, tiny_recipe, train_run

TWO_EPOCHS = {"epochs": 2, "generation_length": 2}


def noisy(share: float = 0.4, **changes: Any) -> Recipe:
    data = {"path": "unused", "label_noise": share}
    plain = {"crop_padding": 0, "flip": False}
    return tiny_recipe("normal", **{"data": data, "budget": TWO_EPOCHS, "augment": plain, **changes})


def train_noisy(folder: str) -> list[float]:
    recipe = noisy(shards=4, batch_size=24)
    return [epoch.row["train_memorised"] for epoch in train_run(recipe, folder, images=tiny_images(train=72))]


def test_it_is_the_share_of_wrong_labels_that_the_network_predicts(tmp_path: Path) -> None:
    images, recipe = tiny_images(train=60), noisy(batch_size=60, shards=1)
    train_run(recipe, tmp_path, epochs=1, images=images)
    network = recipe.model.build(3, torch.Generator())
    store = open_store(recipe, tmp_path, images=images)
    network.load_state_dict(checkpoint(store.folder, store.run_id, 0, 0).weights)
    loader = images.open("train", 60)
    (pixels,) = loader.batches(np.arange(60))
    mean, std = torch.tensor(images.mean), torch.tensor(images.std)
    with torch.no_grad():
        predicted = network.train()(((pixels / 255 - mean) / std).permute(0, 3, 1, 2)).argmax(dim=1).numpy()
    (epoch,) = train_run(recipe, tmp_path, images=images)
    given = noisy_labels(loader.labels, 3, 0.4)
    wrong = given != loader.labels
    assert wrong.sum() == 24
    assert epoch.row["train_memorised"] == pytest.approx(100 * (predicted == given)[wrong].mean())
    assert epoch.row["train_top1"] == pytest.approx(100 * (predicted == given).mean())


def test_every_number_of_workers_says_the_same(tmp_path: Path) -> None:
    found = [on_ranks(workers, train_noisy, str(tmp_path / str(workers))) for workers in (1, 2, 4)]
    assert len({tuple(rank) for ranks in found for rank in ranks}) == 1


@pytest.mark.parametrize(
    "recipe", [noisy(0.0), noisy(augment={"crop_padding": 0, "flip": False, "then": ["mixup"]})]
)
def test_it_is_not_said_without_wrong_labels_or_where_labels_are_mixed(recipe: Recipe) -> None:
    assert all("train_memorised" not in epoch.row for epoch in train_run(recipe, None))
