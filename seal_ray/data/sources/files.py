"""The files of an official download, archives or not, and the small formats that its lists come in."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from seal_ray.data.sources.archives import Tree, open_tree
from seal_ray.errors import DataError

AGAIN = "download it again"


def open_files(path: Path, archives: Sequence[str]) -> Tree:
    """All files of the folder or of the one archive (.zip, .tar, .tgz) at `path`, by their path below it.

    In a folder the members of the archives that lie at its top and match a pattern of `archives` count as
    files too, unless they were extracted there. Nothing is extracted. Raises DataError for what is missing
    or damaged, and for a member that would lie outside the folder it were extracted to.
    """
    if path.is_file():
        return _archive(path)
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give the official archive or the folder that holds it")
    found = sorted(file for file in path.iterdir() if any(fnmatch(file.name, name) for name in archives))
    trees = [*map(_archive, (file for file in found if file.is_file())), _folder(path)]
    readers = {name: tree.read for tree in trees for name in tree.names}
    return Tree(str(path), frozenset(readers), partial(_read_from, readers))


def _read_from(readers: dict[str, Callable[[str], bytes]], name: str) -> bytes:
    return readers[name](name)


def _folder(path: Path) -> Tree:
    files = (Path(folder) / file for folder, _, names in os.walk(path) for file in names)
    return _rooted_at(path, next((file.relative_to(path).as_posix() for file in files), None))


def _archive(path: Path) -> Tree:
    if path.suffix.lower() != ".zip":
        return _tar(path)
    try:
        with zipfile.ZipFile(path) as archive:
            files = (member.filename for member in archive.infolist() if not member.is_dir())
            first = next(files, None)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as a zip archive ({error}); {AGAIN}") from error
    return _rooted_at(path, first)


def _rooted_at(path: Path, file: str | None) -> Tree:
    """The whole of a folder or zip archive: any one file of it marks its top."""
    if file is None:
        raise DataError(f"{path} holds no files; give the official archive or the folder that holds it")
    return open_tree(path, file)


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
    return Tree(str(path), frozenset(members), partial(_read_member, path, archive, members))


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


def _read_member(
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
