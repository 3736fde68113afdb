"""The plain description that every source of images is read into, and a split for those without one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from seal_ray.errors import DataError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Channels = tuple[float, float, float]
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


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
    its name has that as its name. notes: what a person should know of how it was read. converted: what was
    done to images beyond a change of layout, each with those that it was done to while they were read.
    """

    classes: tuple[ClassName, ...]
    train: Sequence[Sample]
    val: Sequence[Sample]
    size: int
    mean: Channels | None = None
    std: Channels | None = None
    name: str = ""
    licence_note: str = ""
    notes: Sequence[str] = ()
    converted: Mapping[str, set[str]] = field(default_factory=dict)

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


NAMED = 20
"""Broken images that one error names at most."""


def unreadable(samples: Iterable[Sample]) -> Iterator[DataError]:
    """Read images, and say what is wrong with those that cannot be."""
    for sample in samples:
        try:
            sample.read()
        except DataError as error:
            yield error


def together(errors: Iterable[DataError]) -> DataError:
    """One error that says what several do, a line each, none twice."""
    said = list(dict.fromkeys(map(str, errors)))
    more = [f"and {len(said) - NAMED:,} more"] * (len(said) > NAMED)
    return DataError("\n  ".join([*said[:NAMED], *more]))


def check_words(words: Iterable[str], whose: str) -> None:
    r"""DataError for the first text with bytes that are not UTF-8, which `whose` says the place of."""
    for one in words:
        try:
            one.encode()
        except UnicodeEncodeError:
            said = os.fsencode(one).decode(errors="backslashreplace")
            raise DataError(f"'{said}', {whose}, is not a name in UTF-8; rename it") from None


def fifth_of_each_class(name: str, labels: Labels, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Mark a fifth of each class, rounded, drawn by the name of a data set and `seed`."""
    import torch  # seconds, which a mistake on the command line should not wait for

    from seal_ray.streams import stream

    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(int(labels.max(initial=-1)) + 1):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=stream(seed, name, label)).numpy()
        chosen[members[order[: (len(members) + 2) // 5]]] = True
    return chosen
