"""Many logistic regressions minimised together by L-BFGS, whatever space their weights are held in."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from seal_ray.errors import SealRayWarning

MAX_ITERATIONS = 500

HISTORY = 10
"""Pairs of steps and gradient changes that L-BFGS remembers."""

FLAT = 0.4
"""A line search ends where the slope is at most this share of what it was at the start."""

SEARCHES = 20
"""Points that a line search tries at most."""


class Space(Protocol):
    """B regressions on N examples each, and how their weights and gradients are written down.

    Gradients are (B, classes, n + 1), the bias last. Weights (B, classes, ...) begin with n coefficients a
    class and end with n + 1 numbers, the bias last, whose products with a gradient's are its slope along
    the weights. Where weights are held as they are, these are the same numbers.
    """

    @property
    def targets(self) -> Tensor:
        """One-hot, float32 (B or 1, classes, N)."""
        ...

    @property
    def size(self) -> int:
        """The number n."""
        ...

    @property
    def decay(self) -> Tensor:
        """(B,), the weight decays."""
        ...

    def origin(self) -> Tensor:
        """Weights of zero."""
        ...

    def logits(self, weights: Tensor) -> Tensor:
        """(B, classes, N)."""
        ...

    def gradient(self, residual: Tensor, weights: Tensor) -> Tensor:
        """Of the objective, of which `residual` (B, classes, N) is the derivative by the logits."""
        ...

    def precondition(self, gradient: Tensor) -> Tensor:
        """Weights: H^-1 gradient, for some H near the objective's Hessian or above which that lies."""
        ...

    def select(self, kept: Tensor) -> Self:
        """The problems at the indices `kept`."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """Minima of B regressions: weights as their space holds them; the rest (B,).

    objective: float64, in nats. gradient_norm: sqrt(g' H^-1 g), in sqrt(nats).
    """

    weights: Tensor
    objective: Tensor
    iterations: Tensor
    gradient_norm: Tensor


def minimise(space: Space, tolerance: float, max_iterations: int) -> Solution:
    """Minima of B objectives, mean cross entropy + decay / 2 ||weights||^2, from zero weights, in lockstep.

    L-BFGS (Nocedal & Wright 2006, algorithm 7.4) whose initial inverse Hessian is a multiple of the space's
    H^-1. A problem is finished when g' H^-1 g / 2 is at most tolerance x objective: what it could still
    gain, if H were the Hessian. An iteration needs one product with the examples for the logits of the
    direction, after which the line search needs none, and one for the gradient. Warns (SealRayWarning) of
    problems unfinished at the end.
    """
    state = _start(space)
    problems = torch.arange(len(state.objective), device=state.objective.device)
    history: deque[_Pair] = deque(maxlen=HISTORY)
    left: list[tuple[Tensor, _State]] = []
    for _ in range(max_iterations):
        active = ~(state.slack <= tolerance)
        if 2 * int(active.sum()) <= len(active):
            done, kept = (~active).nonzero()[:, 0], active.nonzero()[:, 0]
            left.append((problems[done], _select(state, done)))
            state, space, problems = _select(state, kept), space.select(kept), problems[kept]
            history = deque((_select(pair, kept) for pair in history), maxlen=HISTORY)
            active = active[kept]
            if not len(kept):
                break
        state, pair = _advance(space, state, _direction(history, state) * _wide(active))
        history.append(pair)
    left.append((problems, state))
    order = torch.cat([some for some, _ in left]).argsort()
    weights, objective, iterations, slack = (
        torch.cat([getattr(some, name) for _, some in left])[order]
        for name in ("weights", "objective", "iterations", "slack")
    )
    _warn_of_unfinished(slack, tolerance)
    return Solution(weights, objective, iterations, (2 * slack * objective).sqrt())


@dataclass(frozen=True, eq=False)
class _State:
    """Where B problems are. scaled: H^-1 gradient; slack (B,): what can still be gained over objective."""

    weights: Tensor
    logits: Tensor
    gradient: Tensor
    scaled: Tensor
    objective: Tensor
    slack: Tensor
    iterations: Tensor


@dataclass(frozen=True, eq=False)
class _Pair:
    """A step and how the gradient changed on it; the last two (B, 1, 1), 0 and 1 if it says nothing."""

    step: Tensor
    change: Tensor
    scaled_change: Tensor
    inverse_curvature: Tensor  # 1 / (step' change)
    scale: Tensor  # step' change / (change' H^-1 change)


_Record = TypeVar("_Record", _State, _Pair)


def _select(record: _Record, kept: Tensor) -> _Record:
    return type(record)(**{name: tensor[kept] for name, tensor in vars(record).items()})


def _start(space: Space) -> _State:
    weights = space.origin()
    logits = space.logits(weights)
    iterations = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
    return _arrive(space, weights, logits, _residual(logits, space.targets), iterations)


def _arrive(space: Space, weights: Tensor, logits: Tensor, residual: Tensor, iterations: Tensor) -> _State:
    gradient = space.gradient(residual, weights)
    scaled = space.precondition(gradient)
    objective = _cross_entropy(logits, space.targets) + _penalty(space, weights, weights) / 2
    slack = _product(gradient, scaled).abs() / (2 * objective)
    return _State(weights, logits, gradient, scaled, objective, slack, iterations)


def _advance(space: Space, state: _State, direction: Tensor) -> tuple[_State, _Pair]:
    """Where a line search along the direction leads, and the pair to remember; 0 directions stay."""
    change, slope = space.logits(direction), _product(state.gradient, direction)
    penalties = (_penalty(space, some, direction) for some in (state.weights, direction))
    length, residual = _search(space.targets, state.logits, change, slope, *penalties)
    step = length * direction
    arrived = _arrive(
        space,
        state.weights + step,
        torch.addcmul(state.logits, length, change),
        residual,
        state.iterations + (slope != 0),
    )
    by, scaled_by = arrived.gradient - state.gradient, arrived.scaled - state.scaled
    curvature, square = _wide(_product(by, step)), _wide(_product(by, scaled_by))
    usable = (curvature > 0) & (square > 0)
    inverse, scale = torch.where(usable, 1 / curvature, 0), torch.where(usable, curvature / square, 1)
    return arrived, _Pair(step, by, scaled_by, inverse, scale)


def _direction(history: Sequence[_Pair], state: _State) -> Tensor:
    """L-BFGS's two loops; as preconditioned changes are remembered, they need no preconditioning."""
    rest, result = state.gradient, state.scaled
    shares = []
    for pair in reversed(history):
        share = pair.inverse_curvature * _wide(_product(rest, pair.step))
        rest = torch.addcmul(rest, share, pair.change, value=-1)
        result = torch.addcmul(result, share, pair.scaled_change, value=-1)
        shares.append(share)
    if history:
        result = history[-1].scale * result
    for pair, share in zip(history, reversed(shares), strict=True):
        back = pair.inverse_curvature * _wide(_product(pair.change, result))
        result = torch.addcmul(result, share - back, pair.step)
    return -result


def _search(
    targets: Tensor, logits: Tensor, change: Tensor, slope: Tensor, linear: Tensor, quadratic: Tensor
) -> tuple[Tensor, Tensor]:
    """Lengths (B, 1, 1) at which the slope is at most FLAT of `slope` (B,), and the residuals there.

    The logits move by length x change, the penalty's slope is linear + length x quadratic. Slopes alone
    decide: in float32 they mean something long after differences of the objective are rounding, and as it is
    convex their sign says on which side its minimum lies. Secants, kept inside the bracket.
    """
    length, low, at_low = torch.ones_like(linear), torch.zeros_like(linear), slope.double()
    high, flat = torch.full_like(linear, torch.inf), FLAT * slope.double().abs()
    for _ in range(SEARCHES):
        factor = _wide(length).to(logits)
        residual = _residual(torch.addcmul(logits, factor, change), targets)
        found = (residual * change).sum(dim=(1, 2)) + linear + length * quadratic
        steep = found.abs() > flat
        if not steep.any():
            break
        secant = low + (length - low) * at_low / (at_low - found).clamp_max(-1e-300)
        beyond = found > 0
        low, high = torch.where(beyond, low, length), torch.where(beyond, length, high)
        at_low = torch.where(beyond, at_low, found)
        width = (high - low).clamp_max(4 * length)
        secant = secant.clamp(low + 0.05 * width, low + 0.95 * width)
        length = torch.where(steep, secant, length)
    return factor, residual


def _residual(logits: Tensor, targets: Tensor) -> Tensor:
    """(softmax - targets) / N over dim 1. By hand: torch's softmax of an inner dim is 3 times slower."""
    powers = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    return powers.div_(powers.sum(dim=1, keepdim=True)).sub_(targets).div_(logits.shape[2])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,), the mean over the examples, float64."""
    top = logits.amax(dim=1, keepdim=True)
    sums = (logits - top).exp_().sum(dim=1).log_().add_(top[:, 0])
    return sums.sub_((logits * targets).sum(dim=1)).mean(dim=1, dtype=torch.float64)


def _product(gradient: Tensor, weights: Tensor) -> Tensor:
    """(B,), of gradients with weights."""
    return (gradient * weights[..., -gradient.shape[2] :]).sum(dim=(1, 2))


def _penalty(space: Space, first: Tensor, second: Tensor) -> Tensor:
    """(B,), float64: decay x the inner product of two weights without their biases."""
    products = first[..., : space.size] * second[..., -space.size - 1 : -1]
    return space.decay * products.sum(dim=(1, 2), dtype=torch.float64)


def _wide(numbers: Tensor) -> Tensor:
    return numbers[:, None, None]


def _warn_of_unfinished(slack: Tensor, tolerance: float) -> None:
    if unfinished := int((~(slack <= tolerance)).sum()):
        warnings.warn(
            f"{unfinished} of {len(slack)} logistic regressions did not converge: {slack.max():.2g} of the "
            f"objective may be left to gain, tolerance {tolerance:g}; raise max_iterations or weight_decay",
            SealRayWarning,
            stacklevel=3,
        )
