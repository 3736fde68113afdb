"""From the official lists of a data set to its source: what must be there, how many, and how it is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from seal_ray.data.dataset import ClassName, Labels, Pixels, Sample, Source, decode
from seal_ray.data.sources import SourceInfo
from seal_ray.data.sources.archives import Tree
from seal_ray.errors import ConfigError, DataError
from seal_ray.streams import stream

LARGEST = 4096

Entry = tuple[str, int]
"""Where an image lies in its tree, and its label."""


@dataclass(frozen=True)
class Listing:
    """The images of a data set as its own lists have them; `lists` names those files for people."""

    classes: tuple[ClassName, ...]
    train: Sequence[Entry]
    val: Sequence[Entry]
    lists: str


@dataclass(frozen=True)
class Target:
    """How a data set is read. archives: patterns of the names of its archives; banner: rows to cut off."""

    archives: tuple[str, ...]
    read: Callable[[Tree], Listing]
    banner: int = 0  # pixels at the bottom of each image


def to_source(
    target: Target, tree: Tree, info: SourceInfo, *, size: int, allow_subset: bool = False
) -> Source:
    """The source that a tree of files holds, its images cut to squares of `size` pixels.

    What the lists name must be there, in the published numbers. With `allow_subset` images may be missing,
    and classes that are left without images in one of the splits are dropped. Raises ConfigError for a size
    outside 1..4096 and DataError that says what is missing.
    """
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"--size {size} is outside 1..{LARGEST}")
    listing = target.read(tree)
    listing = _those_there(listing, tree) if allow_subset else _complete(listing, tree)
    _check_counts(listing, info, tree.where, allow_subset)

    def samples(images: Sequence[Entry]) -> list[Sample]:
        return [
            Sample(partial(_read, tree, name, size, target.banner), label, name) for name, label in images
        ]

    return Source(
        name=info.name,
        classes=listing.classes,
        train=samples(listing.train),
        val=samples(listing.val),
        size=size,
        mean=None,
        std=None,
        licence_note=f"{info.licence_note} Split: {info.split}.",
    )


def _complete(listing: Listing, tree: Tree) -> Listing:
    absent = [name for name, _ in (*listing.train, *listing.val) if name not in tree.names]
    if absent:
        more = f" (and {len(absent) - 1:,} more)" if len(absent) > 1 else ""
        raise DataError(
            f"{absent[0]} is missing in {tree.where}, though {listing.lists} lists it{more}; get the "
            "complete archive, or add --allow-subset"
        )
    return listing


def _those_there(listing: Listing, tree: Tree) -> Listing:
    train, val = ([i for i in images if i[0] in tree.names] for images in (listing.train, listing.val))
    kept = sorted({label for _, label in train} & {label for _, label in val})
    if not kept:
        raise DataError(f"{tree.where} has no class with both train and test images of {listing.lists}")
    new = {label: place for place, label in enumerate(kept)}
    return replace(
        listing,
        classes=tuple(listing.classes[label] for label in kept),
        train=[(name, new[label]) for name, label in train if label in new],
        val=[(name, new[label]) for name, label in val if label in new],
    )


def _check_counts(listing: Listing, info: SourceInfo, where: str, allow_subset: bool) -> None:
    """Compare with the published numbers; a subset may have less of each, never more."""
    train, val = len(listing.train), len(listing.val)
    found = {"classes": len(listing.classes), "images": train + val}
    published = {"classes": info.classes, "images": info.images}
    if info.train is not None and info.images is not None:
        found |= {"training images": train, "test images": val}
        published |= {"training images": info.train, "test images": info.images - info.train}
    for what, count in found.items():
        expected = published[what]
        assert expected is not None
        if count > expected or (count < expected and not allow_subset):
            remedy = "get the official archive" + ("" if count > expected else ", or add --allow-subset")
            raise DataError(f"{where} has {count:,} {what} where {info.name} has {expected:,}; {remedy}")


def _read(tree: Tree, name: str, size: int, banner: int) -> Pixels:
    image = decode(tree.read(name), f"{name} in {tree.where}")
    if image.height <= banner:
        raise DataError(f"{name} in {tree.where} is {image.height} pixels high, all of them its banner")
    return centre_square(image.crop((0, 0, image.width, image.height - banner)) if banner else image, size)


def centre_square(image: Image.Image, size: int) -> Pixels:
    """Resize the shorter side to `size` pixels (bilinear, antialiased) and cut out the centre.

    (height, width) -> (size, size, 3), the same pixels as torchvision's Resize and CenterCrop.
    """
    short = min(image.size)
    width, height = (side * size // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def hold_out_a_fifth(name: str, images: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Divide images into train and val where nobody published a split; the draw depends on `name` alone."""
    chosen = fifth_of_each_class(name, np.array([label for _, label in images], dtype=np.int64))
    train, val = ([i for i, c in zip(images, chosen, strict=True) if c == held] for held in (False, True))
    return train, val


def fifth_of_each_class(name: str, labels: Labels, seed: int = 0) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mark a fifth of each class, rounded, drawn by the name of a data set and `seed`."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(int(labels.max(initial=-1)) + 1):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=stream(seed, name, label)).numpy()
        chosen[members[order[: (len(members) + 2) // 5]]] = True
    return chosen
