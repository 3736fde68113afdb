"""Embeddings of images at named places of a network, pooled to a bounded size, in one pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from seal_ray.errors import ConfigError, DataError
from seal_ray.networks import classifier, residual_blocks, stages


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of N images by layer, and what the network says of them.

    layers: name -> float32 (N, F) on the CPU, F at most max_features; the pooled activations in C order.
    shapes: name -> their shape before flattening: (C, h, w), (tokens, C) or (C,).
    logits: float32 (N, classes).
    """

    layers: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    logits: Tensor
    max_features: int


def probes(network: nn.Module) -> tuple[str, ...]:
    """The places at which prediction depth is measured, in depth order.

    "input", "stem" (what enters the first residual block), each residual block by its module's name, such
    as "layer1.0", and "softmax". Source: Baldock et al., NeurIPS 2021, arXiv 2106.09647, section 2.
    In a network without residual blocks (see `seal_ray.networks.residual_blocks`) each stage before the
    classifier stands for one, and there is no stem.
    """
    if blocks := residual_blocks(network):
        return ("input", "stem", *blocks, "softmax")
    return ("input", *stages(network)[:-1], "softmax")


def extract(
    network: nn.Module,
    batches: Iterable[Tensor],
    layers: Sequence[str],
    *,
    max_features: int,
    device: torch.device | str = "cpu",
) -> Features:
    """Embeddings of every image at `layers`, in eval mode; the network, on `device`, is left as it was.

    batches: normalised images (B, C, H, W). A layer is the name of a module (its output) or one of "input",
    "stem" (what enters the first residual block), "penultimate" (what enters the classifier)
    and "softmax". Maps (C, H, W) are averaged over a grid of about their own aspect
    with at most max_features numbers, sequences (tokens, C) over runs of neighbouring tokens.
    Raises ConfigError for a layer that the network lacks or does not call exactly once, or that has more
    channels than max_features; DataError when there are no images.
    """
    collected: dict[str, list[Tensor]] = {name: [] for name in layers}
    shapes: dict[str, tuple[int, ...]] = {}
    logits: list[Tensor] = []
    seen: dict[str, Tensor] = {}

    def record(name: str, activation: Any) -> None:
        if name in seen:
            raise ConfigError(f"layer {name!r} is called more than once in a forward pass; choose another")
        _check(name, activation, images.shape)
        # Pooled at once: a later layer may write into the activation, and all of them would not fit.
        seen[name] = pool(name, activation, max_features)

    with _evaluating(network), _watching(network, layers, record), torch.inference_mode():
        for images in batches:
            moved = images.to(device, non_blocking=True)
            output = network(moved)
            if "input" in collected:
                record("input", moved)
            if "softmax" in collected:
                record("softmax", output.float().softmax(dim=1))
            if missing := [name for name in layers if name not in seen]:
                raise ConfigError(f"layer {missing[0]!r} is not called in a forward pass; choose another")
            for name, pooled in seen.items():
                shapes[name] = tuple(pooled.shape[1:])
                collected[name].append(pooled.flatten(1).cpu())
            logits.append(output.float().cpu())
            seen.clear()
    if not logits:
        raise DataError("there are no images to embed; give at least one batch")
    # Layer by layer, so that never more than one of them lies in memory twice.
    return Features(
        {name: torch.cat(collected.pop(name)) for name in layers}, shapes, torch.cat(logits), max_features
    )


def _check(name: str, activation: Any, images: torch.Size) -> None:
    """ConfigError when an activation is nothing that `pool` knows how to read."""
    if not isinstance(activation, Tensor) or activation.dim() not in (2, 3, 4):
        raise ConfigError(f"layer {name!r} gives no (N, C, H, W), (N, tokens, C) or (N, C); choose another")
    if activation.dim() == 4:
        (h, w), (height, width) = activation.shape[2:], images[2:]
        # Maps keep the images' aspect up to a pixel; with channels last they would seem not to.
        if abs(h * width - w * height) > max(height, width):
            raise ConfigError(
                f"layer {name!r} gives maps of {h} x {w} for images of {height} x {width}: its channels come "
                "last; choose a layer whose outputs are (N, C, H, W)"
            )


def pool(name: str, activation: Tensor, max_features: int) -> Tensor:
    """A float32 copy of activations (N, C, H, W), (N, tokens, C) or (N, C), averaged to max_features numbers.

    Raises ConfigError when one number a channel is already more.
    """
    channels = activation.shape[-1 if activation.dim() == 3 else 1]
    cells = max_features // channels
    if cells == 0:
        raise ConfigError(
            f"max_features: {max_features}, but layer {name!r} has {channels} channels; raise it"
        )
    if activation.dim() == 4:
        return F.adaptive_avg_pool2d(
            activation.float(), _grid(activation.shape[2], activation.shape[3], cells)
        )
    if activation.dim() == 3:
        tokens = min(activation.shape[1], cells)
        return F.adaptive_avg_pool1d(activation.float().transpose(1, 2), tokens).transpose(1, 2)
    return activation.float().clone()


def _grid(height: int, width: int, cells: int) -> tuple[int, int]:
    """A grid (h, w) of about the aspect of (height, width), no finer, with at most `cells` cells."""
    if height * width <= cells:
        return height, width
    h = max(1, min(height, cells, math.isqrt(cells * height // width)))
    return h, max(1, min(width, cells // h, round(h * width / height)))


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _watching(
    network: nn.Module, layers: Sequence[str], record: Callable[[str, Any], None]
) -> Iterator[None]:
    """`record(layer, activation)` whenever a module among `layers` runs; no hook stays afterwards."""
    with contextlib.ExitStack() as hooks:
        for name in layers:
            if name in ("input", "softmax"):
                continue
            if name in ("stem", "penultimate"):
                entered = _first_block(network) if name == "stem" else classifier(network)[1]
                hook = entered.register_forward_pre_hook(
                    lambda module, args, name=name: record(name, args[0])
                )
            else:
                hook = _module(network, name).register_forward_hook(
                    lambda module, args, output, name=name: record(name, output)
                )
            hooks.callback(hook.remove)
        yield


def _first_block(network: nn.Module) -> nn.Module:
    if not (blocks := residual_blocks(network)):
        raise ConfigError(f"{type(network).__name__} has no residual blocks, so that it has no stem")
    return network.get_submodule(blocks[0])


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise ConfigError(
            f"layer {name!r} is not a module of {type(network).__name__}; "
            f"its stages are {', '.join(n for n, _ in network.named_children())}"
        ) from None
