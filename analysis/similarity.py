"""How alike representations are, and how far weights have moved between two states of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seal_ray.errors import ConfigError
from seal_ray.networks import stages
from seal_ray.runs.checkpoint import State


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two embeddings of the same images; nan when one is constant.

    ||Y' X||_F^2 / (||X' X||_F ||Y' Y||_F) of centred columns, in float64, in [0, 1]: the normalised HSIC of
    linear kernels. x: (N, F); y: (N, G). Source: Kornblith et al., ICML 2019, arXiv 1905.00414, section 3.
    """
    if len(x) != len(y):
        raise ConfigError(f"CKA compares embeddings of the same images, not of {len(x)} and {len(y)}")
    x, y = _centred(x), _centred(y)
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / own)


def _centred(x: Tensor) -> Tensor:
    # Relative to the first row first, so that a constant column becomes exactly 0.
    x = x.double() - x[:1].double()
    return x - x.mean(dim=0)


@dataclass(frozen=True)
class Movement:
    """How the parameters of a stage, as one vector, differ between two states."""

    distance: float  # Euclidean
    relative: float  # distance over the norm before; inf from 0
    cosine: float  # between the vectors before and after; nan when one is 0
    norm_before: float
    norm_after: float


def movement(
    network: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Movement]:
    """The movement of each stage of `network` from `before` to `after`, in depth order.

    Parameters only, in float64: running statistics are not weights.
    """
    old, new = _vectors(network, before), _vectors(network, after)
    return {stage: _movement(old[stage], new[stage]) for stage in old}


def _movement(before: Tensor, after: Tensor) -> Movement:
    distance, old, new = (float(torch.linalg.vector_norm(v)) for v in (after - before, before, after))
    return Movement(
        distance=distance,
        relative=distance / old if old else math.inf,
        cosine=float(before @ after) / (old * new) if old and new else math.nan,
        norm_before=old,
        norm_after=new,
    )


def weight_norms(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each stage's parameters, in depth order."""
    return {stage: float(torch.linalg.vector_norm(v)) for stage, v in _vectors(network, state).items()}


def _vectors(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each stage's parameters as one float64 vector."""
    names = [name for name, _ in network.named_parameters()]
    return {
        stage: torch.cat(
            [state[name].flatten().double().cpu() for name in names if name.split(".", 1)[0] == stage]
        )
        for stage in stages(network)
    }


@dataclass(frozen=True)
class Barrier:
    """The loss on the straight line from one state to another.

    height: max over the line of loss(a) - ((1 - a) loss(0) + a loss(1)), at least 0 (at the ends).
    Source: Frankle et al., ICML 2020, arXiv 1912.05671; Entezari et al., ICLR 2022, arXiv 2110.06296.
    """

    positions: tuple[float, ...]  # 0 at the first state, 1 at the second
    losses: tuple[float, ...]
    height: float


def loss_barrier(loss: Callable[[State], float], start: State, end: State, *, points: int = 11) -> Barrier:
    """Evaluate `loss` at `points` evenly spaced states from `start` to `end`, both included.

    Floating-point tensors are interpolated, running statistics among them, so a network with batch norm
    should re-estimate those inside `loss`; of integer tensors the nearer end's are taken.
    Raises ConfigError for fewer than 3 points.
    """
    if points < 3:
        raise ConfigError(f"points: {points} leave nothing between the ends; use at least 3")
    positions = tuple(i / (points - 1) for i in range(points))
    losses = tuple(loss(interpolate(start, end, at)) for at in positions)
    first, last = losses[0], losses[-1]
    rises = (value - ((1 - at) * first + at * last) for at, value in zip(positions, losses, strict=True))
    return Barrier(positions, losses, max(0.0, *rises))


def interpolate(start: State, end: State, at: float) -> State:
    """The state a share `at` of the way; exactly `start` at 0 and `end` at 1."""
    return {
        name: torch.lerp(tensor, end[name], at)
        if tensor.is_floating_point()
        else (tensor if at < 0.5 else end[name]).clone()
        for name, tensor in start.items()
    }
