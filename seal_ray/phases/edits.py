"""In-place changes of weights before a phase's first step, as small frozen values.

Every draw comes from the context's streams, on the CPU, so an edit is a pure function of (weights, seed,
generation) and makes the same draws on every rank and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from annotated_types import Interval

from seal_ray.networks import (
    Parts,
    loose_parameters,
    residual_blocks,
    stage_parameters,
    stages,
    weighted_layers,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

State = dict[str, "Tensor"]


@dataclass(frozen=True)
class EditContext:
    """What an edit may use beside the network."""

    parts: Parts
    rng: Callable[[str], torch.Generator]
    """A stream for this purpose and this generation."""
    fixed_rng: Callable[[str], torch.Generator]
    """A stream for this purpose, the same in every generation."""
    fresh: Callable[[torch.Generator], State]
    """A draw of the network's own initial parameters and buffers, on the CPU: of `rng("edit")` a new one, of
    `fixed_rng("init")` the one that the run began with. A draw also in a run that began with weights from
    elsewhere, so that forgetting takes those away too.
    """
    carried: dict[str, State]
    """Named state beyond weights and optimizer, such as a teacher's weights, which is saved and resumed: an
    edit may set the entries that its method names in `carry`.
    """
    losses: Callable[[int], Iterator[Tensor]]
    """The recipe's loss (scalar) of each shard of so many batches, the first that the next epoch will see
    (fewer if it has fewer), in train mode, differentiable, at the weights as they are when it is computed.
    The same on every worker; running statistics stay.
    """


class Edit(Protocol):
    """An in-place change of the network."""

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Change the network in place, without gradients."""
        ...


def new_weights(network: nn.Module, context: EditContext, init: str) -> State:
    """A fresh draw for the weight of every convolution and linear layer, keyed by parameter name.

    Drawn for all layers, whichever are used, so the draw of one layer does not depend on the part.
    """
    import torch

    rng = context.rng("edit")
    if init == "model":
        fresh = context.fresh(rng)
        return {f"{name}.weight": fresh[f"{name}.weight"] for name, _ in weighted_layers(network)}
    drawn = {}
    for name, layer in weighted_layers(network):
        weight = torch.empty(layer.weight.shape)
        drawn[f"{name}.weight"] = torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=rng)
    return drawn


@dataclass(frozen=True)
class Reinit:
    """Conv and linear *weights* of a part get a new draw; norms, running statistics, biases are kept.

    init `reference`: kaiming_uniform(a = sqrt 5), as in the published code of Fortuitous Forgetting
    (arXiv 2202.00155); `model`: the network's own initialisation. Parameters that belong to no convolution,
    linear or norm layer, such as a class token, get a new draw of the network's own either way.
    """

    part: str
    init: Literal["reference", "model"] = "reference"

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Replace the weights of the part."""
        import torch

        drawn = new_weights(network, context, self.init)
        if loose := loose_parameters(network):
            fresh = context.fresh(context.rng("edit of loose parameters"))
            drawn |= {name: fresh[name] for name in loose}
        for name, parameter in network.named_parameters():
            if name in drawn and context.parts.holds(self.part, name):
                with torch.no_grad():
                    parameter.copy_(drawn[name])


@dataclass(frozen=True)
class Renew:
    """Every parameter and buffer of a part becomes a new draw of the network's own initialisation.

    draw: which of its generation's draws (0-based), for phases of one generation that each renew.
    """

    part: str
    draw: int = 0

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Replace what the part holds, norms and running statistics included."""
        fresh = context.fresh(context.rng(f"edit {self.draw}" if self.draw else "edit"))
        for name, tensor in network.state_dict().items():
            if context.parts.holds(self.part, name):
                tensor.copy_(fresh[name])


@dataclass(frozen=True)
class ShrinkAndPerturb:
    """w <- shrink * w + perturb * fresh for every parameter, norms and biases included; buffers are kept.

    Source: Ash and Adams, NeurIPS 2020, arXiv 1910.08475.
    """

    shrink: float
    perturb: float

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Move every parameter towards a draw of the network's own initialisation."""
        import torch

        fresh = context.fresh(context.rng("edit"))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.mul_(self.shrink).add_(self.perturb * fresh[name].to(parameter))


