"""Objects in S3 as paths: what the code needs of pathlib, over pyarrow.

A put is there as a whole or not at all, and what is read is what was last put. There are no folders (one is
there while something lies in it), no renames and no locks.

Endpoint, region and keys come from AWS's environment variables (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, ...) or from ~/.aws, on each host; never from a URI, which is written down.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from seal_ray.errors import ConfigError, StorageError

ATTEMPTS = 3
"""How often a request is made until it has failed."""
CONNECT_TIMEOUT = 5.0
"""Seconds until an attempt to connect is given up."""
SILENCE = 5.0
"""Seconds without a byte until an attempt is given up; after an upload it takes some more to be noticed."""
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Stat:
    """What is known of an object: its size in bytes."""

    st_size: int


@dataclass(frozen=True)
class ObjectPath:
    """`s3://<bucket>/<key>`: an object, or the objects below it. The methods are those of pathlib.Path.

    StorageError for what S3 refuses, and when it does not answer.
    """

    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"s3://{self._whole}"

    def __lt__(self, other: ObjectPath) -> bool:
        return self._parts < other._parts

    def __truediv__(self, below: str) -> ObjectPath:
        return ObjectPath(self.bucket, str(PurePosixPath(self.key, below)))

    @property
    def name(self) -> str:
        """The last part; of a bucket its name."""
        return self._parts[-1]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Such as `.json`."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        """What it lies in; a bucket lies in itself."""
        return ObjectPath(self.bucket, "/".join(self._parts[1:-1]))

    def resolve(self) -> ObjectPath:
        """Itself: it is absolute."""
        return self

    def exists(self) -> bool:
        """Whether there is such an object, or one below it."""
        return bool(_existing([self]))

    def is_file(self) -> bool:
        """Whether it is an object."""
        return any(info.is_file for info in _existing([self]))

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return any(not info.is_file for info in _existing([self]))

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies directly below it: nothing, where there is nothing."""
        return (_path(info) for info in self._below())

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """What matches a pattern without `**`."""
        folders, (*above, last) = [self], pattern.split("/")
        for part in above:
            folders = [deeper for folder in folders for deeper in folder._folders(part)]
        if _is_literal(last):
            return map(_path, _existing([folder / last for folder in folders]))
        found = (child for folder in folders for child in folder.iterdir())
        return (child for child in found if fnmatchcase(child.name, last))

    def stat(self) -> Stat:
        """The size of an object. FileNotFoundError when there is none."""
        for info in _existing([self]):
            if info.is_file:
                return Stat(info.size)
        raise _missing(self)

    def size_below(self) -> int:
        """Bytes of it and of all that lies below it."""
        found = [*_existing([self]), *self._below(recursive=True)]
        return sum(info.size for info in found if info.is_file)

    def read_bytes(self) -> bytes:
        """The object. FileNotFoundError when there is none."""
        with asking(self), _client().open_input_file(self._whole) as file:
            data: bytes = file.read()
        return data

    def chunks(self, size: int) -> Iterator[bytes]:
        """The object in pieces of at most `size` bytes. FileNotFoundError when there is none."""
        with asking(self):
            file = _client().open_input_file(self._whole)
        with file:
            while True:
                with asking(self):
                    chunk: bytes = file.read(size)
                if not chunk:
                    return
                yield chunk

    def read_text(self) -> str:
        """The object as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Put the object, in the place of one that is there."""
        with asking(self):
            file = _client().open_output_stream(self._whole)
            file.write(data)
            file.close()  # not as a context, which would put what a failed write has left

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with asking(self):
                _client().delete_file(self._whole)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Delete all that lies below it, if there is anything."""
        with contextlib.suppress(FileNotFoundError), asking(self):
            _client().delete_dir(self._whole)

    @property
    def _whole(self) -> str:
        """As pyarrow calls it."""
        return "/".join(self._parts)

    @property
    def _parts(self) -> tuple[str, ...]:
        return (self.bucket, *PurePosixPath(self.key).parts)

    def _folders(self, part: str) -> list[ObjectPath]:
        """The folders in it that match a part of a pattern; of a literal one it is not asked."""
        if _is_literal(part):
            return [self / part]
        found = [_path(info) for info in self._below() if not info.is_file]
        return [folder for folder in found if fnmatchcase(folder.name, part)]

    def _below(self, *, recursive: bool = False) -> list[Any]:
        from pyarrow.fs import FileSelector

        with asking(self):
            selector = FileSelector(self._whole, allow_not_found=True, recursive=recursive)
            return list(_client().get_file_info(selector))


AnyPath = Path | ObjectPath
"""A file or folder, or what stands for one in S3."""


def storage_path(place: str | AnyPath) -> AnyPath:
    """A path, or `s3://bucket/path`, as it is called on the command line and in YAML files.

    ConfigError for another scheme, and for a URI that holds more than bucket and path, of which nothing is
    repeated: it might be a secret.
    """
    if not isinstance(place, str):
        return place
    scheme, separator, _ = place.partition("://")
    if not separator:
        return Path(place)
    if scheme != "s3":
        raise ConfigError(f"{scheme}://...: nothing but s3:// is known; give a folder, or s3://BUCKET/PATH")
    parsed = urlsplit(place)
    # A secret may hold a slash, so that what follows the bucket's place can be part of one too.
    if parsed.query or parsed.fragment or "@" in place or ":" in parsed.netloc:
        raise ConfigError(
            "s3://...: give the bucket and the path alone; endpoint, region and keys belong in "
            "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on every host"
        )
    if not BUCKET.fullmatch(parsed.netloc):
        raise ConfigError(f"{place}: {parsed.netloc!r} cannot be a bucket's name; give s3://BUCKET/PATH")
    return ObjectPath(parsed.netloc) / parsed.path.strip("/")


def listed(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What in a folder matches a pattern, in order."""
    found: list[AnyPath] = [*folder.glob(pattern)]
    return sorted(found)


