"""What can be prepared as a data set: Tiny ImageNet, CIFAR, digits, and folders of images."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seal_ray.data.archives import natural_key
from seal_ray.data.samples import ClassName, Labels, Pixels, Sample, Source, decode
from seal_ray.data.tiny_imagenet import tiny_imagenet
from seal_ray.errors import ConfigError, DataError
from seal_ray.streams import stream

__all__ = ["SOURCES", "ClassName", "Sample", "Source", "open_source"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LARGEST = 4096

# What each source is read from, by the options of `open_source`; `download` alone may be left out.
SOURCES = {
    "tiny-imagenet": ("source",),
    "digits": (),
    "folder": ("train", "val", "size"),
    "cifar10": ("source", "download"),
    "cifar100": ("source", "download"),
}


def open_source(
    name: str,
    *,
    source: Path | None = None,
    train: Path | None = None,
    val: Path | None = None,
    size: int | None = None,
    download: bool = False,
) -> Source:
    """Read the source called `name` from the options that `SOURCES` lists for it.

    Raises ConfigError for an unknown name and for an option that is missing or does not apply; DataError when
    what the options point to is missing, incomplete or damaged.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SOURCES)}"
        raise ConfigError(f"unknown data source {name!r}; {hint}")
    options = {"source": source, "train": train, "val": val, "size": size, "download": download or None}
    for option, value in options.items():
        if value is not None and option not in SOURCES[name]:
            raise ConfigError(f"--{option} does not apply to {name}; leave it out")
        if value is None and option in SOURCES[name] and option != "download":
            raise ConfigError(f"{name} needs --{option}")
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
    assert source is not None
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
    held_out = _fifth_of_each_class(bunch.target, seed)
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
        licence_note="Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI), CC BY 4.0.",
    )


def _rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=2)


def _fifth_of_each_class(labels: Labels, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=stream(seed, "digits", label)).numpy()
        chosen[members[order[: (len(members) + 2) // 5]]] = True
    return chosen


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
        licence_note="Your own images: what you may do with them holds for this data set.",
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
    image = decode(data, str(file))
    short = min(image.size)
    width, height = (side * size // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


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
        licence_note="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
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