@dataclass(frozen=True)
class RenewAbove:
    """The lowest k = generation * K // generations of K blocks are kept and rescaled, the rest is renewed.

    The blocks are the residual blocks in depth order and, as the last, the classifier; of a network without
    residual blocks its stages. What lies below the first block is kept with it. Each kept parameter gets back
    the Euclidean norm that it had when the run's weights were drawn: w <- w * norm(initial) / norm(w), 0
    where it began at 0. Above, every parameter and buffer is a new draw of the network's own initialisation.
    Source: Alabdulmohsin et al., arXiv 2109.00267, and the comparison in the published code of
    Fortuitous Forgetting.
    """

    generation: int
    generations: int

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Rescale below, renew above."""
        first_of: dict[str, int] = {}
        """By parameter or module: its place in depth order, of a module that of its first parameter."""
        for place, name in enumerate(n for names in stage_parameters(network).values() for n in names):
            for holder in _holders(name):
                first_of.setdefault(holder, place)
        blocks = (*sorted(residual_blocks(network), key=first_of.__getitem__), stages(network)[-1])
        if len(blocks) == 1:
            blocks = stages(network)
        border = first_of[blocks[self.generation * len(blocks) // self.generations]]

        fresh, initial = context.fresh(context.rng("edit")), context.fresh(context.fixed_rng("init"))
        for name, tensor in network.state_dict().items():
            place = next((first_of[holder] for holder in _holders(name) if holder in first_of), 0)
            if place >= border:
                tensor.copy_(fresh[name])
            elif name in first_of and (norm := _norm(tensor)):
                tensor.mul_(_norm(initial[name]) / norm)


def _holders(name: str) -> Iterator[str]:
    """The parameter or buffer itself, then the modules that hold it, the innermost first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _norm(tensor: Tensor) -> float:
    """The Euclidean norm, added in float64 in logical order on the CPU: neither device nor format matters."""
    return float(tensor.detach().cpu().contiguous().double().norm())


@dataclass(frozen=True)
class MaskedReinit:
    """w <- mask * w + (1 - mask) * fresh, with a mask that is the same in every generation.

    mask `kels`: the first ceil(keep * C_out) filters x the first ceil(keep * C_in) channels of each
    convolution and linear layer, and of the classifier all outputs x the first ceil(keep * C_in) inputs, so
    that every class stays connected; `wels`: a random fraction `keep` of each layer's weights. Whatever is no
    weight of such a layer, or lies outside `part`, is kept. Source: Knowledge Evolution, CVPR 2021.
    """

    keep: Annotated[float, Interval(gt=0, lt=1)] = 0.8
    mask: Literal["kels", "wels"] = "kels"
    part: str = "all"

    def masks(self, network: nn.Module, context: EditContext) -> dict[str, Tensor]:
        """Boolean masks of the kept weights, keyed by parameter name, shaped as the weights."""
        import torch

        rng = context.fixed_rng("mask")
        kept = {}
        for name, layer in weighted_layers(network):
            shape = layer.weight.shape
            mask = torch.zeros(shape, dtype=torch.bool)
            if self.mask == "kels":
                head = context.parts.holds("head", f"{name}.weight")
                outputs = shape[0] if head else math.ceil(self.keep * shape[0])
                mask[:outputs, : math.ceil(self.keep * shape[1])] = True
            else:
                chosen = torch.randperm(mask.numel(), generator=rng)[: round(self.keep * mask.numel())]
                mask.view(-1)[chosen] = True
            kept[f"{name}.weight"] = mask
        return kept

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Replace the weights outside the mask by a draw of the network's own initialisation."""
        import torch

        drawn = new_weights(network, context, "model")
        masks = self.masks(network, context)
        for name, layer in weighted_layers(network):
            key = f"{name}.weight"
            if not context.parts.holds(self.part, key):
                continue
            device = layer.weight.device
            with torch.no_grad():
                layer.weight.copy_(torch.where(masks[key].to(device), layer.weight, drawn[key].to(device)))


@dataclass(frozen=True)
class Prune:
    """The floor(share * n) weights of smallest size in each convolution and linear layer become 0.

    Ties go to the smaller index. Source: dense-sparse-dense training, arXiv 1607.04381, section 3.
    """

    share: Annotated[float, Interval(gt=0, lt=1)] = 0.3

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Zero the smallest weights of each layer."""
        import torch

        share = Fraction(str(self.share))  # exact, so that 0.7 of 90 is 63
        for _, layer in weighted_layers(network):
            # In logical order on the CPU: memory format and device must not decide ties.
            flat = layer.weight.detach().cpu().contiguous().view(-1)
            smallest = flat.abs().argsort(stable=True)[: math.floor(share * flat.numel())]
            flat = flat.clone()
            flat[smallest] = 0
            with torch.no_grad():
                layer.weight.copy_(flat.view(layer.weight.shape))
