"""The gradient of one global batch: over this worker's shards, then averaged over the workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seal_ray.network import NORMS, Norm
from seal_ray.optim import owner
from seal_ray.world import World

if TYPE_CHECKING:
    from seal_ray.data.images import Shard
    from seal_ray.losses import Loss
    from seal_ray.run import Run
    from seal_ray.schedule import Phase

Backward = Callable[[Sequence["Shard"], Tensor | None], None]


def gradient_passes(run: Run, phase: Phase) -> Backward:
    """`backward(shards, outcomes)` for one epoch: afterwards every `.grad` is the global batch's.

    outcomes: None, or (accumulation, 2) to be filled with each shard's loss and number of correct
    predictions; None also means that no running statistics move. Statistics move with the worker's first
    shard only, so rank 0's are those of shard 0 however many workers there are.
    """
    network, world, smoothing = run.network, run.world, run.recipe.loss.label_smoothing
    losses = _losses_by_part(run, phase)
    # Reduction by hand where one backward pass is not enough: DDP expects exactly one.
    by_hand = world.workers > 1 and len(losses) > 1
    wrapped = _wrap(run.forward, world) if world.workers > 1 and not by_hand else None
    forward = wrapped or run.forward
    teacher = run.teacher() if phase.loss.teacher else None
    norms = [module for module in network.modules() if isinstance(module, NORMS)]

    def backward(shards: Sequence[Shard], outcomes: Tensor | None) -> None:
        network.zero_grad(set_to_none=True)
        for k, (images, labels, keep) in enumerate(shards):
            waits = wrapped is not None and k < len(shards) - 1
            moving = contextlib.nullcontext() if k == 0 and outcomes is not None else _still(norms)
            with wrapped.no_sync() if wrapped is not None and waits else contextlib.nullcontext(), moving:
                with run.autocast():
                    logits = forward(images, keep)
                    with torch.no_grad():
                        taught = teacher(images).float() if teacher is not None else None
                logits = logits.float()
                for i, (loss, parameters) in enumerate(losses):
                    value = loss(logits, labels, label_smoothing=smoothing, teacher_logits=taught)
                    if outcomes is not None and loss is phase.loss:
                        outcomes[k, 0] = value.detach()
                        outcomes[k, 1] = (logits.detach().argmax(dim=1) == labels).sum()
                    if parameters != []:
                        again = i < len(losses) - 1
                        torch.autograd.backward(value / len(shards), inputs=parameters, retain_graph=again)
        if by_hand:
            _average([p.grad for p in network.parameters() if p.grad is not None], world)

    return backward


def _losses_by_part(run: Run, phase: Phase) -> list[tuple[Loss, list[nn.Parameter] | None]]:
    """The losses of a phase with the parameters each one moves; (phase.loss, None) when it is the only."""
    if all(group.loss is None for group in phase.groups):
        return [(phase.loss, None)]
    moved: dict[Loss, list[nn.Parameter]] = {phase.loss: []}
    for name, parameter in run.network.named_parameters():
        index = owner(phase.groups, run.parts, name.split(".", 1)[0])
        if index is not None:
            moved.setdefault(phase.groups[index].loss or phase.loss, []).append(parameter)
    return list(moved.items())


def _wrap(forward: nn.Module, world: World) -> DistributedDataParallel:
    """DDP for one epoch. Made anew each epoch, because it regroups its buckets after the first step, and
    a resumed process would otherwise sum in another order than one that went on.
    """
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        forward, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
    )


@contextlib.contextmanager
def _still(norms: Sequence[Norm]) -> Iterator[None]:
    """Train-mode normalisation by batch statistics that leaves the running ones alone."""
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _average(gradients: Sequence[Tensor], world: World) -> None:
    """Average over workers, in one reduction."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) / world.workers
    world.total(flat)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
