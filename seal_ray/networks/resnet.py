"""torchvision's ResNets (He et al., arXiv 1512.03385) with a choice of stem and width."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from seal_ray.networks.registry import network

RESNETS: dict[str, tuple[Literal["BasicBlock", "Bottleneck"], tuple[int, int, int, int]]] = {
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
}
"""torchvision's block and the number of blocks in each layer, by architecture."""
STAGES, MIDDLE = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"), "layer3"
"""The stages of each, and where it is divided unless a method says so: known before torchvision is loaded."""

Stem = Literal["imagenet", "cifar"]
Width = Annotated[int, Ge(1)]


class ResNet(nn.Module):
    """A torchvision ResNet of any width and with a choice of stem; state-dict names are torchvision's.

    (N, 3, H, W) -> logits (N, classes). `width` is the number of channels of layer1 before expansion
    (torchvision: 64). stem `imagenet`: 7x7 stride 2 and a 3x3 stride-2 max-pool; `cifar`: 3x3 stride 1,
    no pool. Source: He et al., arXiv 1512.03385; blocks from torchvision.
    """

    def __init__(self, arch: str, *, classes: int, stem: Stem, width: int) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights anew, in module order, and reset every buffer, in place.

        For convolutions and linear layers Kaiming-normal weights (fan in, ReLU), then biases uniform within
        +-1/sqrt(fan in), torch's default; norms at 1 and 0: the initialisation of SEAL's published code.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_in", nonlinearity="relu", generator=generator
                )
                if module.bias is not None:
                    bound = 1 / math.sqrt(module.weight[0].numel())
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)


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


@network("resnet18")
def resnet18(classes: int, stem: Stem = "imagenet", width: Width = 64) -> ResNet:
    """8 blocks of two convolutions. stem imagenet: 7x7 stride 2 and pool; cifar: 3x3. width: of layer1."""
    return ResNet("resnet18", classes=classes, stem=stem, width=width)


@network("resnet34")
def resnet34(classes: int, stem: Stem = "imagenet", width: Width = 64) -> ResNet:
    """16 blocks of two convolutions; stem and width as of resnet18."""
    return ResNet("resnet34", classes=classes, stem=stem, width=width)


@network("resnet50")
def resnet50(classes: int, stem: Stem = "imagenet", width: Width = 64) -> ResNet:
    """16 bottlenecks of three convolutions; stem and width as of resnet18."""
    return ResNet("resnet50", classes=classes, stem=stem, width=width)
