"""The gradient of one global batch: over this worker's shards, then over all workers, in one order."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from seal_ray.phases.losses import takes_partners
from seal_ray.phases.schedule import owner
from seal_ray.training.shard_sums import Partial, WorkersSum, add_partial

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

    from seal_ray.data.images import Shard
    from seal_ray.phases.losses import Loss
    from seal_ray.phases.schedule import Phase
    from seal_ray.training.run import Run

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Backward = Callable[[Sequence["Shard"], Tensor | None], None]


def gradient_passes(run: Run, phase: Phase) -> Backward:
    """`backward(batch, outcomes)` for a phase: afterwards every `.grad` is the global batch's.

    That is the mean over its shards, added in the order of `seal_ray.training.shard_sums`, so that the number
    of workers does not change it. batch: this worker's shards, each followed by that of its partners where
    the loss takes them; these move the running statistics, too. outcomes: None, or (accumulation, 1 + shard
    size) to be filled with each shard's loss and, for each image, 1 where its label is predicted, else 0;
    None also means that no running statistics move. They move with the worker's first shard only, so that
    rank 0's are those of shard 0.
    """
    network, world, shards = run.network, run.world, run.recipe.shards
    first = world.rank * run.accumulation
    losses = _losses_by_part(run, phase)
    moved = [parameter for _, parameters in losses for parameter in parameters]
    partials: list[Partial[list[Tensor]]] = []
    """What the shards before the worker's last add up to, for each parameter of `moved`."""
    # By hand where one backward pass is not enough: DDP expects exactly one.
    by_hand = world.workers > 1 and len(losses) > 1
    wrapped = _wrap(run, moved, partials) if world.workers > 1 and not by_hand else None
    share = (torch.ones((), dtype=run.dtype) / shards).to(world.device)
    teacher = run.teacher() if phase.loss.teacher else None
    recipe_loss: Any = run.recipe.loss
    pairs = takes_partners(recipe_loss)
    norms = [module for module in network.modules() if isinstance(module, Norm)]

    def values(
        forward: nn.Module,
        shard: Shard,
        partners: Shard | None,
        index: int,
        outcome: Tensor | None,
        *,
        moves: bool,
    ) -> list[Tensor]:
        """Each loss of shard `index`; moves: whether running statistics do."""
        images, labels, keep = shard
        total = recipe_loss
        with run.autocast(), contextlib.nullcontext() if moves else still(norms):
            with run.drawing(index, keep):
                logits = forward(images)
            with torch.no_grad():
                taught = teacher(images).to(run.dtype) if teacher is not None else None
                if partners is not None:
                    with run.drawing(shards + index, partners[2]):
                        beside = run.forward(partners[0]).to(run.dtype)
                    total = functools.partial(recipe_loss, partner_logits=beside)
        logits = logits.to(run.dtype)
        found = []
        for loss, _ in losses:
            value = loss(logits, labels, recipe_loss=total, teacher_logits=taught)
            if outcome is not None and loss is phase.loss:
                outcome[0] = value.detach()
                dominant = labels if labels.ndim == 1 else labels.argmax(dim=1)
                torch.eq(logits.detach().argmax(dim=1), dominant, out=outcome[1:])
            found.append(value)
        return found

    def backward(batch: Sequence[Shard], outcomes: Tensor | None) -> None:
        network.zero_grad(set_to_none=True)
        own, partners = (batch[::2], batch[1::2]) if pairs else (batch, repeat(None))
        for k, (shard, beside) in enumerate(zip(own, partners, strict=False)):
            last = k == len(own) - 1
            forward = wrapped if wrapped is not None and last else run.forward
            outcome = None if outcomes is None else outcomes[k]
            found = values(forward, shard, beside, first + k, outcome, moves=k == 0 and outcomes is not None)
            gradients: list[Tensor] = []
            for i, (value, (_, parameters)) in enumerate(zip(found, losses, strict=True)):
                again = i < len(losses) - 1
                if parameters and last:
                    torch.autograd.backward(value, share, inputs=parameters, retain_graph=again)
                elif parameters:
                    gradients += torch.autograd.grad(value, parameters, share, retain_graph=again)
            if not last:
                add_partial(partials, Partial(0, first + k, gradients), shards, _added)
        if wrapped is None:
            sums = [cast("Tensor", parameter.grad) for parameter in moved]
            add_partial(partials, Partial(0, first + len(own) - 1, sums), shards, _added_to)
            if by_hand:
                flat = [torch.cat([g.reshape(-1) for g in partial.value]) for partial in partials]
                total = WorkersSum(flat, shards, world)
                total.add()
                for gradient, mean in zip(sums, total.result().split([g.numel() for g in sums]), strict=True):
                    gradient.copy_(mean.view(gradient.shape))
        partials.clear()

    return backward


