"""What can be prepared as a data set: Tiny ImageNet, CIFAR, digits, letters, folders, transfer targets."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seal_ray.data.beton import load_dataset
from seal_ray.data.dataset import ClassName, Pixels, Sample, Source, decode
from seal_ray.data.sources import CATALOGUE, SourceInfo
from seal_ray.data.sources.archives import natural_key
from seal_ray.data.sources.files import open_files
from seal_ray.data.sources.letters import letters
from seal_ray.data.sources.listing import LARGEST, centre_square, fifth_of_each_class, to_source
from seal_ray.data.sources.tiny_imagenet import tiny_imagenet
from seal_ray.data.sources.transfer import TARGETS
from seal_ray.errors import ConfigError, DataError

__all__ = [
    "SOURCES",
    "ClassName",
    "Sample",
    "Source",
    "SourceInfo",
    "find_prepared",
    "list_sources",
    "open_source",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TARGET_SIZE = 64

# What each source is read from, by the options of `open_source`; those of OPTIONAL may be left out.
SOURCES: dict[str, tuple[str, ...]] = {
    "tiny-imagenet": ("source",),
    "digits": (),
    "letters": (),
    "folder": ("train", "val", "size"),
    "cifar10": ("source", "download"),
    "cifar100": ("source", "download"),
    **dict.fromkeys(TARGETS, ("source", "size", "allow_subset")),
}
OPTIONAL = ("download", "allow_subset")


def list_sources() -> tuple[SourceInfo, ...]:
    """What can be prepared: the files each source needs, its address, licence and published counts."""
    return tuple(CATALOGUE[name] for name in SOURCES)


def find_prepared(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """The data sets that lie in `folder`, one folder each, by the name of their source; damaged ones not."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/dataset.json")):
        with suppress(DataError):
            found.setdefault(load_dataset(path.parent).name, []).append(path.parent)
    return {name: tuple(paths) for name, paths in found.items()}


