"""What is assumed of a data set that is not prepared, so that `seal-ray plan` can count without it.

Nothing else may: what is made here has no files, and an identity that no prepared data set has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seal_ray.data.dataset import ClassName, Labels
from seal_ray.data.prepared import Dataset, Subset, open_dataset
from seal_ray.data.sources import SOURCES
from seal_ray.storage.paths import storage_path

DIGITS = 1_438
"""Training images of the digits: all but a fifth of each class."""


def open_or_assume(path: str) -> Dataset:
    """The data set in a folder; where none is prepared there, one of the size that the folder's name tells.

    `tiny-imagenet` and `tiny-imagenet-200` are the source of that name as a whole, `tiny-imagenet-20` is 20
    of its classes. Raises as open_dataset where the name tells nothing.
    """
    folder = storage_path(path)
    if not isinstance(folder, Path) or (folder / "dataset.json").exists():
        return open_dataset(path)
    name, _, number = folder.name.rpartition("-")
    if folder.name in SOURCES:
        name, number = folder.name, str(SOURCES[folder.name].info.classes)
    most, train = _published(name)
    if not most or not train or not number.isdecimal() or not 1 <= int(number) <= most:
        return open_dataset(path)
    return Dataset(
        folder=folder,
        name=name,
        identity=f"assumed of {folder}",
        encoding="raw",
        size=0,
        classes=tuple(ClassName(str(label), "") for label in range(int(number))),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        splits={},
        subset=Subset(None, None, 0),
        licence_note="",
    )


def assumed_labels(dataset: Dataset) -> Labels:
    """A label for each training image that is assumed, classes as equal in size as can be."""
    classes, (known, train) = len(dataset.classes), _published(dataset.name)
    assert known is not None
    assert train is not None
    return np.arange(train * classes // known) % classes


def _published(name: str) -> tuple[int | None, int | None]:
    """Classes and training images of a source, None where they are not known."""
    if name not in SOURCES:
        return None, None
    info = SOURCES[name].info
    return info.classes, DIGITS if name == "digits" else info.train


def assumption(dataset: Dataset) -> str:
    """What is assumed, in words; empty of a data set that is prepared."""
    if dataset.splits:
        return ""
    classes, here = len(dataset.classes), Path.cwd()
    folder = dataset.folder.relative_to(here) if dataset.folder.is_relative_to(here) else dataset.folder
    whole = classes == SOURCES[dataset.name].info.classes
    source = f"{dataset.name} has" if whole else f"{classes} classes of {dataset.name} have"
    images = f"{len(assumed_labels(dataset)):,} training images in {classes} classes"
    return f"{folder} is not prepared: assumed {images}, as {source}"
