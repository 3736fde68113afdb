"""Networks, their named stages in depth order, and which parameter belongs to which part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seal_ray.errors import ConfigError

RESNETS: dict[str, tuple[Literal["BasicBlock", "Bottleneck"], tuple[int, int, int, int]]] = {
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
}
"""torchvision's block and the number of blocks in each layer, by architecture."""

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ResNet(nn.Module):
    """A torchvision ResNet of any width and with a choice of stem; state-dict names are torchvision's.

    (N, 3, H, W) -> logits (N, classes). `width` is the number of channels of layer1 before expansion
    (torchvision: 64). stem `imagenet`: 7x7 stride 2 and a 3x3 stride-2 max-pool; `cifar`: 3x3 stride 1,
    no pool. Source: He et al., arXiv 1512.03385; blocks from torchvision.
    """

    def __init__(self, arch: str, *, classes: int, stem: str, width: int) -> None:
        super().__init__()
        # Imported here because it takes two seconds, which commands that build no network need not wait.
        from torchvision.models import resnet

        name, depths = RESNETS[arch]
        block = getattr(resnet, name)
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        out = block.expansion
        self.layer1 = _stage(block, width, width, depths[0], stride=1)
        self.layer2 = _stage(block, out * width, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(block, out * 2 * width, 4 * width, depths[2], stride=2)
        self.layer4 = _stage(block, out * 4 * width, 8 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(out * 8 * width, classes)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W).

        keep: what the pooled features (N, features) are multiplied by, the mask of dropout.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(features if keep is None else features * keep)
        return logits


def _stage(block: Any, channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` blocks; the first one changes the number of channels and the resolution."""
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        downsample = nn.Sequential(
            nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
        )
    # torchvision's Bottleneck reads planes * (base_width / 64) * groups, so base_width stays 64.
    first = block(channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))


def build(arch: str, *, classes: int, stem: str, width: int, generator: torch.Generator) -> nn.Module:
    """A network with its initial weights, drawn from `generator` in module order on the CPU.

    For convolutions and linear layers Kaiming-normal weights (fan in, ReLU), then biases uniform within
    +-1/sqrt(fan in), torch's default; norms at 1 and 0: the initialisation of SEAL's published code.
    """
    with torch.device("meta"):
        network = ResNet(arch, classes=classes, stem=stem, width=width)
    network.to_empty(device="cpu")
    initialise(network, generator)
    return network


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew and reset every buffer, in place."""
    for module in network.modules():
        if isinstance(module, NORMS):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def weighted_layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Name and module of each convolution and linear layer: the layers that edits re-draw or prune."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield name, module


def stages(network: nn.Module) -> tuple[str, ...]:
    """Names of the direct children that hold parameters, in depth order; the last one is the classifier."""
    return tuple(name for name, child in network.named_children() if any(True for _ in child.parameters()))


def pooled_features(network: nn.Module) -> int:
    """The number of features that the classifier reads."""
    classifier = network.get_submodule(stages(network)[-1])
    assert isinstance(classifier, nn.Linear)
    return classifier.in_features


@dataclass(frozen=True)
class Parts:
    """Which stages the words `early`, `late`, `head` and `all` mean; stage names mean themselves.

    A stage belongs to a part by its module, so norm layers and downsampling go with their stage whatever
    they are called.
    """

    stages: tuple[str, ...]
    split_at: str

    def __post_init__(self) -> None:
        if self.split_at not in self.stages[1:]:
            raise ConfigError(
                f"method.split_at: {self.split_at!r} does not divide the network; choose one of "
                f"{', '.join(self.stages[1:])}"
            )

    def stages_of(self, part: str) -> tuple[str, ...]:
        """The stages of a part, in depth order."""
        split = self.stages.index(self.split_at)
        known = {
            "all": self.stages,
            "early": self.stages[:split],
            "late": self.stages[split:],
            "head": self.stages[-1:],
        }
        if part in known:
            return known[part]
        if part in self.stages:
            return (part,)
        raise ConfigError(f"part {part!r} is not one of {', '.join((*known, *self.stages))}")

    def holds(self, part: str, name: str) -> bool:
        """Whether the parameter, buffer or module `name` (dotted) lies in `part`."""
        return name.split(".", 1)[0] in self.stages_of(part)

    def parameters(self, network: nn.Module, part: str) -> list[nn.Parameter]:
        """The parameters of a part, in the network's order."""
        return [p for name, p in network.named_parameters() if self.holds(part, name)]
