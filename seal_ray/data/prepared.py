"""A prepared data set: its dataset.json, its files, and on this host a copy of what lies in an object store.

The copy is made once, whatever runs and workers share it. It is named by its dataset.json, which holds the
checksums of the other files: one that has changed is another copy. It is complete when its own dataset.json
is there, which is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seal_ray.data.dataset import Channels, ClassName
from seal_ray.errors import DataError
from seal_ray.storage.files import write_durably
from seal_ray.storage.paths import AnyPath, ObjectPath, cache_folder, storage_path

FORMAT = 1  # of dataset.json
REMEDY = "prepare it with `seal-ray data prepare`"
CHUNK = 1 << 22
"""Bytes that are copied at once."""
CHECKED = "checked.json"
"""Beside a copy: sizes and times of its files when their checksums were verified last."""


@dataclass(frozen=True)
class SplitFile:
    """One .beton file of a data set: its name in the folder, images, sha256 (hex) and size in bytes."""

    file: str
    count: int
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Subset:
    """Which part of its source a data set was prepared from; None means all."""

    classes: int | None
    per_class: int | None
    seed: int


@dataclass(frozen=True)
class Dataset:
    """A prepared data set as its dataset.json describes it.

    identity: what the images and labels are, however they are stored (`prepare` gives the bytes it covers).
    encoding: JPEG loses a little, so runs on "raw" and on "jpeg" are different runs. size: height and width
    in pixels. mean, std: of RGB values in 0..1. splits: "train" and "val". source: what it was prepared from.
    """

    folder: Path
    name: str
    identity: str
    encoding: Literal["raw", "jpeg"]
    size: int
    classes: tuple[ClassName, ...]
    mean: Channels
    std: Channels
    splits: Mapping[str, SplitFile]
    subset: Subset
    licence_note: str
    source: str = ""

    @property
    def training_identity(self) -> str:
        """All of the data set that decides what training computes: also how it is stored and normalised."""
        facts = json.dumps([self.identity, self.encoding, self.mean, self.std])
        return hashlib.sha256(facts.encode()).hexdigest()


def dataset_json(dataset: Dataset) -> bytes:
    """Give the content of dataset.json: sorted keys, indented, the same bytes for equal data sets."""
    facts = {
        "format": FORMAT,
        "name": dataset.name,
        "identity": dataset.identity,
        "encoding": dataset.encoding,
        "size": dataset.size,
        "channels": 3,
        "classes": [vars(name) for name in dataset.classes],
        "mean": dataset.mean,
        "std": dataset.std,
        "splits": {split: vars(file) for split, file in dataset.splits.items()},
        "subset": vars(dataset.subset),
        "licence_note": dataset.licence_note,
    }
    if dataset.source != dataset.name:
        facts["source"] = dataset.source
    return (json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def load_dataset(folder: Path) -> Dataset:
    """Load the description of the data set prepared in `folder`.

    Raises DataError when dataset.json is missing or not what this version writes, or when a file it names is
    absent.
    """
    path = folder.resolve() / "dataset.json"
    try:
        dataset = read_dataset(path.parent, path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{folder} holds no data set ({path.name}: {error.strerror}); {REMEDY}") from error
    for split in dataset.splits.values():
        if not (dataset.folder / split.file).is_file():
            raise DataError(f"{dataset.folder / split.file} is missing; {REMEDY} again")
    return dataset


def find_prepared(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """The data sets that lie in `folder`, one folder each, by the name of their source; damaged ones not."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/dataset.json")):
        with contextlib.suppress(DataError):
            found.setdefault(load_dataset(path.parent).source, []).append(path.parent)
    return {name: tuple(paths) for name, paths in found.items()}


def read_dataset(folder: Path, content: bytes, path: AnyPath) -> Dataset:
    """The data set in `folder` as the content of the dataset.json at `path` describes it.

    Raises DataError when that is not what this version writes.
    """
    try:
        facts = json.loads(content)
        if facts["format"] != FORMAT:
            raise DataError(f"{path} has format {facts['format']}, not {FORMAT}; {REMEDY} again")
        return _dataset(folder, facts)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); {REMEDY} again") from error


def _dataset(folder: Path, facts: dict[str, Any]) -> Dataset:
    encoding = facts["encoding"]
    if encoding not in ("raw", "jpeg") or facts["channels"] != 3:
        raise ValueError("encoding or channels")
    (r, g, b), (std_r, std_g, std_b) = facts["mean"], facts["std"]
    return Dataset(
        folder=folder,
        name=str(facts["name"]),
        identity=str(facts["identity"]),
        encoding=encoding,
        size=int(facts["size"]),
        classes=tuple(ClassName(**name) for name in facts["classes"]),
        mean=(float(r), float(g), float(b)),
        std=(float(std_r), float(std_g), float(std_b)),
        splits={split: _split_file(facts["splits"][split]) for split in ("train", "val")},
        subset=Subset(**facts["subset"]),
        licence_note=str(facts["licence_note"]),
        source=str(facts.get("source", facts["name"])),
    )


