"""Prepare a data set: read a source's images once, write .beton files and their description."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seal_ray.data import beton
from seal_ray.data.dataset import SPLITS, Channels, Pixels, Sample, Source, check_words, together, unreadable
from seal_ray.data.prepared import (
    Dataset,
    SplitFile,
    Subset,
    dataset_json,
    file_sha256,
    load_dataset,
    verify,
)
from seal_ray.errors import ConfigError, DataError, SealRayWarning
from seal_ray.storage.files import sync_folder, write_durably

PROGRESS_EVERY = 100  # images
LONGEST_NAME = 64  # characters, as long as a tag of W&B
IMBALANCE = 10
"""How many times more images than the smallest class the largest may have without a warning."""

Progress = Callable[[str, int, int], None]


def prepare(
    source: Source,
    to: Path,
    *,
    classes: int | None = None,
    per_class: int | None = None,
    jpeg: bool = False,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    r"""Write `source`, or a part of it, as a data set in the new folder `to`.

    `classes` draws that many classes, which keep their order and are relabelled from 0; `per_class` draws
    that many training images of each class, while val keeps all images of the classes. Both draws depend on
    `seed` alone, and a smaller number draws a part of what a larger one does. Images are stored as raw
    pixels, or as JPEG of quality 95 with `jpeg`. `name` is what the data set is called: by default as its
    source, or as the folder `to` if that is `folder`. `progress(split, done, total)` is called every 100
    images.

    `to` appears at once and complete, or not at all. When it already holds the same images, labels, classes,
    normalisation and encoding, undamaged, it is left as it is and returned.

    The identity is "sha256:" and the hexadecimal sha256 of these bytes, for train and then for val: the line
    "<split> <N> <height> <width> 3\n" in ASCII; the N labels, little-endian int64; the source's pixels after
    any resizing, N x height x width x 3 uint8, row by row, red, green, blue.

    Raises ConfigError for a selection that the source cannot give and for a name that is no label; DataError
    for images that cannot be read, all of which it names, a split without images, val images of which all are
    in train, a folder `to` that holds something else, and a disk that cannot be written. Warns of val images
    that are in train, equal in all pixels, of classes of which one is 10 times as large as another, of those
    with one training image, and of those with none in val.
    """
    to = to.resolve()
    called = name or (to.name if source.name == "folder" else source.name)
    if len(called) > LONGEST_NAME or not called.isprintable():
        raise ConfigError(f"--name {called!r}: give at most {LONGEST_NAME} printable characters")
    chosen = _select(source, Subset(classes, per_class, seed), called)
    _warn_of_sizes(chosen.source)
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        return _existing(to, chosen, name, "jpeg" if jpeg else "raw", progress)
    scratch = to.parent / f".{to.name}.{secrets.token_hex(4)}.partial"
    try:
        scratch.mkdir(parents=True)
        dataset = _write(chosen, scratch, jpeg, progress)
        sync_folder(scratch)
        scratch.rename(to)
        sync_folder(to.parent)
    except OSError as error:
        raise DataError(f"{to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return replace(dataset, folder=to)


@dataclass(frozen=True)
class _Chosen:
    """A source cut down to a subset of itself, with its labels counted anew, and what it is to be called."""

    source: Source
    subset: Subset
    name: str


def _select(source: Source, subset: Subset, name: str) -> _Chosen:
    check_labels(source)
    check_words((word for one in source.classes for word in (one.id, one.words)), f"a class of {source.name}")
    labels = _chosen_labels(source, subset)
    train = [sample for sample in source.train if sample.label in labels]
    if subset.per_class is not None:
        train = _per_class(train, source, labels, subset.per_class, subset.seed)
    val = [sample for sample in source.val if sample.label in labels]
    for split, samples in (("train", train), ("val", val)):
        if not samples:
            raise DataError(f"{source.name} has no {split} images of the chosen classes; choose more classes")
    relabelled = replace(
        source,
        classes=tuple(source.classes[label] for label in labels),
        train=[replace(sample, label=labels[sample.label]) for sample in train],
        val=[replace(sample, label=labels[sample.label]) for sample in val],
    )
    return _Chosen(relabelled, subset, name)


def _warn_of_sizes(source: Source) -> None:
    """Warn of classes that are much smaller than others, or as good as empty."""
    train, val = (
        np.bincount([sample.label for sample in samples], minlength=len(source.classes))
        for samples in (source.train, source.val)
    )
    small, large = int(train.argmin()), int(train.argmax())
    said = []
    if train[large] >= IMBALANCE * train[small]:
        ends = " and ".join(f"{source.classes[label].id} {train[label]:,}" for label in (large, small))
        said.append(f"classes differ much in size: {ends} training images")
    for counts, few, what in ((train, 1, "no more than one training image"), (val, 0, "no val image")):
        if (labels := np.flatnonzero(counts <= few)).size:
            more = f" (and {len(labels) - 1} more)" if len(labels) > 1 else ""
            said.append(f"the class {source.classes[labels[0]].id}{more} has {what}")
    for text in said:
        warnings.warn(f"{source.name}: {text}", SealRayWarning, stacklevel=3)


def check_labels(source: Source) -> None:
    """DataError for a label that is no place in the source's classes."""
    for sample in (*source.train, *source.val):
        if not 0 <= sample.label < len(source.classes):
            raise DataError(
                f"{sample.origin} of {source.name} has the label {sample.label}, and there are "
                f"{len(source.classes)} classes, from 0"
            )


