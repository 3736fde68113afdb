"""Averages of the weights are torch's, through resumes and on two ranks; training is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from seal_ray.phases.averaging import Averaging, Swa
from seal_ray.recipe import Recipe
from seal_ray.runs.folder import Store
from seal_ray.runs.lineage import run_id
from seal_ray.streams import stream
from tests.runs import (
    EVERYTHING,
    checkpoint,
    keeping,
    on_ranks,
    open_store,
    same_state,
    same_tensors,
    tiny_images,
    tiny_recipe,
    train_run,
    without_speeds,
)

EMA, SWA = {"name": "ema", "decay": 0.7}, {"name": "swa", "share": 0.5}
PLACEMENT = keeping((*EVERYTHING, "averaged"))
IMAGES = tiny_images(train=600)
ONE_STEP: dict[str, Any] = {
    "method": "llf",
    "batch_size": 600,
    "budget": {"epochs": 10, "generation_length": 5},
}
"""A step an epoch, so that checkpoints have the weights after each step."""


def normalised(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split as networks see them, (N, 3, H, W), and their labels."""
    loader = IMAGES.open(split, 600)  # type: ignore[arg-type]
    pixels = torch.cat(list(loader.batches(np.arange(len(loader.labels)))))
    images = (pixels.double() / 255 - torch.tensor(IMAGES.mean)) / torch.tensor(IMAGES.std)
    return images.permute(0, 3, 1, 2).float(), torch.from_numpy(loader.labels)


def by_torch(store: Store, network: nn.Module, averaging: dict[str, Any], generation: int) -> nn.Module:
    """What torch.optim.swa_utils makes of the weights a generation began with and those of its epochs."""
    began = store.moment("forgotten" if generation else "init", generation).weights
    states = [checkpoint(store.folder, store.run_id, generation, epoch).weights for epoch in range(5)]
    if averaging is EMA:
        states, function = [began, *states], get_ema_multi_avg_fn(0.7)
    else:
        states, function = states[2:], get_swa_multi_avg_fn()  # half of 5 epochs, rounded half up
    averaged = AveragedModel(network, multi_avg_fn=function)
    for state in states:
        network.load_state_dict(state)
        averaged.update_parameters(network)
    order = torch.randperm(600, generator=stream(0, "statistics"))[:512]
    update_bn(normalised("train")[0][order].split(256), averaged)
    module: nn.Module = averaged.module
    return module.eval()


@pytest.mark.parametrize("averaging", [EMA, SWA], ids=["ema", "swa"])
def test_the_averaged_network_is_that_of_torch_and_what_is_evaluated(
    averaging: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe(averaging=averaging, **ONE_STEP)
    store = open_store(recipe, tmp_path, images=IMAGES)
    train_run(recipe, tmp_path, images=IMAGES, placement=PLACEMENT)
    for generation in range(2):  # the second does not know of the first
        network = by_torch(store, recipe.model.build(3, torch.Generator()), averaging, generation)
        kept, parameters = store.moment("averaged", generation), dict(network.named_parameters())
        same_tensors({name: kept.weights[name] for name in parameters}, parameters_of(network), "average")
        for name, statistic in network.named_buffers():
            assert torch.allclose(kept.weights[name], statistic, rtol=1e-4, atol=1e-6), name
        images, labels = normalised("val")
        with torch.no_grad():
            logits = network(images)
        row = kept.rows[-1]
        assert row["val_averaged_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-3)
        assert row["val_averaged_top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean())
        assert row["val_averaged_loss"] != row["val_loss"]
    first = [row["val_averaged_loss"] is None for row in store.rows()[:5]]
    assert first == ([False] * 5 if averaging is EMA else [True, True, False, False, False])


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


CASES = [
    ({"name": "seal", "ascent_rate": 0.3}, {"name": "ema", "decay": 0.9}),
    ({"name": "seal", "ascent_rate": 0.3}, SWA),
    ({"name": "ban"}, {"name": "ema", "decay": 0.9}),
    ({"name": "sam"}, SWA),
]


def recipe_of(method: dict[str, Any], averaging: dict[str, Any]) -> Recipe:
    """Two generations of three epochs."""
    return tiny_recipe(method, averaging=averaging, budget={"epochs": 6, "generation_length": 3})


def train_all(folder: str, interrupted: bool) -> None:
    for index, (method, averaging) in enumerate(CASES):
        recipe = recipe_of(method, averaging)
        for _ in range(6 if interrupted else 1):
            train_run(recipe, f"{folder}/{index}", epochs=1 if interrupted else None, placement=PLACEMENT)


@pytest.fixture(scope="module")
def storages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The cases trained undisturbed, resumed at every epoch boundary, and on two ranks."""
    folders = [tmp_path_factory.mktemp(name) for name in ("undisturbed", "interrupted", "two")]
    for workers, folder, interrupted in zip((1, 1, 2), folders, (False, True, False), strict=True):
        on_ranks(workers, train_all, str(folder), interrupted)
    return folders


@pytest.mark.parametrize("index", range(len(CASES)), ids=["seal-ema", "seal-swa", "ban-ema", "sam-swa"])
def test_averages_go_through_resumes_and_are_the_same_on_two_ranks(index: int, storages: list[Path]) -> None:
    method, averaging = CASES[index]
    recipe = recipe_of(method, averaging)
    stores = [open_store(recipe, folder / str(index)) for folder in storages]
    for generation in range(2):
        for epoch in range(3):
            one, *others = (checkpoint(s.folder, s.run_id, generation, epoch) for s in stores)
            for other in others:
                same_state(one, other, "workers")
            counting = epoch >= 1 or averaging is not SWA  # half of 3 epochs is 2, rounded half up
            assert ("averaged" in one.carried) == (counting and epoch < 2)  # the end of a generation ends it
        moments = [store.moment("averaged", generation) for store in stores]
        for other in moments[1:]:
            same_state(moments[0], other, "workers")
    plain = train_run(recipe.model_copy(update={"averaging": Averaging()}), None)
    digests = [result.row["weights_sha256"] for result in plain]
    assert digests == [row["weights_sha256"] for row in stores[0].rows()]  # training does not see the average
    seen = without_speeds([result.row for result in plain], "run_id", "trained_by")
    also = ("run_id", "trained_by", "val_averaged_loss", "val_averaged_top1")
    assert seen == without_speeds(stores[0].rows(), *also)


def test_an_average_is_part_of_a_run_s_identity_and_none_is_not() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"averaging": "ema"},
        {"averaging": {"name": "ema", "decay": 0.99}},
        {"averaging": "swa"},
    ]
    ids = [run_id(tiny_recipe(**change), "images") for change in changes]
    assert len(set(ids)) == 4
    assert run_id(tiny_recipe(averaging="none"), "images") == ids[0]


@pytest.mark.parametrize(
    ("share", "length", "counts"),
    [
        (0.25, 8, [0, 0, 0, 0, 0, 0, 1, 2]),
        (0.5, 5, [0, 0, 1, 2, 3]),
        (0.01, 3, [0, 0, 1]),
        (1.0, 3, [1, 2, 3]),
        (0.25, 1, [1]),
    ],
)
def test_the_last_epochs_are_counted(share: float, length: int, counts: list[int]) -> None:
    assert [Swa(share).count(epoch, length) for epoch in range(length)] == counts