def _added(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """The sum, in new tensors: what autograd returns may be one tensor for two parameters."""
    return list(torch._foreach_add(right, left))


def _added_to(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """The sum, in the tensors of `right`, each the `.grad` of a parameter."""
    torch._foreach_add_(right, left)
    return right


def _losses_by_part(run: Run, phase: Phase) -> list[tuple[Loss, list[nn.Parameter]]]:
    """The losses of a phase, the phase's own first, with the parameters that each one moves."""
    moved: dict[Loss, list[nn.Parameter]] = {phase.loss: []}
    for name, parameter in run.network.named_parameters():
        index = owner(phase.groups, run.parts, run.parts.stage_of(name))
        if index is not None:
            moved.setdefault(phase.groups[index].loss or phase.loss, []).append(parameter)
    return list(moved.items())


def _wrap(
    run: Run, moved: Sequence[nn.Parameter], partials: Sequence[Partial[list[Tensor]]]
) -> DistributedDataParallel:
    """DDP for a phase, which adds the worker's last shard, `partials` and the other workers in tree order.

    Which parameters share a bucket, which DDP decides anew after the first step, does not matter to it.
    """
    world, shards = run.world, run.recipe.shards
    if run.placement.compile:
        # Cut at the buckets, the network would be another graph than the one of the shards before the last.
        torch._dynamo.config.optimize_ddp = False
    ddp = DistributedDataParallel(
        run.forward,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
    at: dict[Tensor, int] = {parameter: i for i, parameter in enumerate(moved)}
    last = (world.rank + 1) * run.accumulation - 1
    under_way: list[tuple[WorkersSum, Tensor, Future[Tensor]]] = []

    def add_up(bucket: GradBucket) -> Future[Tensor]:
        """DDP's communication hook: a bucket's gradients of the last shard become those of the batch.

        While a bucket is exchanged the backward pass goes on to the next one.
        """
        buffer, parameters = bucket.buffer(), bucket.parameters()
        flat = [
            Partial(
                part.level, part.index, _flat([part.value[at[p]] for p in parameters], parameters, buffer)
            )
            for part in partials
        ]
        add_partial(flat, Partial(0, last, buffer), shards, lambda left, right: right.add_(left))
        if under_way:
            under_way[-1][0].add()
        done: Future[Tensor] = Future(devices=[world.device] if world.device.type == "cuda" else None)
        under_way.append((WorkersSum([partial.value for partial in flat], shards, world), buffer, done))
        if bucket.is_last():
            under_way[-1][0].add()
            for total, target, future in under_way:
                future.set_result(target.copy_(total.result()))
            under_way.clear()
        return done

    ddp.register_comm_hook(None, lambda _, bucket: add_up(bucket))  # DDP wants no annotations as text
    return ddp


def _flat(gradients: Sequence[Tensor], parameters: Sequence[Tensor], buffer: Tensor) -> Tensor:
    """Gradients as a bucket holds them: one parameter after the other, each in its own memory order."""
    flat, start = torch.empty_like(buffer), 0
    for gradient, parameter in zip(gradients, parameters, strict=True):
        flat.as_strided(parameter.shape, parameter.stride(), start).copy_(gradient)
        start += parameter.numel()
    return flat


@contextlib.contextmanager
def still(norms: Sequence[Norm]) -> Iterator[None]:
    """Train-mode normalisation by batch statistics that leaves the running ones alone."""
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
