"""Durable files and objects: a write is there as a whole or not at all, and stays after a crash."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from seal_ray.errors import CheckpointError, StorageError
from seal_ray.storage.paths import AnyPath, ObjectPath, Version


def write_durably(path: AnyPath, data: bytes) -> None:
    """Write a file atomically: temporary sibling, fsync, rename, fsync of the folder. An object is put."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)


def make_folder(folder: AnyPath) -> None:
    """Create a folder and those above it, each with a durable name. Objects need none."""
    if isinstance(folder, Path) and not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def append_durably(path: AnyPath, line: bytes) -> None:
    """Append a line and fsync. An object, which must be a small one, is put anew with all lines."""
    if isinstance(path, ObjectPath):
        after = b""
        while True:
            before, version = read_version(path)
            # It is there already when the answer to a put was lost.
            if (after and before.startswith(after)) or path.put_if(after := before + line, version):
                return
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_version(path: AnyPath) -> tuple[bytes, Version | None]:
    """What a file or an object holds, nothing when it is not there; which version of an object it is."""
    try:
        return path.read_version() if isinstance(path, ObjectPath) else (path.read_bytes(), None)
    except FileNotFoundError:
        return b"", None


def remove_folder(folder: AnyPath) -> None:
    """Delete a folder with all that is in it, as far as that is possible."""
    if isinstance(folder, ObjectPath):
        with contextlib.suppress(StorageError):
            folder.remove()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def size_of(path: AnyPath) -> int:
    """Bytes of a file, or of all files below a folder."""
    if isinstance(path, ObjectPath):
        return path.size_below()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.lstat().st_size for file in files)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def saving(folder: AnyPath) -> Iterator[None]:
    """What goes wrong with writing below a run's folder becomes a CheckpointError that says what it costs."""
    try:
        yield
    except (OSError, StorageError) as error:
        what = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot save ({what}); everything committed before is safe. Make "
            "room or mend the storage, then give the same command again"
        ) from error