def check_bucket(path: ObjectPath) -> None:
    """ConfigError when the bucket of `path` is not there, StorageError when S3 does not let us ask."""
    bucket = ObjectPath(path.bucket)
    if not bucket.exists():
        raise ConfigError(f"{path}: there is no bucket {path.bucket}; create it, or give another storage")


def cache_folder() -> Path:
    """Where this host keeps what lies elsewhere: SEAL_RAY_CACHE, or ~/.cache/seal-ray."""
    named = os.environ.get("SEAL_RAY_CACHE")
    return Path(named).absolute() if named else Path.home() / ".cache" / "seal-ray"


def on_this_host(folder: AnyPath) -> Path:
    """The folder, or what stands for it on this host, for locks and what only works with files."""
    if isinstance(folder, Path):
        return folder
    return cache_folder().joinpath("s3", *folder._parts)


@contextlib.contextmanager
def asking(path: ObjectPath) -> Iterator[None]:
    """What pyarrow raises becomes FileNotFoundError or StorageError."""
    from pyarrow import ArrowException

    try:
        yield
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ArrowException) as error:
        said = str(error).strip().splitlines()[0].partition("AWS Error ")
        raise StorageError(
            f"{path}: S3 refuses or does not answer ({said[2] or said[0]}); see AWS_ENDPOINT_URL, AWS_REGION "
            "and the keys of this host"
        ) from error


def _existing(paths: list[ObjectPath]) -> list[Any]:
    """What pyarrow knows of those paths that there are, asked for side by side."""
    from pyarrow.fs import FileType

    if not paths:
        return []
    with asking(paths[0]):
        found = _client().get_file_info([path._whole for path in paths])
    return [info for info in found if info.type != FileType.NotFound]


def _path(info: Any) -> ObjectPath:
    bucket, _, key = info.path.partition("/")
    return ObjectPath(bucket, key)


def _missing(path: ObjectPath) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _is_literal(part: str) -> bool:
    return not set(part) & set("*?[")


def _client() -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _client_of(endpoint, region, ATTEMPTS, SILENCE)


@functools.cache
def _client_of(endpoint: str, region: str | None, attempts: int, silence: float) -> Any:
    """The client of an endpoint, AWS's own where it is empty."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    where: dict[str, Any] = {"region": region}
    if endpoint:
        parsed = urlsplit(endpoint)
        if parsed.scheme not in ("http", "https") or not parsed.netloc:
            raise ConfigError("AWS_ENDPOINT_URL: is no URL; give one such as https://HOST:PORT")
        # A region of its own is asked for at Amazon otherwise, which others need not reach.
        where = {
            "region": region or "us-east-1",
            "scheme": parsed.scheme,
            "endpoint_override": parsed.netloc + parsed.path.rstrip("/"),
        }
    return S3FileSystem(
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=silence,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # a small object is one request
        **where,
    )
