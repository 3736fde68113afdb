"""How one optimizer step is taken, as small frozen values.

`begin(network, part)` is called at each epoch's start and returns the step of that epoch, a function of
two others: `gradients()` leaves in every `.grad` the gradient averaged over the global batch, and
`update()` measures, clips and applies it. Nothing outlives the epoch, so a resumed run needs no state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from annotated_types import Ge, Gt

from seal_ray.networks import weighted_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


TINY = 1e-12
"""What is added to what is divided by."""
ETA = 0.01
"""What ASAM adds to the size of a weight, from its section 5."""


class Gradients(Protocol):
    """Zero, forward and backward over all shards of the global batch, averaged over the workers."""

    def __call__(self, *, first_pass: bool = True) -> None:
        """A pass that is not the first moves no running statistics and is not counted in the metrics."""
        ...


TakeStep = Callable[[Gradients, Callable[[], None]], None]


class Step(Protocol):
    """What turns gradients into an update."""

    passes: ClassVar[int]
    """How often it calls `gradients`; one that does not say so calls it once."""

    def begin(self, network: nn.Module, part: Callable[[str], Sequence[nn.Parameter]]) -> TakeStep:
        """The step of one epoch; `part(name)` lists the parameters of a part."""
        ...


@dataclass(frozen=True)
class Descend:
    """The gradient at the weights, then the optimizer (which climbs for ascending groups)."""

    passes: ClassVar[int] = 1

    def begin(self, network: nn.Module, part: Callable[[str], Sequence[nn.Parameter]]) -> TakeStep:
        """One pass."""
        return _descend


def _descend(gradients: Gradients, update: Callable[[], None]) -> None:
    gradients()
    update()


@dataclass(frozen=True)
class Sam:
    """Sharpness-aware step: the gradient at w + rho g / |g|, applied at w; g and |g| over `part` only.

    The first-pass gradient is that of the whole global batch. The weights return to w exactly (a copy,
    not a subtraction). Source: Foret et al., arXiv 2010.01412, algorithm 1. adaptive: the gradient at
    w + rho T^2 g / |T g|, with T = |w| + ETA for parameters called weight and 1 for others, so that the
    scale of a layer does not matter (ASAM, Kwon et al., arXiv 2102.11600, algorithm 1).
    """

    passes: ClassVar[int] = 2
    rho: Annotated[float, Gt(0)] = 0.05
    part: str = "all"
    adaptive: bool = False

    def begin(self, network: nn.Module, part: Callable[[str], Sequence[nn.Parameter]]) -> TakeStep:
        """Two passes a step."""
        moved = list(part(self.part))
        scaled = {p for name, p in network.named_parameters() if self.adaptive and name.endswith("weight")}

        def step(gradients: Gradients, update: Callable[[], None]) -> None:
            gradients()
            with _uphill(moved, self.rho, scaled):
                gradients(first_pass=False)
            update()

        return step


@dataclass(frozen=True)
class Gsam:
    """Surrogate-gap-guided step: g' - alpha h, applied at w, where g' is the gradient at w + rho g / |g|, and
    h what of g is orthogonal to it.

    h raises the loss at w without changing, to first order, the one at w + rho g / |g|, so that the gap
    between the two shrinks. Source: Zhuang et al., arXiv 2203.08065, algorithm 1, at a constant rho.
    """

    passes: ClassVar[int] = 2
    rho: Annotated[float, Gt(0)] = 0.05
    alpha: Annotated[float, Ge(0)] = 0.4

    def begin(self, network: nn.Module, part: Callable[[str], Sequence[nn.Parameter]]) -> TakeStep:
        """Two passes a step."""
        import torch

        moved = list(part("all"))

        def step(gradients: Gradients, update: Callable[[], None]) -> None:
            gradients()
            here = [p.grad.clone() for p in moved if p.grad is not None]
            with _uphill(moved, self.rho):
                gradients(first_pass=False)
            there = [p.grad for p in moved if p.grad is not None]
            dots = [
                torch.stack([(a * g).sum() for a, g in zip(one, there, strict=True)]) for one in (here, there)
            ]
            along = dots[0].sum() / (dots[1].sum() + TINY)
            for h, g in zip(here, there, strict=True):
                g.sub_(self.alpha * (h - along * g))
            update()

        return step


@contextlib.contextmanager
def _uphill(
    moved: Sequence[nn.Parameter], rho: float, scaled: Collection[nn.Parameter] = ()
) -> Iterator[None]:
    """At w + rho T^2 g / |T g|, over the parameters that have a gradient; afterwards at w, to the last bit.

    T is |w| + ETA for those in `scaled`, else 1.
    """
    import torch

    with torch.no_grad():
        held = [(p, p.grad, p.abs() + ETA if p in scaled else None) for p in moved if p.grad is not None]
        kept = [p.clone() for p, _, _ in held]
        steps = [(p, g if t is None else t * g, t) for p, g, t in held]
        scale = rho / (torch.nn.utils.get_total_norm([g for _, g, _ in steps]) + TINY)
        for p, g, t in steps:
            p.add_(g * scale if t is None else t * g * scale)
    yield
    with torch.no_grad():
        for (p, _, _), w in zip(held, kept, strict=True):
            p.copy_(w)


class Direction(Protocol):
    """What a part's gradient becomes before the update measures, clips and applies it."""

    def __call__(self, gradients: Sequence[Tensor], generator: torch.Generator) -> None:
        """Change the gradients of the part's parameters in place, the same on every worker.

        generator: on the CPU, for this part in this step.
        """
        ...


