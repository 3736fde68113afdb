"""Changes of colour: of images (N, 3, H, W) in [0, 1], by a factor (N, 1, 1, 1) for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from annotated_types import Ge, Le
from torch import Tensor

from seal_ray.augmentations.base import Drawn, augmentation

Amount = Annotated[float, Ge(0), Le(1)]


@augmentation
@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue of each image, changed in this order.

    The first three are multiplied by uniform factors within 1 +- the amount, the hue is turned by a uniform
    share of the circle within +- its amount. As in torchvision, where the order is drawn, too.
    """

    name: ClassVar[str] = "colour_jitter"
    brightness: Amount = 0.4
    contrast: Amount = 0.4
    saturation: Amount = 0.4
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.1

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Factors and the turn of each image, (4, N)."""
        amounts = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])[:, None]
        centre = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]
        return (centre + amounts * (2 * torch.rand(4, count, generator=generator) - 1),)

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The four changes in turn; what has an amount of 0 is left out."""
        factors = drawn[0].to(images.dtype)[:, :, None, None, None]
        for amount, change, factor in (
            (self.brightness, brightness, factors[0]),
            (self.contrast, contrast, factors[1]),
            (self.saturation, saturation, factors[2]),
            (self.hue, turn_hue, factors[3]),
        ):
            images = change(images, factor) if amount else images
        return images


def grey(images: Tensor) -> Tensor:
    """Luma (N, 1, H, W), with the weights of ITU-R BT.601."""
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0: black, 1: as it is."""
    return _blend(images, torch.zeros_like(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0: the image's mean grey, 1: as it is."""
    return _blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0: grey, 1: as it is."""
    return _blend(images, grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0: smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, 1: as it is; pixels of the border stay."""
    n, c, h, w = images.shape
    if min(h, w) < 3:
        return images
    kernel = images.new_full((1, 1, 3, 3), 1 / 13)
    kernel[..., 1, 1] = 5 / 13
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images.reshape(n * c, 1, h, w), kernel).view(n, c, h - 2, w - 2)
    return _blend(images, smooth, factor)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """The hue turned by a share of the circle, (N, 1, 1, 1): RGB to HSV and back."""
    value, strongest = images.max(dim=1)
    chroma = value - images.amin(dim=1)
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = images.unbind(dim=1)
    sector = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=1)
    hue = sector.gather(1, strongest[:, None])[:, 0] + 6 * turn[:, 0]
    # Channel n of HSV's colour is v - c * max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6, n = 5, 3, 1.
    offsets = (5 - 2 * torch.arange(3, device=images.device, dtype=images.dtype)).view(1, 3, 1, 1)
    k = (offsets + hue[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def posterize(images: Tensor, bits: int) -> Tensor:
    """As many levels as `bits` tell."""
    levels = 1 << bits
    return (images * levels).floor().clamp(0, levels - 1) / levels


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Values from the threshold on inverted."""
    return torch.where(images >= threshold, 1 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to all of [0, 1]; one of a single value stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    low, extent = low.masked_fill(flat, 0), (high - low).masked_fill(flat, 1)
    return ((images - low) / extent).clamp(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Each channel's 256 levels mapped so that they are used evenly, as PIL's ImageOps.equalize does."""
    n, c, h, w = images.shape
    levels = (images * 255.999).long().view(n, c, h * w)
    counts = torch.zeros(n, c, 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(dim=2, keepdim=True))
    step = (h * w - last) // 255
    before = counts.cumsum(dim=2) - counts
    mapped = (before + step // 2) // step.clamp(min=1)
    equal = mapped.clamp(max=255).gather(2, levels).to(images.dtype).view_as(images) / 255
    return torch.where(step[..., None] == 0, images, equal)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * other).clamp(0, 1)
