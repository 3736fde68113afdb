"""Durable local files: a write is there as a whole or not at all, and stays after a crash."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from seal_ray.errors import CheckpointError


def write_durably(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary sibling, fsync, rename, fsync of the folder."""
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


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, each with a durable name."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def append_durably(path: Path, line: bytes) -> None:
    """Append a line and fsync."""
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """What goes wrong with writing below a run's folder becomes a CheckpointError that says what it costs."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot save ({error.strerror or error}); everything committed before is safe. Make "
            "room or mend the storage, then give the same command again"
        ) from error
