"""The files of an official download: one view of folders and archives, and the formats that lists come in.

An archive is never extracted.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from seal_ray.data.image_files import is_clutter
from seal_ray.errors import DataError

AGAIN = "download it again"


@dataclass(frozen=True)
class Tree:
    """Files by their path below a root, with "/" between the parts.

    `where` names the folder or archive for people; `read(name)` gives a file's bytes or raises DataError.
    """

    where: str
    names: frozenset[str]
    read: Callable[[str], bytes]


def open_files(path: Path, archives: Sequence[str]) -> Tree:
    """All files of the folder or of the one archive (.zip, .tar, .tgz) at `path`, by their path below it.

    In a folder the members of the archives that lie at its top and match a pattern of `archives` count as
    files too, unless they were extracted there. What is hidden or was left by other programs counts nowhere.
    Nothing is extracted. Raises DataError for what is missing or damaged, and for a member that would lie
    outside the folder it were extracted to.
    """
    if path.is_file():
        trees = [_archive(path)]
    elif path.is_dir():
        found = sorted(file for file in path.iterdir() if any(fnmatch(file.name, name) for name in archives))
        trees = [*map(_archive, (file for file in found if file.is_file())), _folder(path)]
    else:
        raise DataError(f"{path} does not exist; give the official archive or the folder that holds it")
    readers = {name: tree.read for tree in trees for name in tree.names if not is_clutter(name)}
    if not readers:
        raise DataError(f"{path} holds no files; give the official archive or the folder that holds it")
    return Tree(str(path), frozenset(readers), lambda name: readers[name](name))


def _archive(path: Path) -> Tree:
    return _zip(path) if path.suffix.lower() == ".zip" else _tar(path)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Give a sort key that counts: "a_2" before "a_10". Total, so file systems never decide an order."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, so equal positions compare
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _folder(root: Path) -> Tree:
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


def _zip(path: Path) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as a zip archive ({error}); {AGAIN}") from error
    for member in archive.infolist():
        _refuse_escape(path, member)
    names = frozenset(member.filename for member in archive.infolist() if not member.is_dir())
    return Tree(str(path), names, partial(_read_zipped, path, archive))


def _read_zipped(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{name} in {path} cannot be read ({error}); {AGAIN}") from error


def _refuse_escape(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename.replace("\\", "/")
    outside = name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in PurePosixPath(name).parts
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        what = "leads outside the archive" if outside else "is a symbolic link"
        raise DataError(f"{path}: its member {member.filename!r} {what}; get the official archive")


def _tar(path: Path) -> Tree:
    try:
        with ExitStack() as stack:
            file = _seekable(path, stack)
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - read from later on
            members = {PurePosixPath(member.name).as_posix(): member for member in archive if member.isreg()}
            _refuse_escapes(path, members)
            stack.pop_all()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a tar archive ({error}); {AGAIN}") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be unpacked to {tempfile.gettempdir()}: {error.strerror}; make room, or name "
            "another folder in TMPDIR"
        ) from error
    weakref.finalize(archive, file.close)
    return Tree(str(path), frozenset(members), partial(_read_tarred, path, archive, members))


def _seekable(path: Path, stack: ExitStack) -> IO[bytes]:
    """A tar file that can be read in any order: a compressed one goes to a nameless temporary file."""
    file = stack.enter_context(path.open("rb"))
    if file.read(2) != b"\x1f\x8b":
        file.seek(0)
        return file
    plain = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - entered
    with gzip.open(path) as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
    plain.seek(0)
    file.close()
    return plain


def _refuse_escapes(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path}: its member {name!r} leads outside the archive; get the official one")


def _read_tarred(
    path: Path, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str
) -> bytes:
    try:
        file = archive.extractfile(members[name])
        assert file is not None
        return file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name} in {path} cannot be read ({error}); {AGAIN}") from error


def find(tree: Tree, *names: str) -> str:
    """The path of the file of the first of these names that is there, wherever it lies.

    Of several the one nearest to the top. DataError when there is none, or two are equally near.
    """
    for name in names:
        found = [path for path in tree.names if PurePosixPath(path).name == name]
        depth = min((path.count("/") for path in found), default=0)
        nearest = sorted(path for path in found if path.count("/") == depth)
        if len(nearest) > 1:
            raise DataError(f"{tree.where} has {name} twice: {' and '.join(nearest[:2])}; give one of them")
        if nearest:
            return nearest[0]
    raise DataError(f"{names[0]} is missing in {tree.where}; get it from the official address")


def below(tree: Tree, folder: str) -> Tree:
    """The files of a tree that lie in a folder, "" or a path that ends in a slash, by their path below it."""
    names = frozenset(name.removeprefix(folder) for name in tree.names if name.startswith(folder))
    return Tree(tree.where, names, lambda name: tree.read(folder + name))


def above(tree: Tree, folder: str) -> str:
    """What comes before `folder/` in the paths below it: "" at the top, else it ends in a slash.

    Of several the shortest. DataError when no file lies in a folder of that name.
    """
    place = re.compile(rf"((?:.*?/)?){re.escape(folder)}/")
    found = {match[1] for path in tree.names if (match := place.match(path))}
    if not found:
        raise DataError(f"{tree.where} has no files in a folder {folder}; get the official archive")
    return min(found, key=lambda path: (len(path), path))


def text_of(tree: Tree, path: str) -> str:
    """A text file. DataError when it is not UTF-8."""
    try:
        return tree.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} in {tree.where} is not UTF-8 text ({error}); {AGAIN}") from error


def lines_of(tree: Tree, path: str) -> list[str]:
    """The lines of a text file that are not blank. DataError when there are none."""
    lines = [line.strip() for line in text_of(tree, path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} in {tree.where} is empty; {AGAIN}")
    return lines


def pairs_of(tree: Tree, path: str) -> list[tuple[str, str]]:
    """Each line of a text file, cut at its first space. DataError for a line without one."""
    pairs = []
    for line in lines_of(tree, path):
        first, _, rest = line.partition(" ")
        if not rest:
            raise DataError(f"{path} in {tree.where}: two columns are needed, not {line!r}; {AGAIN}")
        pairs.append((first, rest))
    return pairs


def rows_of(tree: Tree, path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header. DataError when a column is missing, or a row lacks its value."""
    reader = csv.DictReader(io.StringIO(text_of(tree, path), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path} in {tree.where} is damaged ({error}); {AGAIN}") from error
    if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise DataError(f"{path} in {tree.where} has no column {lacking[0]!r}; get the official file")
    for row in rows:
        if any(row[column] is None for column in columns):
            raise DataError(f"{path} in {tree.where}: the row {row[columns[0]]!r} is cut short; {AGAIN}")
    return rows


def arrays_of(tree: Tree, path: str, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Arrays of a MATLAB file, flat; cells of text become strings. DataError when one is missing."""
    from scipy.io import loadmat  # half a second, and only MATLAB files need it

    try:
        held = loadmat(io.BytesIO(tree.read(path)), squeeze_me=True, variable_names=list(names))
    except DataError:
        raise
    except Exception as error:  # scipy's parsers raise nearly anything on a damaged file
        raise DataError(f"{path} in {tree.where} is no readable MATLAB file ({error}); {AGAIN}") from error
    if lacking := [name for name in names if name not in held]:
        raise DataError(f"{path} in {tree.where} has no variable {lacking[0]!r}; get the official file")
    return [np.atleast_1d(held[name]).ravel() for name in names]
