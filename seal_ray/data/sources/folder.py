"""Folders of images, a folder a class."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low

from seal_ray.data.dataset import ClassName, Pixels, Sample, Source, check_words, together, unreadable
from seal_ray.data.image_files import (
    LARGEST,
    Decoder,
    centre_square,
    check_size,
    is_clutter,
    shorter_side,
    shown,
)
from seal_ray.data.sources.archives import natural_key
from seal_ray.data.sources.registry import source
from seal_ray.errors import ConfigError, DataError

SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
A_FOLDER_A_CLASS = "it should hold one folder of images a class"

ImagesByClass = dict[str, list[str]]
"""Paths below a root, in natural order, by the name of their class."""


@dataclass(frozen=True)
class _Scan:
    """What a folder of classes holds. sides: the shorter one of each image. note: what was left out.

    broken: what is wrong with images whose headers cannot be read.
    """

    root: Path
    images: ImagesByClass
    sides: list[int]
    note: str
    broken: list[DataError]


@source(
    "folder",
    needs=("a folder of images a class: --source and --val-share, or --train and --val",),
    one_of=(("train", "path"), ("val", "val_share")),
    licence_note="Your own images: what you may do with them holds for this data set.",
    split="your own",
)
def folder(
    train: Path | None = None,
    val: Path | None = None,
    size: int | None = None,
    path: Path | None = None,
    val_share: float | None = None,
    background: str = "white",
    seed: int = 0,
) -> Source:
    """Read one or two folders with one folder of images a class, laid out as for torchvision's ImageFolder.

    Labels follow the sorted names of the class folders. `path` is the same as `train`. Without `val`, whose
    classes must be the same, a share of each class is held out, rounded, at least one image and never all:
    those whose SHA-256 of "seed/class/name" is smallest, so that it follows from the files' names alone.

    What is hidden or was left by other programs is no image at any depth; of the other files the content
    decides, whatever they are called. What is left out is counted in the notes. The shorter side of each
    image is resized to `size` pixels, by default the median of all (bilinear, antialiased), and the centre is
    cut out, both as torchvision does. Raises ConfigError for options that make no sense together, DataError
    for folders that are missing, empty or differ, and for images whose header cannot be read: then every
    image is read, and all that cannot be are named.
    """
    if path is not None and train is not None:
        raise ConfigError("--source and --train both name the folder to train on; give one of them")
    if val_share is not None and val is not None:
        raise ConfigError("--val and --val-share both say what is held out; give one of them")
    if val_share is not None and not 0 < val_share < 1:
        raise ConfigError(f"--val-share {val_share} is not between 0 and 1")
    if size is not None:
        check_size(size)
    decoder, root = Decoder(background), path or train
    assert root is not None
    if absent := [f"{one} is not a folder" for one in (root, val) if one is not None and not one.is_dir()]:
        raise DataError(f"{', '.join(absent)}; {A_FOLDER_A_CLASS}")
    if val is None:
        assert val_share is not None
        scans = [_scan(root)]
        splits = [(root, part) for part in _divided(scans[0].images, val_share, seed)]
    else:
        scans = _alike(root, val)
        splits = [(scan.root, scan.images) for scan in scans]
    if broken := [error for scan in scans for error in scan.broken]:
        files = [scan.root / name for scan in scans for images in scan.images.values() for name in images]
        every = (Sample(partial(_read, file, 1, decoder), 0, shown(file)) for file in files)
        raise together([*broken, *unreadable(every)])
    names, sides = sorted(scans[0].images), [side for scan in scans for side in scan.sides]
    notes = [scan.note for scan in scans if scan.note]
    if size is None:
        size = min(median_low(sides), LARGEST)
        notes.append(
            f"size {size}: the median of the shorter sides, {min(sides):,} to {max(sides):,} pixels, "
            f"{len(sides) * 3 * size**2 / 1e9:.2g} GB raw; --size sets another"
        )

    def samples(root: Path, images: ImagesByClass) -> list[Sample]:
        return [
            Sample(partial(_read, root / name, size, decoder), label, shown(root / name))
            for label, class_ in enumerate(names)
            for name in images[class_]
        ]

    train_samples, val_samples = (samples(*split) for split in splits)
    return Source(
        classes=tuple(ClassName(name, name) for name in names),
        train=train_samples,
        val=val_samples,
        size=size,
        notes=notes,
        converted=decoder.converted,
    )


def _alike(train: Path, val: Path) -> list[_Scan]:
    """Two folders, which must be two, of the same classes."""
    if train.resolve() == val.resolve():
        raise DataError(f"{train} is --train and --val, so nothing is held out; give --val-share instead")
    for root in (train, val):
        _class_names(root)  # before any image is read
    scans = [_scan(train), _scan(val)]
    there, lacking = scans
    if differing := sorted(there.images.keys() ^ lacking.images.keys()):
        if differing[0] not in there.images:
            there, lacking = lacking, there
        raise DataError(
            f"{there.root} has a class {differing[0]!r} that {lacking.root} lacks; the classes must agree"
        )
    return scans


def _scan(root: Path) -> _Scan:
    images: ImagesByClass = {name: [] for name in _class_names(root)}
    sides, broken, skipped = [], list[DataError](), defaultdict(list)
    for name in sorted(_files(root), key=natural_key):
        if is_clutter(name):
            skipped["hidden, or left by other programs"].append(name)
        elif "/" not in name:
            skipped["in no class's folder"].append(name)
        elif (root / name).is_dir():
            skipped["links to folders"].append(name)
        else:
            try:
                side = shorter_side(root / name)
            except DataError as error:
                broken.append(error)
                side = 0
            if side is None:
                skipped["no images"].append(name)
            else:
                images[name.split("/")[0]].append(name)
                sides.append(side)
    reasons = [f"{len(names)} {why} ({shown(Path(names[0]))})" for why, names in skipped.items()]
    count = sum(map(len, skipped.values()))
    note = (
        f"skipped {count:,} file{'s' * (count > 1)} in {shown(root)}: {', '.join(reasons)}" if count else ""
    )
    if empty := [name for name, found in images.items() if not found]:
        raise DataError(f"{root / empty[0]} holds no images" + (f"; {note}" if note else ""))
    return _Scan(root, images, sides, note, broken)


def _class_names(root: Path) -> list[str]:
    names = sorted(child.name for child in root.iterdir() if child.is_dir() and not is_clutter(child.name))
    if not names:
        raise DataError(f"{root} holds no folders; {A_FOLDER_A_CLASS}")
    if SPLIT_NAMES.issuperset(map(str.lower, names)):
        raise DataError(
            f"{root} holds {' and '.join(names)}, which are no classes; give each by itself, as --train and "
            "--val"
        )
    check_words(names, f"a folder in {root}")
    return names


def _files(root: Path) -> Iterator[str]:
    """All files, and links to folders, by their path below the root."""
    for child in root.iterdir():
        if not child.is_dir():
            yield child.name
            continue
        for place, folders, files in os.walk(child):
            links = [name for name in folders if (Path(place) / name).is_symlink()]
            yield from ((Path(place) / name).relative_to(root).as_posix() for name in (*files, *links))


def _divided(images: ImagesByClass, share: float, seed: int) -> tuple[ImagesByClass, ImagesByClass]:
    """The images of each class to train on and to hold out."""
    train, val = {}, {}
    for class_, names in images.items():
        count = min(max(round(share * len(names)), 1), len(names) - 1)
        ranked = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest())
        held = set(ranked[:count])
        train[class_] = [name for name in names if name not in held]
        val[class_] = [name for name in names if name in held]
    return train, val


def _read(file: Path, size: int, decoder: Decoder) -> Pixels:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(file)} cannot be read: {error.strerror}") from error
    return centre_square(decoder(data, shown(file)), size)
