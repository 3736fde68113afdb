"""Dropout is data of the batch: exact on resume, the same for any number of workers, absent elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch.nn.modules.module import register_module_forward_hook

from seal_ray.data.images import dropout_masks, epoch_order
from seal_ray.networks import FeatureMask, build
from seal_ray.networks.resnet_module import ResNet
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.streams import stream
from seal_ray.training.loop import evaluate
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import (
    case_id,
    checkpoint,
    on_ranks,
    open_store,
    same_state,
    tiny_images,
    tiny_recipe,
    train_run,
)

METHODS: list[dict[str, Any]] = [
    {"name": "seal", "ascent_rate": 0.3},
    {"name": "seal", "ascent_loss": "confident_error", "ascent_rate": 0.5},
    {"name": "sam"},
    {"name": "ban"},
]
TWO_OF_THREE = {"epochs": 6, "generation_length": 3}
ORDER = np.arange(24).reshape(4, 2, 3)
FEATURES = 32  # of a ResNet-18 of width 4


def dropping(p: float, method: dict[str, Any] | str = "normal", **changes: Any) -> Recipe:
    return tiny_recipe(method, model={"arch": "resnet18", "width": 4, "dropout": p}, **changes)


def masks(
    p: float = 0.25, features: int = FEATURES, seed: int = 0, generation: int = 1, epoch: int = 2
) -> torch.Tensor:
    drawn = dropout_masks(p, ORDER, features, seed=seed, generation=generation, epoch=epoch)
    return torch.stack(list(drawn))


def train_all(folder: str) -> None:
    for method in METHODS:
        train_run(dropping(0.5, method, budget=TWO_OF_THREE), f"{folder}/{case_id(method)}")


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two generations of three epochs of each method, in one process and in two."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for ranks, folder in enumerate(folders, start=1):
        on_ranks(ranks, train_all, str(folder))
    return folders


@pytest.mark.parametrize("method", METHODS, ids=case_id)
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    method: dict[str, Any], one_and_two: list[Path], tmp_path: Path
) -> None:
    recipe, undisturbed = dropping(0.5, method, budget=TWO_OF_THREE), one_and_two[0] / case_id(method)
    for _ in range(6):
        train_run(recipe, tmp_path, epochs=1)
    run_id = open_store(recipe, tmp_path).run_id
    for generation in range(2):
        for epoch in range(3):
            same_state(
                checkpoint(undisturbed, run_id, generation, epoch),
                checkpoint(tmp_path, run_id, generation, epoch),
            )


@pytest.mark.parametrize("method", METHODS, ids=case_id)
def test_two_shards_in_one_process_give_the_bits_of_two_ranks(
    method: dict[str, Any], one_and_two: list[Path]
) -> None:
    recipe = dropping(0.5, method, budget=TWO_OF_THREE)
    one, two = (open_store(recipe, folder / case_id(method)).rows() for folder in one_and_two)
    for key in ("weights_sha256", "train_loss", "val_loss"):
        assert [row[key] for row in one] == [row[key] for row in two]
    assert len({row["weights_sha256"] for row in one}) == 6


def test_a_mask_drops_a_share_and_keeps_the_expectation() -> None:
    drawn = masks(0.25, features=1000)
    assert drawn.shape == (4, 2, 3, 1000)
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    # 24,000 draws: one standard deviation of the dropped share is 0.0028.
    assert (drawn == 0).double().mean().item() == pytest.approx(0.25, abs=0.015)
    assert drawn.double().mean().item() == pytest.approx(1.0, abs=0.02)


def test_logits_are_those_of_the_kept_features_scaled_up() -> None:
    network = build("resnet18", classes=3, stem="imagenet", width=4, generator=stream(0, "init")).eval()
    assert isinstance(network, ResNet)
    mask = FeatureMask(network)
    features: list[torch.Tensor] = []
    network.avgpool.register_forward_hook(lambda module, given, out: features.append(out.flatten(1)))
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert mask.features == FEATURES
    keep = masks(0.25)[0, 0]
    with torch.no_grad():
        network.fc.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
        mask.keep = keep
        logits = network(x)
        mask.keep = None
        plain = network(x)
    for row in range(3):
        kept = keep[row] > 0
        assert 0 < kept.sum() < FEATURES
        expected = F.linear(features[0][row, kept] / 0.75, network.fc.weight[:, kept], network.fc.bias)
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain, F.linear(features[1], network.fc.weight, network.fc.bias))


def test_masks_are_a_pure_function_of_seed_and_position() -> None:
    assert torch.equal(masks(), masks())
    others = [masks(), masks(seed=1), masks(generation=0), masks(epoch=3), masks(generation=2, epoch=1)]
    steps = [step for drawn in others for step in drawn]
    assert all(not torch.equal(a, b) for i, a in enumerate(steps) for b in steps[:i])
    assert all(not torch.equal(step[0], step[1]) for step in steps)  # nor do the shards of a step agree


def calls_of(recipe: Recipe, epochs: int) -> list[tuple[bool, torch.Tensor | None]]:
    """For each call of a classifier: whether it was in training mode, and what its features were times."""
    calls: list[tuple[bool, torch.Tensor | None]] = []
    pooled: list[torch.Tensor] = []

    def note(module: torch.nn.Module, given: Any, output: Any) -> None:
        if isinstance(module, torch.nn.AdaptiveAvgPool2d):
            pooled.append(output.detach().flatten(1))
        if isinstance(module, torch.nn.Linear):
            features = pooled.pop()
            ratio = torch.where(features == 0, torch.nan, given[0].detach() / features)
            calls.append((module.training, None if torch.equal(given[0], features) else ratio))

    hook = register_module_forward_hook(note)
    try:
        train_run(recipe, None, epochs)
    finally:
        hook.remove()
    return calls


def test_training_sees_the_masks_of_its_position_and_both_passes_of_sam_the_same() -> None:
    recipe = dropping(0.5, "sam")
    seen = iter([mask for training, mask in calls_of(recipe, 2) if training])
    for epoch in range(2):
        order = epoch_order(np.arange(30), batch_size=12, shards=2, seed=0, generation=0, epoch=epoch)
        for step in dropout_masks(0.5, order, FEATURES, seed=0, generation=0, epoch=epoch):
            for expected in (*step, *step):
                mask = next(seen)
                assert mask is not None
                known = ~mask.isnan()  # features that are 0 tell nothing
                assert known.any()
                torch.testing.assert_close(mask[known], expected[known])
    assert next(seen, "nothing more") == "nothing more"


def test_evaluation_and_teachers_drop_nothing() -> None:
    calls = calls_of(dropping(0.5, "ban", budget={"epochs": 4, "generation_length": 2}), 4)
    assert {(training, mask is None) for training, mask in calls} == {(True, False), (False, True)}
    # 2 steps of 2 shards an epoch; one evaluation batch an epoch, and the teacher once a shard in two epochs.
    assert sum(training for training, _ in calls) == 4 * 4
    assert sum(not training for training, _ in calls) == 4 * 1 + 2 * 4


def test_scores_of_the_same_weights_do_not_depend_on_dropout() -> None:
    scores = []
    for p in (0.0, 0.9):
        run = Run(dropping(p), tiny_images(), None, World(), Placement())
        scores.append({key: value for key, value in evaluate(run).items() if key != "seconds_eval"})
    assert scores[0] == scores[1]


def digests(recipe: Recipe) -> list[str]:
    return [result.row["weights_sha256"] for result in train_run(recipe, None, 6)]


def test_without_dropout_nothing_is_drawn_and_nothing_changes() -> None:
    unset, none = tiny_recipe(), dropping(0.0)
    assert unset == none
    assert open_store(unset, ".").run_id == open_store(none, ".").run_id
    assert open_store(unset, ".").run_id != open_store(dropping(0.5), ".").run_id
    run = Run(none, tiny_images(), None, World(), Placement())
    assert all(keep is None for shards in run.training_epoch(Position(0, 0)) for _, _, keep in shards)
    # A chance of 1e-30 keeps every feature, times exactly 1: other code, the same bits.
    assert digests(unset) == digests(dropping(1e-30))


def test_what_is_dropped_changes_training() -> None:
    half = dropping(0.5)
    runs = [digests(recipe) for recipe in (dropping(0.0), half, dropping(0.25))]
    assert all(len({run[epoch] for run in runs}) == 3 for epoch in range(6))
