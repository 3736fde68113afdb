"""The plain description that every source of images is read into, and what sources do with images."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from seal_ray.errors import ConfigError, DataError
from seal_ray.streams import stream

LARGEST = 4096
"""Pixels a side that images are resized to at most."""

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class ClassName:
    """A class: the id the source uses (a wnid, a folder's name) and the words people use."""

    id: str
    words: str


@dataclass(frozen=True)
class Sample:
    """One original image that has not been read yet.

    `read()` gives (size, size, 3) uint8 RGB, the same bytes at each call, and raises DataError naming
    `origin` when the image cannot be read. `label` is a position in the source's classes. `origin` is where
    the image lies inside the source, for people: "train/n01443537/images/n01443537_0.JPEG".
    """

    read: Callable[[], Pixels]
    label: int
    origin: str


@dataclass(frozen=True)
class Source:
    """Images that can be prepared as a data set, and what they are called.

    `size` is the height and width of every image in pixels. `mean` and `std` are of RGB values in 0..1;
    None has them computed from the training images when the data set is prepared. A source that is opened by
    its name has that as its name.
    """

    classes: tuple[ClassName, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]
    size: int
    mean: Channels | None = None
    std: Channels | None = None
    name: str = ""
    licence_note: str = ""

    @classmethod
    def from_arrays(
        cls,
        classes: Sequence[str],
        train: tuple[npt.ArrayLike, npt.ArrayLike],
        val: tuple[npt.ArrayLike, npt.ArrayLike],
    ) -> Source:
        """Images in memory: a split is (N, size, size, 3) uint8 RGB, and labels (N,), places in `classes`."""

        def samples(split: str, images: npt.ArrayLike, labels: npt.ArrayLike) -> list[Sample]:
            pairs = zip(np.asarray(images), np.asarray(labels).tolist(), strict=True)
            return [Sample(image.copy, label, f"{split}/{i}") for i, (image, label) in enumerate(pairs)]

        names = tuple(ClassName(name, name) for name in classes)
        return cls(names, samples("train", *train), samples("val", *val), np.shape(train[0])[1])


def decode(data: bytes, where: str) -> Image.Image:
    """Decode an image to 8-bit RGB (a grayscale image gets three equal channels).

    Raises DataError that begins with `where`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's parsers raise nearly anything on a damaged file
        raise DataError(f"{where} is not a readable image ({error}); replace or remove it") from error


def check_size(size: int) -> None:
    """ConfigError for a size that images are not resized to."""
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"--size {size} is outside 1..{LARGEST}")


def centre_square(image: Image.Image, size: int) -> Pixels:
    """Resize the shorter side to `size` pixels (bilinear, antialiased) and cut out the centre.

    (height, width) -> (size, size, 3), the same pixels as torchvision's Resize and CenterCrop.
    """
    short = min(image.size)
    width, height = (side * size // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def fifth_of_each_class(name: str, labels: Labels, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Mark a fifth of each class, rounded, drawn by the name of a data set and `seed`."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(int(labels.max(initial=-1)) + 1):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=stream(seed, name, label)).numpy()
        chosen[members[order[: (len(members) + 2) // 5]]] = True
    return chosen
