"""One view of a folder and of a zip archive that holds the same files; an archive is never extracted."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from seal_ray.errors import DataError


@dataclass(frozen=True)
class Tree:
    """Files by their path below a root, with "/" between the parts.

    `where` names the folder or archive for people; `read(name)` gives a file's bytes or raises DataError.
    """

    where: str
    names: frozenset[str]
    read: Callable[[str], bytes]


def open_tree(path: Path, marker: str) -> Tree:
    """Open the folder or zip archive at `path`.

    The root is the folder that holds the file `marker`: the top, or the only such folder in it, whatever its
    name. Raises DataError when there is none or more than one, when the archive is damaged, and when one of
    its members would lie outside the folder it were extracted to.
    """
    if path.is_dir():
        return _folder(path, marker)
    if path.is_file():
        return _archive(path, marker)
    raise DataError(f"{path} does not exist; give the official zip archive or the folder it was extracted to")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Give a sort key that counts: "a_2" before "a_10". Total, so file systems never decide an order."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, so equal positions compare
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _folder(path: Path, marker: str) -> Tree:
    below = [child.name for child in path.iterdir() if (child / marker).is_file()]
    root = path / _root(path, marker, [""] if (path / marker).is_file() else below)
    names = (
        (Path(folder) / file).relative_to(root).as_posix()
        for folder, _, files in os.walk(root)
        for file in files
    )
    return Tree(str(root), frozenset(names), partial(_read_file, root))


def _read_file(root: Path, name: str) -> bytes:
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise DataError(f"{root / name} cannot be read: {error.strerror}") from error


def _archive(path: Path, marker: str) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as a zip archive ({error}); download it again") from error
    members = archive.infolist()
    for member in members:
        _refuse_escape(path, member)
    files = [member.filename for member in members if not member.is_dir()]
    at = re.compile(rf"(?:([^/]+)/)?{re.escape(marker)}")
    found = [match.group(1) or "" for match in map(at.fullmatch, files) if match]
    root = _root(path, marker, [""] if "" in found else found)
    prefix = f"{root}/" if root else ""
    names = frozenset(file.removeprefix(prefix) for file in files if file.startswith(prefix))
    return Tree(str(path), names, partial(_read_member, path, archive, prefix))


def _read_member(path: Path, archive: zipfile.ZipFile, prefix: str, name: str) -> bytes:
    try:
        return archive.read(prefix + name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{prefix}{name} in {path} cannot be read ({error}); download it again") from error


def _refuse_escape(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename.replace("\\", "/")
    outside = name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in PurePosixPath(name).parts
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        what = "leads outside the archive" if outside else "is a symbolic link"
        raise DataError(f"{path}: its member {member.filename!r} {what}; get the official archive")


def _root(path: Path, marker: str, candidates: list[str]) -> str:
    if not candidates:
        raise DataError(f"{path} has no {marker}, neither at its top nor one folder below")
    if len(candidates) > 1:
        raise DataError(f"{path} has {marker} in several folders: {', '.join(sorted(candidates))}; give one")
    return candidates[0]
