"""RandAugment: random changes of one strength."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from annotated_types import Ge, Le
from torch import Tensor

from seal_ray.augmentations.base import Drawn, augmentation
from seal_ray.augmentations.colour import (
    autocontrast,
    brightness,
    contrast,
    equalize,
    posterize,
    saturation,
    sharpness,
    solarize,
)

MAGNITUDES = 30
CHANGES = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


@augmentation
@dataclass(frozen=True)
class RandAugment:
    """For each image `ops` uniform choices of 14 changes, each at `magnitude` (arXiv 1909.13719).

    Ranges are those of torchvision's RandAugment; what moves pixels interpolates linearly, outside is black.
    """

    name: ClassVar[str] = "randaugment"
    ops: Annotated[int, Ge(1)] = 2
    magnitude: Annotated[int, Ge(0), Le(MAGNITUDES)] = 9

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Which changes, (ops, N) in 0..13, and in which direction, (ops, N) of -1 and 1."""
        chosen = torch.randint(len(CHANGES), (self.ops, count), generator=generator)
        return chosen, 2.0 * torch.randint(2, (self.ops, count), generator=generator) - 1

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The changes in turn."""
        for chosen, sign in zip(*drawn, strict=True):
            images = changed(images, chosen, sign.to(images.dtype), self.magnitude / MAGNITUDES)
        return images


def changed(images: Tensor, chosen: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Each image after the change that `chosen` (N,) names, at a strength of 0 to 1 in direction `sign` (N,).

    All changes are computed of all images, since to look which ones are wanted would wait for the device.
    """
    height, width = images.shape[2:]
    factor = (1 + 0.9 * strength * sign)[:, None, None, None]
    none = torch.zeros_like(sign)
    amount = {name: torch.where(chosen == i, strength * sign, none) for i, name in enumerate(CHANGES)}
    found = {
        "brightness": brightness(images, factor),
        "saturation": saturation(images, factor),
        "contrast": contrast(images, factor),
        "sharpness": sharpness(images, factor),
        "posterize": posterize(images, 8 - round(4 * strength)),
        "solarize": solarize(images, 1 - strength),
        "autocontrast": autocontrast(images),
        "equalize": equalize(images),
    }
    moved = _moved(
        images,
        shear=(0.3 * amount["shear_x"], 0.3 * amount["shear_y"]),
        shift=tuple(
            (150 / 331 * length * amount[name]).trunc()
            for name, length in (("translate_x", width), ("translate_y", height))
        ),
        angle=math.radians(30) * amount["rotate"],
    )
    found |= dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y", "rotate"), moved)
    for i, name in enumerate(CHANGES):
        if name in found:
            images = torch.where((chosen == i)[:, None, None, None], found[name], images)
    return images


def _moved(images: Tensor, *, shear: tuple[Tensor, ...], shift: tuple[Tensor, ...], angle: Tensor) -> Tensor:
    """Images sheared about their first corner, shifted (pixels) or turned about their centre (radians).

    Each argument is (N,), and one of them at most is not 0 in an image.
    """
    height, width = images.shape[2:]
    rows, columns = (torch.arange(n, device=images.device) + 0.5 for n in (height, width))
    y, x = (rows - height / 2)[None, :, None].to(images), (columns - width / 2)[None, None, :].to(images)
    (across, down), (right, below), cos, sin = (
        (a[:, None, None] for a in shear),
        (a[:, None, None] for a in shift),
        angle.cos()[:, None, None],
        angle.sin()[:, None, None],
    )
    from_x = cos * x - sin * y + across * (y + height / 2) - right
    from_y = sin * x + cos * y + down * (x + width / 2) - below
    grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=3)
    return F.grid_sample(images, grid, align_corners=False)