def open_source(
    name: str,
    *,
    source: Path | None = None,
    train: Path | None = None,
    val: Path | None = None,
    size: int | None = None,
    download: bool = False,
    allow_subset: bool = False,
) -> Source:
    """Read the source called `name` from the options that `SOURCES` lists for it.

    `size` is 64 for the transfer targets if it is not given. Those must be complete, by the published
    counts, unless `allow_subset` takes what is there.

    Raises ConfigError for an unknown name and for an option that is missing or does not apply; DataError when
    what the options point to is missing, incomplete or damaged.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SOURCES)}"
        raise ConfigError(f"unknown data source {name!r}; {hint}")
    if name in TARGETS and size is None:
        size = TARGET_SIZE
    options = {"source": source, "train": train, "val": val, "size": size}
    flags = {"download": download or None, "allow_subset": allow_subset or None}
    for option, value in {**options, **flags}.items():
        flag = f"--{option.replace('_', '-')}"
        if value is not None and option not in SOURCES[name]:
            raise ConfigError(f"{flag} does not apply to {name}; leave it out")
        if value is None and option in SOURCES[name] and option not in OPTIONAL:
            raise ConfigError(f"{name} needs {flag}")
    if name == "tiny-imagenet":
        assert source is not None
        return tiny_imagenet(source)
    if name == "folder":
        assert train is not None
        assert val is not None
        assert size is not None
        return folder(train, val, size)
    if name == "digits":
        return digits()
    if name == "letters":
        return letters()
    assert source is not None
    if name in TARGETS:
        assert size is not None
        tree = open_files(source, TARGETS[name].archives)
        return to_source(TARGETS[name], tree, CATALOGUE[name], size=size, allow_subset=allow_subset)
    return cifar(name, source, download=download)


def digits(seed: int = 0) -> Source:
    """Read the 1,797 handwritten digits that scikit-learn brings: no download, trained on within seconds.

    The 8 x 8 images of values 0..16 become 32 x 32 RGB: each pixel four times in both directions, values
    scaled to 0..255 and rounded. Of each class a fifth, rounded and drawn by `seed`, is val.
    """
    from sklearn.datasets import load_digits  # takes a second, and only digits needs it

    bunch = load_digits()
    values = bunch.images.astype(np.uint16)
    images = np.repeat(np.repeat((values * 255 + 8) // 16, 4, axis=1), 4, axis=2).astype(np.uint8)
    held_out = fifth_of_each_class("digits", bunch.target, seed)
    samples = [
        Sample(partial(_rgb, image), int(label), f"digits/{index}")
        for index, (image, label) in enumerate(zip(images, bunch.target, strict=True))
    ]
    return Source(
        name="digits",
        classes=tuple(ClassName(str(digit), str(digit)) for digit in range(10)),
        train=[sample for sample, val in zip(samples, held_out, strict=True) if not val],
        val=[sample for sample, val in zip(samples, held_out, strict=True) if val],
        size=32,
        mean=None,
        std=None,
        licence_note=CATALOGUE["digits"].licence_note,
    )


def _rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


def folder(train: Path, val: Path, size: int) -> Source:
    """Read two folders with one folder of images a class, laid out as for torchvision's ImageFolder.

    Labels follow the sorted names of the class folders, which must agree between the two. The shorter side
    of each image is resized to `size` pixels (bilinear, antialiased) and the centre is cut out, both as
    torchvision does. Raises ConfigError for a size outside 1..4096, DataError for folders that are missing,
    empty or differ.
    """
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"--size {size} is outside 1..{LARGEST}")
    names, val_names = _class_folders(train), _class_folders(val)
    if differing := sorted(set(names) ^ set(val_names)):
        there, lacking = (train, val) if differing[0] in names else (val, train)
        raise DataError(f"{there} has a class {differing[0]!r} that {lacking} lacks; the classes must agree")
    return Source(
        name="folder",
        classes=tuple(ClassName(name, name) for name in names),
        train=_folder_samples(train, names, size),
        val=_folder_samples(val, names, size),
        size=size,
        mean=None,
        std=None,
        licence_note=CATALOGUE["folder"].licence_note,
    )


def _class_folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; it should hold one folder of images a class")
    folders = (child.name for child in path.iterdir() if child.is_dir())
    names = sorted(name for name in folders if not name.startswith("."))
    if not names:
        raise DataError(f"{path} holds no folders; it should hold one folder of images a class")
    return names


def _folder_samples(path: Path, names: Sequence[str], size: int) -> list[Sample]:
    samples = []
    for label, name in enumerate(names):
        files = [file for file in (path / name).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise DataError(f"{path / name} holds no images ({' '.join(IMAGE_SUFFIXES)})")
        for file in sorted(files, key=lambda file: natural_key(file.as_posix())):
            samples.append(Sample(partial(_read_resized, file, size), label, str(file)))
    return samples


def _read_resized(file: Path, size: int) -> Pixels:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    return centre_square(decode(data, str(file)), size)


def cifar(name: str, path: Path, *, download: bool = False) -> Source:
    """Read "cifar10" or "cifar100" from the extracted python archive in the folder `path`.

    The archive's files are pickles, so they are opened only when their checksums are the official ones.
    `download` fetches the archive from its official address first. Raises DataError.
    """
    from torchvision import datasets  # seconds, and only CIFAR needs it

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    if download:
        _download(kind, path)
    _refuse_altered(kind, path)
    train, val = (kind(str(path), train=split, download=False) for split in (True, False))
    return Source(
        name=name,
        classes=tuple(ClassName(words, words) for words in train.classes),
        train=_cifar_samples(train, "train"),
        val=_cifar_samples(val, "test"),
        size=32,
        mean=None,
        std=None,
        licence_note=CATALOGUE[name].licence_note,
    )


def _download(kind: Callable[..., Any], path: Path) -> None:
    try:
        kind(str(path), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the download to {path} failed: {error}; try again, or fetch it by hand") from error


def _refuse_altered(kind: Any, path: Path) -> None:
    from torchvision.datasets.utils import check_integrity

    meta = (kind.meta["filename"], kind.meta["md5"])
    for file, md5 in (*kind.train_list, *kind.test_list, meta):
        if not check_integrity(path / kind.base_folder / file, md5):
            raise DataError(
                f"{path / kind.base_folder / file} is missing or not the official file; "
                "use --download, or extract the official python archive there"
            )


def _cifar_samples(data: Any, split: str) -> list[Sample]:
    return [
        Sample(partial(np.asarray, image), int(label), f"{split}/{index}")
        for index, (image, label) in enumerate(zip(data.data, data.targets, strict=True))
    ]