@dataclass(frozen=True)
class RandomDirection:
    """A direction as long as the gradient g, drawn anew in each step: |g| z / |z|, z ~ N(0, 1).

    |g| and |z| are over the part as a whole.
    """

    def __call__(self, gradients: Sequence[Tensor], generator: torch.Generator) -> None:
        """Replace the gradients."""
        for gradient, noise in zip(gradients, _noise(gradients, generator), strict=True):
            gradient.copy_(noise)


@dataclass(frozen=True)
class NoisyGradient:
    """The gradient g with Gaussian noise of a relative size: g + noise |g| z / |z|, z ~ N(0, 1).

    |g| and |z| are over the part as a whole.
    """

    noise: Annotated[float, Gt(0)]

    def __call__(self, gradients: Sequence[Tensor], generator: torch.Generator) -> None:
        """Add the noise."""
        for gradient, noise in zip(gradients, _noise(gradients, generator), strict=True):
            gradient.add_(noise, alpha=self.noise)


def _noise(gradients: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Gaussian noise, in all as large as the gradients; drawn on the CPU, in one order for any layout."""
    import torch

    sizes, like = [gradient.numel() for gradient in gradients], gradients[0]
    drawn = torch.randn(sum(sizes), generator=generator, dtype=like.dtype)
    drawn = drawn.div_(drawn.norm()).to(like.device).mul_(torch.nn.utils.get_total_norm(gradients))
    pieces = zip(drawn.split(sizes), gradients, strict=True)
    return [piece.view(gradient.shape) for piece, gradient in pieces]


@dataclass(frozen=True)
class Masked:
    """Weights of convolutions and linear layers that are exactly 0 when an epoch starts stay 0 in it.

    The mask is read off the weights, so a pruned network needs no mask beside it. Source: the sparse
    stage of dense-sparse-dense training, arXiv 1607.04381, section 3.
    """

    passes: ClassVar[int] = 1

    def begin(self, network: nn.Module, part: Callable[[str], Sequence[nn.Parameter]]) -> TakeStep:
        """One pass; the gradient of masked weights is zeroed before the update."""
        masks = [(layer.weight, layer.weight.detach() != 0) for _, layer in weighted_layers(network)]

        def step(gradients: Gradients, update: Callable[[], None]) -> None:
            gradients()
            for weight, mask in masks:
                if weight.grad is not None:
                    weight.grad.masked_fill_(~mask, 0)
            update()

        return step
