"""What an edit may ask of the data: the loss of the next epoch's first batches at the present weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seal_ray.training.gradients import Norm, still

if TYPE_CHECKING:
    from seal_ray.training.run import Run


def batch_losses(run: Run, batches: int) -> Iterator[Tensor]:
    """The recipe's loss (scalar, mean over a shard) of each shard of the next epoch's first `batches`
    batches.

    In order, differentiable by every parameter, in train mode, the images augmented as that epoch will see
    them; of an epoch with fewer batches all. Neither running statistics nor the state of torch's generators
    move. Each worker computes all of it, shard by shard, so that their number changes nothing.
    """
    network, recipe = run.network.train().requires_grad_(True), run.recipe
    norms = [module for module in network.modules() if isinstance(module, Norm)]
    seen = (shard for batch in run.batches(run.next, of_all=batches) for shard in run.train.augmented(batch))
    for done, (images, labels, keep) in enumerate(seen):
        loss: Any = recipe.loss
        run.step, shard = divmod(done, recipe.shards)
        with run.autocast(), still(norms):
            with run.drawing(shard, keep):
                logits = network(images)
            if run.pairs:
                partners, _, kept = next(seen)
                with torch.no_grad(), run.drawing(recipe.shards + shard, kept):
                    loss = functools.partial(loss, partner_logits=network(partners).to(run.dtype))
        yield loss(logits.to(run.dtype), labels)
