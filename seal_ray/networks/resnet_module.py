"""The modules that ResNets are."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from seal_ray.networks.resnet import RESNETS, Stem


class ResNet(nn.Module):
    """A torchvision ResNet of any width and with a choice of stem; state-dict names are torchvision's.

    (N, 3, H, W) -> logits (N, classes). `width` is the number of channels of layer1 before expansion
    (torchvision: 64). stem `imagenet`: 7x7 stride 2 and a 3x3 stride-2 max-pool; `cifar`: 3x3 stride 1,
    no pool. Source: He et al., arXiv 1512.03385; blocks from torchvision.
    """

    def __init__(self, arch: str, *, classes: int, stem: Stem, width: int) -> None:
        super().__init__()
        # Imported here because it takes two seconds, which processes that build no network need not wait.
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


class PreActResNet(nn.Module):
    """The pre-activation ResNet-18 that SEAL's published code has for CIFAR, of any width.

    (N, 3, H, W) -> logits (N, classes). Stem: a 3x3 convolution of stride 1, norm and ReLU; no norm after the
    last block. State-dict names and the initialisation, torch's own, are those of CIFAR_ResNet18 there.
    Source: He et al., arXiv 1603.05027; blocks from SEAL (CVPR 2023).
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(PreActBlock(before, planes, stride), PreActBlock(planes, planes, 1))
            for before, planes, stride in (
                (width, width, 1),
                (width, 2 * width, 2),
                (2 * width, 4 * width, 2),
                (4 * width, 8 * width, 2),
            )
        )
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class PreActBlock(nn.Module):
    """conv(relu(norm(conv(relu(norm(x)))))) plus the shortcut, which begins after the first ReLU."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(channels, planes, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, planes, H / stride, W / stride)."""
        x = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(x)))) + self.shortcut(x)
        return out


DRAWING_NOTHING = (ResNet, PreActResNet)
"""Networks whose forward pass is known to draw from none of torch's generators."""
