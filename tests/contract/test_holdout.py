"""Images held out of the training images: who is in which split, and what is measured on which when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seal_ray.data.images import Images, Split
from seal_ray.data.loaders import Loader
from seal_ray.data.subset import noisy_labels, training_indices, training_split
from seal_ray.errors import ConfigError
from seal_ray.recipe import Recipe
from seal_ray.runs.lineage import generation_keys, run_id
from seal_ray.runs.summary import averaged_top1
from seal_ray.training.loop import fit
from tests.runs import keeping, open_store, same_state, tiny_images, tiny_recipe, train_run, without_speeds

LABELS = np.repeat([0, 1, 2, 3], [10, 15, 20, 5])


@pytest.mark.parametrize(
    ("per_class", "share", "counts"),
    [(None, 0.1, [1, 2, 2, 1]), (None, 0.5, [5, 8, 10, 3]), (5, 0.3, [2, 2, 2, 2]), (4, 0.25, [1, 1, 1, 1])],
)
def test_the_split_has_its_share_of_each_class_rounded_half_up(
    per_class: int | None, share: float, counts: list[int]
) -> None:
    used, held = training_split(LABELS, per_class, share)
    assert np.bincount(LABELS[held]).tolist() == counts
    assert sorted([*used, *held]) == training_indices(LABELS, per_class).tolist()
    assert sorted(used) == used.tolist()
    assert sorted(held) == held.tolist()
    firsts = [np.flatnonzero(label == LABELS)[:count] for label, count in enumerate(counts)]
    assert held.tolist() != np.concatenate(firsts).tolist()


@pytest.mark.parametrize(
    ("share", "labels"),
    [(0.9, np.array([0, 0, 1, 1])), (0.01, np.array([0] * 9 + [1] * 9)), (0.99, LABELS)],
)
def test_a_share_that_leaves_nothing_is_refused(share: float, labels: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.data\.holdout: "):
        training_split(labels, None, share)


class Watched:
    """A loader that notes which images are read."""

    def __init__(self, loader: Loader, read: list[int]) -> None:
        self.loader, self.read = loader, read

    @property
    def labels(self) -> np.ndarray:
        return self.loader.labels

    def batches(self, order: np.ndarray) -> Iterator[torch.Tensor]:
        self.read += order.tolist()
        return self.loader.batches(order)


def recipe_of(averaging: object = "none", **data: object) -> Recipe:
    fields = {"path": "x", "holdout": 0.2, "label_noise": 0.1, **data}
    budget = {"epochs": 4, "generation_length": 2}
    return tiny_recipe("llf", data=fields, budget=budget, batch_size=12, averaging=averaging)


def test_val_is_looked_at_once_at_the_end_and_held_out_images_are_never_trained_on() -> None:
    images, read = tiny_images(train=60), {"train": list[int](), "val": list[int]()}

    def opened(split: Split, size: int) -> Loader:
        return Watched(images.open(split, size), read[split])

    used, held = training_split(images.open("train", 1).labels, None, 0.2)
    rows, looked = [], []
    for epoch in fit(recipe_of(), replace(images, open=opened)):
        rows.append(epoch.row)
        looked.append(len(read["val"]))
        trained, evaluated = read["train"][:48], read["train"][48:]
        assert set(trained) <= set(used.tolist())
        assert evaluated == held.tolist()  # each once, in order
        read["train"].clear()
    assert looked == [0, 0, 0, 17]
    assert ["test_top1" in row for row in rows] == [False, False, False, True]


def logits_of(
    weights: Mapping[str, torch.Tensor], images: Images, split: Split, indices: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of some of a split's images, (N, 3), and their true labels."""
    network, loader = recipe_of().model.build(3, torch.Generator()), images.open(split, 99)
    network.load_state_dict(weights)
    pixels = next(iter(loader.batches(indices))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(of)[:, None, None] for of in (images.mean, images.std))
    with torch.no_grad():
        return network.eval()((pixels - mean) / std), torch.from_numpy(loader.labels[indices])


