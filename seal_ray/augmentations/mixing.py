"""Boxes that are cut out, and images that are mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from seal_ray.augmentations.base import Drawn, augmentation


@augmentation
@dataclass(frozen=True)
class Cutout:
    """A black square in each image (DeVries and Taylor, arXiv 1708.04552).

    Its centre is a uniform pixel and its side `length` pixels; what lies outside the image is cut off.
    """

    name: ClassVar[str] = "cutout"
    length: Annotated[int, Ge(1)] = 16

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """The square of each image: (N, 4), its first row and column, and those after its last."""
        first = _centres(count, size, generator) - self.length // 2
        return (torch.cat([first, first + self.length], dim=1),)

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Zeros inside the square."""
        return images.masked_fill(_inside(images, drawn[0]), 0)


@augmentation
@dataclass(frozen=True)
class Mixup:
    """Each image mixed with another one of its shard, and their labels alike (arXiv 1710.09412).

    x <- s x + (1 - s) x', with s from Beta(alpha, alpha) for each image, x' from a random order of the shard.
    """

    name: ClassVar[str] = "mixup"
    alpha: Annotated[float, Gt(0)] = 0.2

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """The partner of each image, (N,) in 0..N-1, and the share s of its own, (N,) float64."""
        return torch.randperm(count, generator=generator), _beta(self.alpha, count, generator)

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The mixed images."""
        return _mixed(images, *drawn)

    def mix(self, targets: Tensor, drawn: Drawn) -> Tensor:
        """The mixed targets."""
        return _mixed(targets, *drawn)


@augmentation
@dataclass(frozen=True)
class Cutmix:
    """A rectangle of each image replaced by that of another one of its shard (arXiv 1905.04899).

    It has the image's proportions, an area of 1 - s with s from Beta(alpha, alpha), and a uniform centre;
    what lies outside the image is cut off. The labels are mixed by the areas that are seen.
    """

    name: ClassVar[str] = "cutmix"
    alpha: Annotated[float, Gt(0)] = 1.0

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """The partner of each image, its rectangle as in Cutout, and the share of its own that is left."""
        partner = torch.randperm(count, generator=generator)
        extent = torch.tensor(size)
        sides = ((1 - _beta(self.alpha, count, generator)).sqrt()[:, None] * extent).long()
        first = _centres(count, size, generator) - sides // 2
        box = torch.cat([first.clamp(min=0), torch.minimum(first + sides, extent)], dim=1)
        area = (box[:, 2:] - box[:, :2]).prod(dim=1)
        return partner, box, 1 - area / extent.prod().double()

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The partner's pixels inside the rectangle."""
        partner, box, _ = drawn
        return torch.where(_inside(images, box), images[partner], images)

    def mix(self, targets: Tensor, drawn: Drawn) -> Tensor:
        """The mixed targets."""
        partner, _, share = drawn
        return _mixed(targets, partner, share)


def _centres(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(N, 2) rows and columns, uniform."""
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in size], dim=1)


def _inside(images: Tensor, box: Tensor) -> Tensor:
    """(N, 1, H, W) bool: which pixels lie in each image's box."""
    rows, columns = (torch.arange(n, device=images.device) for n in images.shape[2:])
    top, left, bottom, right = box[:, :, None].unbind(dim=1)
    down, across = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """(N,) float64 from Beta(alpha, alpha), which torch draws from no generator."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count))


def _mixed(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    own = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return own * values + (1 - own) * values[partner]
