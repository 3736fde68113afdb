"""Edits that look at data: which weights, units or directions the loss of a few batches depends on.

They read `EditContext.losses`, so an edit is a pure function of (weights, data, seed, generation), the same
on every worker.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from seal_ray.errors import ConfigError
from seal_ray.networks import weighted_layers
from seal_ray.phases.edits import new_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seal_ray.phases.edits import EditContext, State


def mean_gradient(network: nn.Module, context: EditContext, batches: int) -> State:
    """The gradient of the recipe's loss over so many batches, by parameter name; 0 where it has none."""
    import torch

    names, parameters = zip(*network.named_parameters(), strict=True)
    total, shards = [torch.zeros_like(parameter) for parameter in parameters], 0
    with torch.enable_grad():
        for shards, loss in enumerate(context.losses(batches), 1):  # noqa: B007 - their number
            torch._foreach_add_(total, torch.autograd.grad(loss, parameters, materialize_grads=True))
    return {name: gradient / shards for name, gradient in zip(names, total, strict=True)}


@dataclass(frozen=True)
class RedrawLeast:
    """The floor(share * n) least useful of n convolution and linear weights get a new draw of the network's
    own.

    Of use is abs(w * g), g the gradient of the recipe's loss over `batches` batches: SNIP's saliency (Lee et
    al., ICLR 2019, arXiv 1810.02340); with 0 batches abs(w). among `network`: all weights are ranked
    together; `layer`: those of each layer. Ties go to the smaller index.
    """

    share: float
    among: Literal["network", "layer"]
    batches: int

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Replace the least useful weights."""
        import torch

        gradient = mean_gradient(network, context, self.batches) if self.batches else {}
        drawn = new_weights(network, context, "model")
        weights = {f"{name}.weight": layer.weight.detach() for name, layer in weighted_layers(network)}
        # In logical order on the CPU: memory format and device must not decide ties.
        scores = {
            key: (weight * gradient.get(key, 1)).abs().cpu().contiguous().view(-1)
            for key, weight in weights.items()
        }
        for keys in [[*weights]] if self.among == "network" else [[key] for key in weights]:
            ranked = torch.cat([scores[key] for key in keys])
            least = torch.zeros(len(ranked), dtype=torch.bool)
            # The share in exact decimals, so that 0.7 of 90 is 63.
            least[ranked.argsort(stable=True)[: math.floor(Fraction(str(self.share)) * len(ranked))]] = True
            for key, chosen in zip(keys, least.split([len(scores[key]) for key in keys]), strict=True):
                weight, mask = weights[key], chosen.view(weights[key].shape).to(weights[key].device)
                weight.copy_(torch.where(mask, drawn[key].to(weight), weight))


@dataclass(frozen=True)
class ShrinkByDirection:
    """w <- w * max(floor, cos(w, -g)) for each vector w of convolutions and linear layers.

    g: the gradient of the recipe's loss over `batches` batches. The vectors are the kernels of a convolution,
    one for each pair of output and input channel, the rows of a linear layer, and the bias of either. Weights
    that the loss pulls on in their own direction are kept, the others shrink. Source: DASH, Shin et al.,
    NeurIPS 2024, arXiv 2410.23495, and its published code, which averages the gradients exponentially.
    """

    floor: float
    batches: int

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Shrink each vector."""
        import torch

        gradient = mean_gradient(network, context, self.batches)
        for name, layer in weighted_layers(network):
            for key, parameter in layer.named_parameters(recurse=False):
                start = min(2, parameter.dim() - 1)  # of a convolution (C_out, C_in, height * width)
                vectors, pulls = (
                    tensor.detach().contiguous().flatten(start)
                    for tensor in (parameter, -gradient[f"{name}.{key}"])
                )
                scale = torch.cosine_similarity(pulls, vectors, dim=-1).clamp(self.floor, 1)
                with torch.no_grad():
                    parameter.mul_(scale.view(*scale.shape, *[1] * (parameter.dim() - scale.dim())))