def _split_file(facts: dict[str, Any]) -> SplitFile:
    name = str(facts["file"])
    if Path(name).name != name or not name.endswith(".beton"):
        raise ValueError(f"file {name}")  # which might lie anywhere
    return SplitFile(name, int(facts["count"]), str(facts["sha256"]), int(facts["bytes"]))


def verify(dataset: Dataset, *, checksums: bool = True) -> None:
    """Raise DataError unless the .beton files have their recorded sizes and, with `checksums`, contents.

    Checksums read every byte (about a second for each gigabyte); sizes take no time.
    """
    for split in dataset.splits.values():
        path = dataset.folder / split.file
        found = path.stat().st_size if path.is_file() else 0
        if found != split.bytes:
            raise DataError(f"{path} has {found} bytes instead of {split.bytes}; prepare the data set again")
        if checksums and file_sha256(path) != split.sha256:
            raise DataError(f"{path} was altered: its checksum differs; prepare the data set again")


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_dataset(path: str) -> Dataset:
    """The data set in a folder, or of `s3://bucket/path` in a folder of this host that it is copied to.

    Raises DataError when it is missing or damaged, or when this host has no room for it; StorageError when
    the store does not give it.
    """
    source = storage_path(path)
    return load_dataset(stage(source) if isinstance(source, ObjectPath) else source)


def describe_dataset(path: str) -> Dataset:
    """The same without its files where it lies in a store: nothing is copied. Raises as open_dataset."""
    source = storage_path(path)
    return load_dataset(source) if isinstance(source, Path) else _described(source)[0]


def absolute(path: str) -> str:
    """The path of a data set as it is found from any working directory."""
    return str(storage_path(path).resolve())


def stage(source: ObjectPath) -> Path:
    """Copy a data set to this host unless it is there, whole; returns its folder. Raises as open_dataset.

    One process copies, all others wait for it. What was cut off or altered is copied anew.
    """
    dataset, described = _described(source)
    folder = dataset.folder
    try:
        with _locked(folder):
            if not _is_whole(dataset, described):
                (folder / "dataset.json").unlink(missing_ok=True)
                for split in dataset.splits.values():
                    if not _arrived(folder / split.file, split):
                        _copy(source / split.file, folder / split.file, split)
                _note_checked(dataset)
                write_durably(folder / "dataset.json", described)
    except OSError as error:
        raise DataError(
            f"{source} cannot be copied to {folder} ({error.strerror or error}); make room, or set "
            "SEAL_RAY_CACHE to another folder of this host"
        ) from error
    return folder


def _described(source: ObjectPath) -> tuple[Dataset, bytes]:
    """A data set in a store with the folder of its copy, and its dataset.json."""
    try:
        described = (source / "dataset.json").read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{source} holds no data set (no dataset.json); prepare one with `seal-ray data prepare`, and "
            "copy its folder there"
        ) from None
    name = f"{source.name}-{hashlib.sha256(described).hexdigest()[:16]}"
    return read_dataset(cache_folder() / "data" / name, described, source / "dataset.json"), described


def _is_whole(dataset: Dataset, described: bytes) -> bool:
    """Whether a copy is complete, and still as it was when its checksums were verified, or else now."""
    try:
        if (dataset.folder / "dataset.json").read_bytes() != described:
            return False
        if (dataset.folder / CHECKED).read_text() != _stamps(dataset):
            verify(dataset)
            _note_checked(dataset)
    except (FileNotFoundError, ValueError, DataError):
        return False
    return True


def _arrived(file: Path, split: SplitFile) -> bool:
    """Whether a file has been copied as a whole, by a process that was then cut off."""
    there = file.is_file() and file.stat().st_size == split.bytes
    return there and file_sha256(file) == split.sha256


def _note_checked(dataset: Dataset) -> None:
    write_durably(dataset.folder / CHECKED, _stamps(dataset).encode())


def _stamps(dataset: Dataset) -> str:
    """Size and time of modification, in nanoseconds, of each file of a copy."""
    found = {split.file: (dataset.folder / split.file).stat() for split in dataset.splits.values()}
    return json.dumps({file: [stat.st_size, stat.st_mtime_ns] for file, stat in found.items()})


def _copy(source: ObjectPath, to: Path, expected: SplitFile) -> None:
    """Copy a file; its name is given to what has arrived whole. DataError when something else came."""
    partial, digest = to.with_name(f"{to.name}.part"), hashlib.sha256()
    with partial.open("wb") as file:
        try:
            for chunk in source.chunks(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        except FileNotFoundError:
            raise DataError(f"{source} is missing; put the data set there again") from None
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != expected.sha256:
        raise DataError(f"{source} was altered: its checksum differs; put the data set there again")
    partial.replace(to)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this host at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
