"""What a run takes of a GPU's memory, estimated without one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from seal_ray.device import dtype_of
from seal_ray.errors import ConfigError
from seal_ray.phases.averaging import Averaging
from seal_ray.training.optimizer import state_copies

if TYPE_CHECKING:
    from seal_ray.recipe import Recipe

CONTEXT = 2**29
"""Bytes that CUDA and its libraries take in a process, about."""
RESIDENT_SHARE = 1 / 4
"""Of what a worker has of a GPU's memory, what images may take that lie there."""


def resident_bytes(count: int, size: tuple[int, int], memory: float) -> int:
    """Bytes of so many images (H, W) of 3 channels where a GPU of this memory is to hold them, or 0."""
    held = count * math.prod(size) * 3
    return held if held <= memory * RESIDENT_SHARE else 0


def bytes_needed(recipe: Recipe, classes: int, size: tuple[int, int]) -> int:
    """About how many bytes of a GPU a worker takes at its peak, without images that lie there.

    Weights, gradients, the optimizer's state, what the method carries, averaged weights; a copy of them that
    is being written; the averaged network as it was last evaluated; the network that a carried teacher is;
    twice what the backward pass of a shard keeps, since a captured step has memory of its own. Without the
    last where the network cannot be computed without numbers.
    """
    network = recipe.model.outline(classes).to(dtype_of(recipe.precision))
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    averages, teaches = recipe.averaging != Averaging(), "teacher" in recipe.method.carry
    state = weights * (1 + state_copies(recipe.optimizer) + len(recipe.method.carry) + averages)
    like = next(network.parameters())
    shard = like.new_empty(recipe.batch_size // recipe.shards, 3, *size)
    try:
        kept = saved_bytes(network, shard)
    except Exception:  # it may be anybody's network
        kept = 0
    return int(CONTEXT + weights + 2 * state + weights * (averages + teaches) + 2 * kept)


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes that a backward pass keeps of a forward pass, beside parameters and buffers; also on `meta`."""
    own = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network.train()(images)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def check_share(needed: int, share: float, memory: int) -> None:
    """ConfigError where a worker that needs so many bytes has less of a GPU of so much memory."""
    if needed > share * memory:
        raise ConfigError(
            f"placement.gpus_per_worker: a worker needs about {needed / 2**30:.1f} GiB, and {share:g} of "
            f"this GPU is {share * memory / 2**30:.1f} GiB; raise it, or lower recipe.batch_size"
        )