@dataclass(frozen=True)
class RecycleDormant:
    """Units that hardly ever fire start anew without being heard: ReDo.

    A unit is a channel of a layer whose outputs one other layer alone reads. Its score is the mean of abs(h)
    over images and places, h what the reader gets of it, divided by the mean score of the layer; it is
    dormant at `threshold` or below, as all units of a layer are in which none fires. What leads to a dormant
    unit (its weights and bias, its scale, shift and running statistics in a norm in between) becomes a new
    draw of the network's own initialisation, then the reader's weights for it become 0. Source: Sokar et al.,
    ICML 2023, arXiv 2302.12902, algorithm 1; networks there have no norms.
    """

    threshold: float
    batches: int

    def __call__(self, network: nn.Module, context: EditContext) -> None:
        """Recycle the dormant units. ConfigError for a network none of whose layers has one reader alone."""
        import torch

        with torch.no_grad():
            fresh = context.fresh(context.rng("edit"))
            chains = _chains(network, context, fresh)
            if not chains:
                raise ConfigError(
                    f"method.name: redo finds no units in {type(network).__name__}: it has no layer whose "
                    "outputs one other layer alone reads; choose another network or method"
                )
            readers = [chain[-1] for chain in chains]
            _, scores = _observed(network, context.losses(self.batches), readers)
            dormant = {name: score <= self.threshold * score.mean() for name, score in scores.items()}
            for *sources, reader in chains:
                units = dormant[reader]
                for name in sources:
                    for key, tensor in network.get_submodule(name).state_dict().items():
                        if tensor.shape[:1] == units.shape:
                            tensor[units] = fresh[f"{name}.{key}"].to(tensor)[units]
            for reader in readers:
                network.get_parameter(f"{reader}.weight")[:, dormant[reader]] = 0


def _chains(network: nn.Module, context: EditContext, fresh: State) -> list[tuple[str, ...]]:
    """Names of layers with the norms after each and its only reader, in the order in which they are reached.

    A reader that gets nothing but 0 does not show whose units are dead: it is looked at with `fresh` weights.
    """
    modules, layers = dict(network.named_modules()), dict(weighted_layers(network))
    norms = [name for name, module in modules.items() if "Norm" in type(module).__name__]
    _, inputs = _observed(network, _first(context), [*layers, *norms])
    starts = [i for i, name in enumerate(inputs) if name in layers]
    chains = [tuple([*inputs][start : end + 1]) for start, end in itertools.pairwise(starts)]
    dead = [chain for chain in chains if not inputs[chain[-1]].any()]
    found = {chain for chain in chains if chain not in dead and _is_alone(chain, layers, network, context)}
    if dead:
        held = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(fresh)
        found |= {chain for chain in dead if _is_alone(chain, layers, network, context)}
        network.load_state_dict(held)
    return [chain for chain in chains if chain in found]


def _is_alone(
    chain: tuple[str, ...], layers: Mapping[str, Any], network: nn.Module, context: EditContext
) -> bool:
    """Whether the last of a chain reads the first, and nothing else does.

    It has an input for each output, and gets another input when the layer's weights are 0; while its own
    weights are 0, the loss does not depend on the layer.
    """
    layer, reader = layers[chain[0]], layers[chain[-1]]
    if layer.weight.shape[0] != reader.weight.shape[1]:
        return False
    with _zeroed(reader.weight):
        without, inputs = _observed(network, _first(context), chain[-1:])
        with _zeroed(layer.weight):
            alone, changed = _observed(network, _first(context), chain[-1:])
    return without == alone and not changed[chain[-1]].equal(inputs[chain[-1]])


def _first(context: EditContext) -> Iterable[Tensor]:
    """The loss of one shard."""
    return itertools.islice(context.losses(1), 1)


@contextmanager
def _zeroed(weight: Tensor) -> Iterator[None]:
    kept = weight.clone()
    weight.zero_()
    yield
    weight.copy_(kept)


def _observed(
    network: nn.Module, losses: Iterable[Tensor], names: Sequence[str]
) -> tuple[list[float], dict[str, Tensor]]:
    """What `losses` are, and for each of these modules, in the order in which they are reached, the mean
    abs(input) (C,) of each channel, added over the losses.
    """
    from torch import nn

    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, given: Any) -> None:
        size = given[0].abs()
        channel = size.dim() - 1 if isinstance(module, nn.Linear) else 1
        found[name] = found.get(name, 0) + size.mean([d for d in range(size.dim()) if d != channel])

    hooks = [network.get_submodule(n).register_forward_pre_hook(functools.partial(note, n)) for n in names]
    values = [loss.item() for loss in losses]
    for hook in hooks:
        hook.remove()
    return values, found
