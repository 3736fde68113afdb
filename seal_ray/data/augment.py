"""Random crop, flip and normalisation on the device, from draws made by sample index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """One epoch's augmentation of every image: crop offsets in 0..2*padding, and whether it is flipped.

    Indexed by sample, not by place in the order, so an image's crop depends on nothing but the epoch.
    """

    top: Tensor  # (N,) int64
    left: Tensor  # (N,) int64
    flip: Tensor  # (N,) bool

    def at(self, indices: Tensor, device: torch.device) -> Draws:
        """The draws of the images `indices`, on `device`."""
        return Draws(*(t[indices].to(device, non_blocking=True) for t in (self.top, self.left, self.flip)))


def draw(images: int, *, padding: int, flip: bool, generator: torch.Generator) -> Draws:
    """Uniform offsets and fair flips for `images` images, from a CPU generator."""
    offsets = torch.randint(0, 2 * padding + 1, (2, images), generator=generator)
    heads = torch.rand(images, generator=generator) < (0.5 if flip else 0.0)
    return Draws(offsets[0], offsets[1], heads)


def crop_and_flip(images: Tensor, draws: Draws, *, padding: int) -> Tensor:
    """Zero-pad by `padding`, crop back to size at the drawn offsets, mirror where drawn.

    images: uint8 (N, H, W, C); the same out. The padding is black pixels, that is 0 before normalising.
    """
    n, h, w, c = images.shape
    if padding:
        images = F.pad(images, (0, 0, padding, padding, padding, padding))
    height, width = h + 2 * padding, w + 2 * padding
    device = images.device
    rows = draws.top[:, None] + torch.arange(h, device=device)
    columns = torch.arange(w, device=device).expand(n, w)
    columns = draws.left[:, None] + torch.where(draws.flip[:, None], w - 1 - columns, columns)
    start = torch.arange(n, device=device) * (height * width)
    pixels = start[:, None, None] + rows[:, :, None] * width + columns[:, None, :]
    return images.reshape(-1, c).index_select(0, pixels.view(-1)).view(n, h, w, c)


def normalise(
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(x / 255 - mean) / std per channel: uint8 (N, H, W, C) -> `dtype` (N, C, H, W)."""
    n, h, w, c = images.shape
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = (1 / (255 * deviation)).to(dtype).repeat(w).to(images.device)
    shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).to(dtype).repeat(w).to(images.device)
    # A row of w * c numbers at a time: broadcasting over the last 3 would not vectorise.
    values = images.view(n, h, w * c).to(dtype).mul_(scale).add_(shift)
    return values.view(n, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