def test_scores_are_those_of_the_last_weights_on_each_split(tmp_path: Path) -> None:
    images = tiny_images(train=60)
    recipe = recipe_of()
    row = train_run(recipe, tmp_path, images=images)[-1].row
    store = open_store(recipe, tmp_path, images=images)
    snapshot = store.latest()
    assert snapshot is not None
    _, held = training_split(images.open("train", 1).labels, None, 0.2)
    for split, name, indices in (("train", "val", held), ("val", "test", np.arange(17))):
        logits, truth = logits_of(snapshot.weights, images, split, indices)  # type: ignore[arg-type]
        if name == "test":  # of held-out images the labels are as wrong as the others'
            loss = torch.nn.functional.cross_entropy(logits, truth).item()
            assert row["test_loss"] == pytest.approx(loss, rel=1e-4)
            assert row["test_top1"] == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())
        else:
            labels = images.open("train", 1).labels
            noisy = torch.from_numpy(noisy_labels(labels, 3, 0.1)[indices])
            assert (noisy != truth).any()
            loss = torch.nn.functional.cross_entropy(logits, noisy).item()
            assert row["val_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("averaging", [{"name": "ema", "decay": 0.7}, {"name": "swa", "share": 0.5}], ids=str)
def test_averaged_weights_are_tested_once_too_and_the_table_is_of_the_test(
    averaging: dict[str, object], tmp_path: Path
) -> None:
    images, recipe = tiny_images(train=60), recipe_of(averaging)
    placement = keeping(["relearned", "averaged"])
    rows = [one.row for one in train_run(recipe, tmp_path, images=images, placement=placement)]
    weights = open_store(recipe, tmp_path, images=images).moment("averaged", 1).weights
    logits, truth = logits_of(weights, images, "val", np.arange(17))
    top1 = 100 * (logits.argmax(1) == truth).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, truth).item()
    assert rows[-1]["test_averaged_top1"] == pytest.approx(top1)
    assert rows[-1]["test_averaged_loss"] == pytest.approx(loss, rel=1e-4)
    assert rows[-1]["test_averaged_loss"] not in (rows[-1]["test_loss"], rows[-1]["val_averaged_loss"])
    assert ["test_averaged_top1" in row for row in rows] == [False, False, False, True]
    assert averaged_top1(rows) == pytest.approx(top1)
    plain = [{"val_averaged_top1": 50.0}]
    assert averaged_top1(plain) == 50.0
    assert averaged_top1([{**plain[0], "test_top1": 40.0}]) is None  # of a run from before it was tested


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    images, recipe = tiny_images(train=60), recipe_of()
    whole = train_run(recipe, tmp_path / "whole", images=images)
    train_run(recipe, tmp_path / "cut", epochs=3, images=images)
    last = train_run(recipe, tmp_path / "cut", images=images)
    assert without_speeds([last[-1].row]) == without_speeds([whole[-1].row])
    ends = [open_store(recipe, tmp_path / name, images=images).latest() for name in ("whole", "cut")]
    assert ends[0] is not None
    assert ends[1] is not None
    same_state(*ends)  # type: ignore[arg-type]


def test_holding_out_is_another_run_and_not_holding_out_is_not() -> None:
    ids = {run_id(recipe_of(holdout=share), "data") for share in (0.0, 0.1, 0.2)}
    plain = tiny_recipe(
        "llf",
        data={"path": "x", "label_noise": 0.1},
        budget={"epochs": 4, "generation_length": 2},
        batch_size=12,
    )
    assert len(ids) == 3
    assert run_id(plain, "data") in ids


@pytest.mark.parametrize("holdout", [0.0, 0.2])
def test_only_the_end_of_a_run_that_is_tested_is_not_shared_with_longer_ones(holdout: float) -> None:
    """Its last row has `test_top1`, and that of the same generation before more has not."""
    short, long = (
        tiny_recipe("llf", data={"path": "x", "holdout": holdout}, budget=budget)
        for budget in ({"epochs": 2, "generation_length": 2}, {"epochs": 4, "generation_length": 2})
    )
    one, two = (generation_keys(recipe, "images") for recipe in (short, long))
    assert (one[0] == two[0]) is (holdout == 0)
    fits = [[row.row for row in fit(recipe, tiny_images())] for recipe in (short, long)]
    tested = [["test_top1" in row for row in rows] for rows in fits]
    assert tested == ([[False, True], [False] * 3 + [True]] if holdout else [[False] * 2, [False] * 4])
