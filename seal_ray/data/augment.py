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


def draw(images: int, *, padding: int, flip: bool, generator: torch.Generator) -> Draws:
    """Uniform offsets and fair flips for `images` images, from a CPU generator."""
    offsets = torch.randint(0, 2 * padding + 1, (2, images), generator=generator)
    heads = torch.rand(images, generator=generator) < (0.5 if flip else 0.0)
    return Draws(offsets[0], offsets[1], heads)


@dataclass(frozen=True)
class Crop:
    """Zero-pads images by `padding`, crops them back to size at drawn offsets, and mirrors where drawn.

    size: (height, width). Its constants lie on the device, where batches are cropped.
    """

    size: tuple[int, int]
    padding: int
    rows: Tensor  # (height,) int64: pixels from the first row of a crop to each row
    columns: Tensor  # (width,) int64: 0, 1, ...

    @classmethod
    def of(cls, size: tuple[int, int], padding: int, device: torch.device) -> Crop:
        """The crop of images of `size` on `device`."""
        (height, width), across = size, size[1] + 2 * padding
        rows, columns = (torch.arange(n, device=device) for n in size)
        return cls((height, width), padding, rows * across, columns)

    def places(self, draws: Draws, indices: Tensor) -> Tensor:
        """Where the crops of a batch of images `indices` lie, (..., N): int64 (..., 2, N).

        The first pixel of each crop in the row of all pixels of the padded batch, and the direction in which
        its columns go, 1 or -1.
        """
        height, width = (length + 2 * self.padding for length in self.size)
        top, left, flip = draws.top[indices], draws.left[indices], draws.flip[indices].long()
        corner = (torch.arange(indices.shape[-1]) * height + top) * width + left
        return torch.stack([corner + flip * (self.size[1] - 1), 1 - 2 * flip], dim=-2)

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:
        """The crops of images, uint8 (N, H, W, C), at places (2, N); padding is black, not the mean."""
        if self.padding:
            images = F.pad(images, (0, 0) + 4 * (self.padding,))
        first, direction = places.unsqueeze(2).unbind()
        pixels = (first + self.rows)[:, :, None] + (direction * self.columns)[:, None, :]
        n, channels = len(images), images.shape[3]
        return images.reshape(-1, channels).index_select(0, pixels.view(-1)).view(n, *self.size, channels)


@dataclass(frozen=True)
class Normaliser:
    """(x - mean) / std per channel of images in [0, 1]. Its constants lie on the device."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)
    scale: Tensor  # (W * C,): of a row of grey levels 0..255
    shift: Tensor  # (W * C,)
    memory_format: torch.memory_format

    @classmethod
    def of(
        cls,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        width: int,
        memory_format: torch.memory_format,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Normaliser:
        """Of images of `width` pixels to numbers of `dtype` on `device`; constants come from float64."""
        centre, deviation = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        constants = (
            centre[:, None, None],
            deviation[:, None, None],
            # A row of W * C numbers at a time: broadcasting over the last 3 would not vectorise.
            (1 / (255 * deviation)).repeat(width),
            (-centre / deviation).repeat(width),
        )
        centre, deviation, scale, shift = (constant.to(dtype).to(device) for constant in constants)
        return cls(centre, deviation, scale, shift, memory_format)

    def of_bytes(self, images: Tensor) -> Tensor:
        """Of uint8 (N, H, W, C): (N, C, H, W) in the memory format."""
        n, h, w, c = images.shape
        values = images.view(n, h, w * c).to(self.scale.dtype).mul_(self.scale).add_(self.shift)
        return values.view(n, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)

    def of_floats(self, images: Tensor) -> Tensor:
        """Of floating-point (N, C, H, W) in [0, 1]: the same shape in the memory format."""
        return ((images - self.mean) / self.std).contiguous(memory_format=self.memory_format)


def normalise(
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One batch by a `Normaliser`: uint8 (N, H, W, C) -> `dtype` (N, C, H, W)."""
    width, device = images.shape[2], images.device
    made = Normaliser.of(mean, std, width=width, memory_format=memory_format, dtype=dtype, device=device)
    return made.of_bytes(images)