def source_identity(source: Source) -> str:
    """What the images and labels are: "sha256:" and the digest that `prepare` gives. Reads every image."""
    return _tallied(source).identity


def _chosen_labels(source: Source, subset: Subset) -> dict[int, int]:
    """Draw labels of the source: ascending, each with its new label."""
    count = len(source.classes)
    wanted = count if subset.classes is None else subset.classes
    if not 1 <= wanted <= count:
        raise ConfigError(f"--classes {wanted} is outside 1..{count}, the classes of {source.name}")
    import torch

    from seal_ray.streams import stream

    drawn = torch.randperm(count, generator=stream(subset.seed, "classes"))[:wanted].tolist()
    return {label: new for new, label in enumerate(sorted(drawn))}


def _per_class(
    train: Sequence[Sample], source: Source, labels: dict[int, int], wanted: int, seed: int
) -> list[Sample]:
    members: dict[int, list[int]] = {label: [] for label in labels}
    for index, sample in enumerate(train):
        members[sample.label].append(index)
    import torch

    from seal_ray.streams import stream

    kept: list[int] = []
    for label, indices in members.items():
        if not 1 <= wanted <= len(indices):
            name = source.classes[label].id
            raise ConfigError(f"--per-class {wanted} is outside 1..{len(indices)}, the images of {name}")
        order = torch.randperm(len(indices), generator=stream(seed, "per_class", label))
        kept += [indices[place] for place in order[:wanted].tolist()]
    return [train[index] for index in sorted(kept)]


@dataclass
class _Tally:
    """What is learned about images while they are read.

    Their identity; a histogram for mean and std; of each image 8 bytes of a digest of its pixels.
    """

    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))
    images: dict[str, array[int]] = field(default_factory=lambda: {split: array("Q") for split in SPLITS})

    @property
    def identity(self) -> str:
        return f"sha256:{self.digest.hexdigest()}"


def _tallied(source: Source, progress: Progress | None = None) -> _Tally:
    """What is learned by reading all images."""
    tally = _Tally()
    for split in SPLITS:
        for _ in _read(source, split, tally, progress):
            pass
    return tally


def _read(
    source: Source, split: str, tally: _Tally, progress: Progress | None
) -> Iterator[tuple[Pixels, int]]:
    """Yield the images and labels of a split in order, and tally them as they pass."""
    samples = source.train if split == "train" else source.val
    shape = (source.size, source.size, 3)
    labels = np.array([sample.label for sample in samples], dtype="<i8")
    tally.digest.update(f"{split} {len(samples)} {source.size} {source.size} 3\n".encode())
    tally.digest.update(labels.tobytes())
    for done, sample in enumerate(samples, start=1):
        try:
            pixels = np.asarray(sample.read())
        except DataError as error:
            rest = (*samples[done:], *(source.val if split == "train" else ()))
            raise together([error, *unreadable(rest)]) from error
        if pixels.shape != shape or pixels.dtype != np.uint8:
            found = f"{pixels.dtype} {pixels.shape}"
            raise DataError(f"{sample.origin} of {source.name} is {found}, not uint8 {shape}; replace it")
        content = np.ascontiguousarray(pixels).data
        tally.digest.update(content)
        tally.images[split].frombytes(hashlib.blake2b(content, digest_size=8).digest())
        if split == "train" and source.mean is None:
            tally.histogram += [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)]
        yield pixels, sample.label
        if progress and (done % PROGRESS_EVERY == 0 or done == len(samples)):
            progress(split, done, len(samples))


