"""ResNets: torchvision's (He et al., arXiv 1512.03385) of any stem and width, and SEAL's one for CIFAR."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge

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


@network("resnet18")
def resnet18(classes: int, stem: Stem = "imagenet", width: Width = 64) -> Any:
    """8 blocks of two convolutions. stem imagenet: 7x7 stride 2 and pool; cifar: 3x3. width: of layer1."""
    return _built("resnet18", classes, stem, width)


@network("resnet34")
def resnet34(classes: int, stem: Stem = "imagenet", width: Width = 64) -> Any:
    """16 blocks of two convolutions; stem and width as of resnet18."""
    return _built("resnet34", classes, stem, width)


@network("resnet50")
def resnet50(classes: int, stem: Stem = "imagenet", width: Width = 64) -> Any:
    """16 bottlenecks of three convolutions; stem and width as of resnet18."""
    return _built("resnet50", classes, stem, width)


@network("preact18")
def preact18(classes: int, width: Width = 64) -> Any:
    """8 pre-activation blocks of two convolutions behind a 3x3 stem. width: of layer1."""
    from seal_ray.networks.resnet_module import PreActResNet

    return PreActResNet(classes, width)


def _built(arch: str, classes: int, stem: Stem, width: int) -> Any:
    from seal_ray.networks.resnet_module import ResNet

    return ResNet(arch, classes=classes, stem=stem, width=width)
