"""Data sets in an object store, copied to a folder of this host once, whatever runs and workers share them.

The copy is named by its dataset.json, which holds the checksums of the other files: one that has changed is
another copy. It is complete when its own dataset.json is there, which is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from seal_ray.data.beton import Dataset, SplitFile, file_sha256, load_dataset, read_dataset, verify
from seal_ray.errors import DataError
from seal_ray.storage.files import write_durably
from seal_ray.storage.paths import ObjectPath, cache_folder, storage_path

CHUNK = 1 << 22
"""Bytes that are copied at once."""
CHECKED = "checked.json"
"""Beside a copy: sizes and times of its files when their checksums were verified last."""


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