def _write(chosen: _Chosen, folder: Path, jpeg: bool, progress: Progress | None) -> Dataset:
    source, tally = chosen.source, _Tally()
    splits: dict[str, SplitFile] = {}
    for split in SPLITS:
        path = folder / f"{split}.beton"
        count = len(source.train if split == "train" else source.val)
        beton.write(path, _read(source, split, tally, progress), count=count, size=source.size, jpeg=jpeg)
        _sync(path)
        splits[split] = SplitFile(path.name, count, file_sha256(path), path.stat().st_size)
    _compare_splits(source, tally)
    mean, std = _normalisation(source, tally)
    dataset = Dataset(
        folder=folder,
        name=chosen.name,
        source=source.name,
        identity=tally.identity,
        encoding="jpeg" if jpeg else "raw",
        size=source.size,
        classes=source.classes,
        mean=mean,
        std=std,
        splits=splits,
        subset=chosen.subset,
        licence_note=source.licence_note,
    )
    write_durably(folder / "dataset.json", dataset_json(dataset))
    return dataset


def _compare_splits(source: Source, tally: _Tally) -> None:
    """Warn of images of val that are in train, pixel by pixel; DataError when all are."""
    train, val = (np.frombuffer(tally.images[split], dtype=np.uint64) for split in SPLITS)
    both = np.flatnonzero(np.isin(val, train))
    if not len(both):
        return
    twin = source.train[int(np.flatnonzero(train == val[both[0]])[0])].origin
    example = f"{source.val[int(both[0])].origin} is {twin}"
    if len(both) == len(val):
        raise DataError(f"{source.name}: all {len(val):,} val images are in train, such as {example}")
    text = f"{source.name}: {len(both):,} of {len(val):,} val images are in train, such as {example}"
    warnings.warn(text, SealRayWarning, stacklevel=4)


def _normalisation(source: Source, tally: _Tally) -> tuple[Channels, Channels]:
    """Give the source's mean and std, or the training pixels': sums of integers, rounded once at the end."""
    if source.mean is not None and source.std is not None:
        return source.mean, source.std
    moments = [_moments(counts.tolist()) for counts in tally.histogram]
    if any(std == 0 for _, std in moments):
        raise DataError(f"{source.name}: a colour channel has the same value in all training pixels")
    (red, r), (green, g), (blue, b) = moments
    return (red, green, blue), (r, g, b)


def _moments(counts: list[int]) -> tuple[float, float]:
    """Compute mean and standard deviation of value / 255, where `counts[value]` pixels have the value."""
    pixels = sum(counts)
    total = sum(count * value for value, count in enumerate(counts))
    squares = sum(count * value**2 for value, count in enumerate(counts))
    return total / (255 * pixels), math.sqrt(pixels * squares - total**2) / (255 * pixels)


def _existing(
    to: Path, chosen: _Chosen, name: str | None, encoding: str, progress: Progress | None
) -> Dataset:
    """Load the data set in `to` if it is what was asked for; DataError otherwise."""
    remedy = "choose another folder or remove it"
    try:
        dataset = load_dataset(to)
    except DataError as error:
        raise DataError(f"{to} exists already and holds no usable data set ({error}); {remedy}") from error
    source, tally = chosen.source, _tallied(chosen.source, progress)
    found = (dataset.identity, dataset.encoding, dataset.classes, (dataset.mean, dataset.std), dataset.name)
    asked = (tally.identity, encoding, source.classes, _normalisation(source, tally), name or dataset.name)
    facts = ("images or labels", "encoding", "classes", "mean and std", "name")
    if differing := [fact for fact, old, new in zip(facts, found, asked, strict=True) if old != new]:
        raise DataError(f"{to} holds another data set: its {', '.join(differing)} differ; {remedy}")
    verify(dataset)
    return dataset


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
