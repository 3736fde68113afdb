"""Networks, their named stages in depth order, and which parameter belongs to which part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seal_ray.errors import ConfigError, SealRayError
from seal_ray.networks.registry import COMMON as COMMON
from seal_ray.networks.registry import NETWORKS as NETWORKS
from seal_ray.networks.registry import Factory as Factory
from seal_ray.networks.registry import factory_of as factory_of
from seal_ray.networks.registry import network as network
from seal_ray.networks.registry import network_fields as network_fields

# isort: split
from seal_ray.networks.resnet import RESNETS as RESNETS
from seal_ray.networks.stages import Parts as Parts
from seal_ray.networks.stages import classifier as classifier
from seal_ray.networks.stages import loose_parameters as loose_parameters
from seal_ray.networks.stages import residual_blocks as residual_blocks
from seal_ray.networks.stages import stage_parameters as stage_parameters
from seal_ray.networks.stages import stages as stages
from seal_ray.networks.stages import weighted_layers as weighted_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def build(arch: str | Factory, *, classes: int, generator: torch.Generator, **fields: Any) -> nn.Module:
    """A network with its initial weights on the CPU, which `generator` alone decides.

    They are what the network's method `initialise(generator)` draws, or else its own initialisation with
    torch's generator seeded by `generator`. arch: its name, or what makes it. fields: those of the network,
    see `network_fields`. ConfigError when it cannot be built with them.
    """
    import torch

    before = generator.get_state()
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _made(factory_of(arch) if isinstance(arch, str) else arch, classes, fields)
    initialise: Any = getattr(network, "initialise", None)
    if initialise:
        generator.set_state(before)
        initialise(generator)
    return network


def outline(arch: str | Factory, *, classes: int, **fields: Any) -> nn.Module:
    """A network's shapes and names without its weights. Raises as build."""
    import torch

    factory = factory_of(arch) if isinstance(arch, str) else arch
    try:
        with torch.device("meta"):
            return factory(classes=classes, **fields)
    except Exception:  # it reads numbers while it is made, or cannot be made at all
        with torch.random.fork_rng(devices=[]):
            return _made(factory, classes, fields)


def _made(factory: Factory, classes: int, fields: dict[str, Any]) -> nn.Module:
    try:
        return factory(classes=classes, **fields)
    except SealRayError:
        raise
    except Exception as error:
        given = ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)
        name = f"{factory.__name__}: " if hasattr(factory, "__name__") else ""
        raise ConfigError(f"{name}cannot be built with {given or 'its defaults'}: {error}") from error


class FeatureMask:
    """A pre-hook of the classifier: what it reads (N, features) is multiplied by `keep`, the mask of dropout,
    while there is one.
    """

    def __init__(self, network: nn.Module) -> None:
        self.keep: Tensor | None = None
        _, layer = classifier(network)
        self.features = layer.weight.shape[1]
        layer.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
        """What the classifier reads instead; None: what it was given."""
        if self.keep is None:
            return None
        features = given[0]  # (N, features), or maps of one pixel
        return (features * self.keep.view(*self.keep.shape, *[1] * (features.dim() - 2)),)
