"""The losses that edits may ask for are those of training, and asking moves nothing."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import pytest
import torch

from seal_ray.data.images import Shard
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement
from seal_ray.training.batch_losses import batch_losses
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import tiny_images, tiny_recipe

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "four shards": {"shards": 4},
    "dropout and mixed images": {
        "model": {"arch": "resnet18", "width": 4, "dropout": 0.3},
        "augment": {"crop_padding": 2, "then": ["mixup", "cutout"]},
    },
    "pairs": {"loss": "cs_kd"},
    "another loss": {"loss": {"name": "ce", "label_smoothing": 0.4}},
}


@torch.no_grad()
def logits_of(network: Any, shard: Shard) -> torch.Tensor:
    """In train mode, the features of dropout masked by hand."""
    images, _, keep = shard
    hook = network.fc.register_forward_pre_hook(lambda _, given: given if keep is None else given[0] * keep)
    logits: torch.Tensor = network.train()(images)
    hook.remove()
    return logits


@pytest.mark.parametrize("batches", [1, 99])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_they_are_the_losses_of_the_first_batches_of_the_epoch_to_come(
    changes: dict[str, Any], batches: int
) -> None:
    recipe = tiny_recipe(**changes)
    run = Run(recipe, tiny_images(), None, World(), Placement())
    run.next = Position(1, 0)
    network = copy.deepcopy(run.network)
    found = [loss.item() for loss in batch_losses(run, batches)]
    assert len(found) == recipe.shards * min(batches, 2)  # an epoch has 2
    expected = []
    for shards in islice(run.training_epoch(Position(1, 0)), batches):
        own, partners = (shards[::2], shards[1::2]) if changes == CHANGES["pairs"] else (shards, [None] * 99)
        for shard, beside in zip(own, partners, strict=False):
            more = {} if beside is None else {"partner_logits": logits_of(network, beside)}
            expected.append(recipe.loss(logits_of(network, shard), shard[1], **more).item())
    assert found == expected


def test_asking_moves_nothing() -> None:
    run = Run(tiny_recipe(), tiny_images(), None, World(), Placement())
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for loss in batch_losses(run, 2):
        assert all(g is not None for g in torch.autograd.grad(loss, [*run.network.parameters()]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in run.network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.network.state_dict().items())
    again = [[loss.item() for loss in batch_losses(run, 2)] for _ in range(2)]
    assert again[0] == again[1]
