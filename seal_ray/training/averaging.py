"""Averages of the weights, kept in `run.carried` beside training, and evaluated with their own statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seal_ray.data.loaders import on_device
from seal_ray.phases.averaging import Ema, Swa
from seal_ray.streams import stream
from seal_ray.training.gradients import Norm

if TYPE_CHECKING:
    from seal_ray.phases.schedule import Position
    from seal_ray.training.run import Run

AVERAGED = "averaged"
"""What the average is called in `run.carried`, and the moment of the averaged network."""
BATCH, BATCHES = 256, 8
"""Training images from which statistics are estimated again: of one batch, and batches at most."""


def averaged_parameters(run: Run) -> list[Tensor]:
    """The average as it is kept, in the network's order of parameters; empty where there is none yet."""
    kept = run.carried.get(AVERAGED)
    return [kept[name] for name, _ in run.network.named_parameters()] if kept else []


def restore_average(run: Run) -> None:
    """After a checkpoint is read: in the memory order of the weights, which may decide last bits."""
    if kept := run.carried.get(AVERAGED):
        for name, weights in run.network.named_parameters():
            kept[name] = torch.empty_like(weights, requires_grad=False).copy_(kept[name])


def average_steps(run: Run) -> Callable[[], None]:
    """What is to be called after each step of a phase: it updates an EMA, without a wait for the device."""
    averaging = run.recipe.averaging
    if not isinstance(averaging, Ema):
        return lambda: None
    if run.next.epoch == 0:
        _start(run)
    kept, weights, share = averaged_parameters(run), _weights(run), 1 - averaging.decay
    return lambda: torch._foreach_lerp_(kept, weights, share)


def average_epoch(run: Run, position: Position) -> None:
    """After each epoch: the mean of the weights at the ends of the last epochs of a generation, for SWA."""
    averaging = run.recipe.averaging
    if not isinstance(averaging, Swa):
        return
    count = averaging.count(position.epoch, run.recipe.budget.length)
    if count == 1:
        _start(run)
    elif count:
        torch._foreach_lerp_(averaged_parameters(run), _weights(run), 1 / count)


def _weights(run: Run) -> list[Tensor]:
    return [parameter.detach() for parameter in run.network.parameters()]


def _start(run: Run) -> None:
    run.carried[AVERAGED] = {name: p.detach().clone() for name, p in run.network.named_parameters()}


@contextlib.contextmanager
def averaged_network(run: Run) -> Iterator[None]:
    """While it lasts, the network holds the average and statistics estimated for it, and is in eval mode."""
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    for weights, average in zip(_weights(run), averaged_parameters(run), strict=True):
        weights.copy_(average)
    _estimate_statistics(run)
    yield
    run.network.load_state_dict(before)


@torch.no_grad()
def _estimate_statistics(run: Run) -> None:
    """Running means and variances: the mean over batches of training images, which are not augmented.

    The images are drawn once a run, the same for any number of workers, each of which reads all of them.
    Source: torch.optim.swa_utils.update_bn.
    """
    norms = [module for module in run.network.modules() if isinstance(module, Norm)]
    if not norms:
        return
    count = min(len(run.indices), BATCH * BATCHES)
    shuffled = torch.randperm(len(run.indices), generator=stream(run.recipe.seed, "statistics"))
    order = run.indices[shuffled[: max(count - count % BATCH, min(count, BATCH))].numpy()]
    pixels = torch.cat(list(run.train.loader.batches(order)))  # whose batches depend on the workers
    momenta = [norm.momentum for norm in norms]
    run.network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
        norm.train()
    with run.autocast():
        for batch in pixels.split(BATCH):
            run.network(run.normaliser.of_bytes(on_device(batch, run.world.device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
