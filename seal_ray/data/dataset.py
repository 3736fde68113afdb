"""The plain description that every source of images is read into."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from seal_ray.errors import DataError

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
    """Images that can be prepared as a data set: what they are called, and where each comes from.

    `size` is the height and width of every image in pixels. `mean` and `std` are of RGB values in 0..1;
    None has them computed from the training images when the data set is prepared.
    """

    name: str
    classes: tuple[ClassName, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]
    size: int
    mean: Channels | None
    std: Channels | None
    licence_note: str


def decode(data: bytes, where: str) -> Image.Image:
    """Decode an image to 8-bit RGB (a grayscale image gets three equal channels).

    Raises DataError that begins with `where`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's parsers raise nearly anything on a damaged file
        raise DataError(f"{where} is not a readable image ({error}); replace or remove it") from error
