"""What a run takes of a GPU, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seal_ray.errors import ConfigError
from seal_ray.recipe import Recipe
from seal_ray.training.memory import CONTEXT, bytes_needed, check_share, resident_bytes, saved_bytes
from tests.runs import tiny_recipe

MIB = 2**20


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_backward_pass_keeps_is_counted_once(device: str) -> None:
    """Images (2, 3, 8, 8), the outputs (2, 4, 8, 8) of convolution and ReLU, floats of 4 bytes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)).to(device)
    images = torch.empty(2, 3, 8, 8, device=device)
    assert saved_bytes(network, images) == 4 * (2 * 3 * 8 * 8 + 2 * 4 * 8 * 8)


def needed(**changes: object) -> int:
    return bytes_needed(tiny_recipe(**{"shards": 1, **changes}), 3, (16, 16))  # type: ignore[arg-type]


def test_a_run_needs_its_state_and_what_steps_keep() -> None:
    recipe = tiny_recipe(batch_size=30)
    network = recipe.model.outline(3)
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    kept = saved_bytes(network, torch.empty(30, 3, 16, 16, device="meta"))
    assert kept > 30 * 3 * 16 * 16 * 4
    assert needed(batch_size=30) == CONTEXT + weights + 2 * 2 * weights + 2 * kept
    assert needed(batch_size=30, optimizer={"name": "adamw"}) == needed(batch_size=30) + 2 * weights
    # The average and the teacher, a copy of either that is being written, and a network made of it.
    assert needed(batch_size=30, averaging="ema") == needed(batch_size=30) + 3 * weights
    assert needed(batch_size=30, method="ban") == needed(batch_size=30) + 3 * weights
    assert needed(batch_size=30, method="ban", averaging="swa") == needed(batch_size=30) + 6 * weights
    assert needed(batch_size=30, shards=2) < needed(batch_size=30) < needed(batch_size=60)


def test_the_paper_s_run_fits_a_quarter_of_an_a100_and_a_tenth_not() -> None:
    paper = Recipe.model_validate(
        {
            "data": {"path": "unused"},
            "method": "normal",
            "budget": {"epochs": 160, "generation_length": 160},
        }
    )
    memory = 40 * 2**30
    whole = bytes_needed(paper, 200, (64, 64)) + resident_bytes(110_000, (64, 64), memory / 4)
    assert 2.0 < whole / 2**30 < 4.0
    check_share(whole, 0.25, memory)
    with pytest.raises(ConfigError, match=r"needs about .* 0.05 of this GPU is 2.0 GiB"):
        check_share(whole, 0.05, memory)


def test_images_lie_on_a_gpu_where_they_take_a_quarter_of_the_share() -> None:
    assert resident_bytes(100, (64, 64), 4 * 100 * 64 * 64 * 3) == 100 * 64 * 64 * 3
    assert resident_bytes(101, (64, 64), 4 * 100 * 64 * 64 * 3) == 0
