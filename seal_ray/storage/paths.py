"""Objects in S3, Google Cloud Storage and Azure as paths: what the code needs of pathlib, over obstore.

A put is there as a whole or not at all, and what is read is what was last put. There are no folders (one is
there while something lies in it), no renames and no locks; `put_if` is what leases are made of.

Endpoint, region and keys come from the service's own environment variables (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...) or from ~/.aws, on each
host; never from a URI, which is written down.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from seal_ray.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore, S3Credential

ATTEMPTS = 3
"""How often a request is made until it has failed; one that puts on a condition is made once."""
CONNECT_TIMEOUT = 5.0
"""Seconds until an attempt to connect is given up."""
SILENCE = 10.0
"""Seconds without a byte until an attempt is given up. An upload's parts, UPLOADS at once of PART bytes, must
each arrive within that time."""
PART, UPLOADS = 5 << 20, 2
ASKED_AT_ONCE = 16
"""Requests about several objects that are under way together."""
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
VARIABLE = re.compile(r"\$(\{\w+\}|[A-Za-z_]\w*)")
SERVICES = {
    "s3": ("S3", "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": ("Google Cloud Storage", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("Azure", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
}
"""Of each scheme the service's name, and the environment variables that lead there."""

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable by which a process knows that it is the driver of a Ray job."""

Place = TypeVar("Place")
Reply = TypeVar("Reply")
Version = dict[str, str]
"""Which of the objects put in one place it is: what obstore calls e_tag, version."""


@dataclass(frozen=True)
class Stat:
    """What is known of an object: its size in bytes."""

    st_size: int


@dataclass(frozen=True)
class ObjectPath:
    """`<scheme>://<bucket>/<key>`: an object, or the objects below it. The methods are those of pathlib.Path.

    StorageError for what the service refuses, and when it does not answer.
    """

    bucket: str
    key: str = ""
    scheme: str = "s3"

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join(self._parts)}"

    def __lt__(self, other: ObjectPath) -> bool:
        return self._parts < other._parts

    def __truediv__(self, below: str) -> ObjectPath:
        return self._at("/".join(PurePosixPath(self.key, below).parts))

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
        return self._at("/".join(self._parts[1:-1]))

    def resolve(self) -> ObjectPath:
        """Itself: it is absolute."""
        return self

    def exists(self) -> bool:
        """Whether there is such an object, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether it is an object."""
        with contextlib.suppress(FileNotFoundError):
            return bool(self.key) and bool(self.stat())
        return False

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return any(self._children())

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies directly below it: nothing, where there is nothing."""
        return (path for found in self._children() for path in found)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """What matches a pattern without `**`."""
        folders, (*above, last) = [self], pattern.split("/")
        for part in above:
            if _is_literal(part):
                folders = [folder / part for folder in folders]
            else:
                inner = (one for folder in folders for one in folder._children()[0])
                folders = [one for one in inner if fnmatchcase(one.name, part)]
        if _is_literal(last):
            named = [folder / last for folder in folders]
            there = asked(ObjectPath.exists, named, self)
            return (path for path, exists in zip(named, there, strict=True) if exists)
        found = (child for folder in folders for child in folder.iterdir())
        return (child for child in found if fnmatchcase(child.name, last))

    def rglob(self, name: str) -> Iterator[ObjectPath]:
        """The objects of that name below it, at any depth."""
        with contextlib.suppress(FileNotFoundError), asking(self):
            found = [self._at(one["path"]) for one in _store(self).list(self.key or None).collect()]
            return (path for path in found if path.name == name)
        return iter(())

    def stat(self) -> Stat:
        """The size of an object. FileNotFoundError when there is none."""
        with asking(self):
            return Stat(_store(self).head(self.key)["size"])

    def size_below(self) -> int:
        """Bytes of it and of all that lies below it."""
        with asking(self):
            below = _store(self).list(self.key or None).collect()
        own = self.stat().st_size if self.is_file() else 0
        return own + sum(one["size"] for one in below if one["path"] != self.key)

    def read_bytes(self) -> bytes:
        """The object. FileNotFoundError when there is none."""
        return self.read_version()[0]

    def read_version(self) -> tuple[bytes, Version]:
        """The object, and which version it is. FileNotFoundError when there is none."""
        with asking(self):
            found = _store(self).get(self.key)
            known = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
            return bytes(found.bytes()), {name: value for name, value in known.items() if value}

    def chunks(self, size: int) -> Iterator[bytes]:
        """The object in pieces, of `size` bytes or some more. FileNotFoundError when there is none."""
        with asking(self):
            pieces = _store(self).get(self.key).stream(size)
        while True:
            with asking(self):
                piece = next(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    def read_text(self) -> str:
        """The object as UTF-8 text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Put the object, in the place of one that is there."""
        with _putting(self):
            _store(self).put(self.key, data, chunk_size=PART, max_concurrency=UPLOADS)

    def put_if(self, data: bytes, version: Version | None) -> bool:
        """Put the object if what is there is that version still, or, for None, nothing; whether it was.

        Where it was put but the answer is lost, this is False or a StorageError all the same: read it to see.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _putting(self):
            try:
                _store(self).put(
                    self.key, data, mode=cast("UpdateVersion", {**version}) if version else "create"
                )
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        if not missing_ok:
            self.stat()  # not every service says that there was nothing to delete
        with contextlib.suppress(FileNotFoundError), asking(self):
            _store(self).delete(self.key)

    def remove(self) -> None:
        """Delete all that lies below it, if there is anything."""
        with contextlib.suppress(FileNotFoundError), asking(self):
            store = _store(self)
            store.delete([one["path"] for one in store.list(self.key or None).collect()])

    @property
    def _parts(self) -> tuple[str, ...]:
        return (self.bucket, *PurePosixPath(self.key).parts)

    def _at(self, key: str) -> ObjectPath:
        return ObjectPath(self.bucket, key, self.scheme)

    def _children(self) -> tuple[list[ObjectPath], list[ObjectPath]]:
        """The folders and the objects directly below it."""
        with contextlib.suppress(FileNotFoundError), asking(self):
            found = _store(self).list_with_delimiter(self.key or None)
            # Some clients put an empty object in the place of the folder itself.
            objects = [self._at(one["path"]) for one in found["objects"] if one["path"] != self.key]
            return [self._at(prefix) for prefix in found["common_prefixes"]], objects
        return [], []


AnyPath = Path | ObjectPath
"""A file or folder, or what stands for one in an object store."""


def storage_path(place: str | AnyPath) -> AnyPath:
    """A path, or `s3://bucket/path`, as it is called on the command line and in YAML files; also gs, az.

    ConfigError as `with_home`, for another scheme, and for a URI that holds more than bucket and path, of
    which nothing is repeated: it might be a secret.
    """
    if not isinstance(place, str):
        return place
    scheme, separator, _ = place.partition("://")
    if not separator:
        return Path(with_home(place))
    if scheme not in SERVICES:
        known = ", ".join(f"{one}://" for one in SERVICES)
        raise ConfigError(f"{scheme}://...: is none of {known}; give a folder, or s3://BUCKET/PATH")
    parsed = urlsplit(place)
    # A secret may hold a slash, so that what follows the bucket's place can be part of one too.
    if parsed.query or parsed.fragment or "@" in place or ":" in parsed.netloc:
        raise ConfigError(
            f"{scheme}://...: give the bucket and the path alone; where it is and its keys belong in "
            f"{SERVICES[scheme][1]}, on every host"
        )
    if not BUCKET.fullmatch(parsed.netloc):
        raise ConfigError(
            f"{place}: {parsed.netloc!r} cannot be a bucket's name; give {scheme}://BUCKET/PATH"
        )
    _refuse_variables(place)
    return ObjectPath(parsed.netloc, scheme=scheme) / parsed.path.strip("/")


def with_home(path: str) -> str:
    """What a person wrote for a path, with the home folder in place of `~` or `~NAME`, as a shell has it.

    Variables are refused and not replaced: a file that holds one would name another folder for each person
    and host, and where it is not set a folder in the root. ConfigError for one, and for nobody's home. A URI
    stays as it is.
    """
    if "://" in path:
        return path
    _refuse_variables(path)
    full = os.path.expanduser(path)  # noqa: PTH111 - a Path drops what a URI and `./` have
    if full.startswith("~"):
        raise ConfigError(f"{path}: is nobody's home folder here; for a folder of that name write ./{path}")
    return full


def _refuse_variables(path: str) -> None:
    if found := VARIABLE.search(path):
        raise ConfigError(
            f"{path}: {found[0]} is no folder's name and is not replaced; write the path out, or give it on "
            "the command line without single quotes, where the shell replaces it"
        )


def check_outlives_job(place: str | AnyPath, name: str) -> None:
    """ConfigError for a folder that would be lost with the Ray job that this process belongs to.

    A job runs in a copy of what was sent with it, which Ray deletes. name: what the folder is called.
    """
    path = storage_path(place)
    if RAY_JOB not in os.environ or isinstance(path, ObjectPath):
        return
    if path.is_absolute() and not any(part.startswith("_ray_pkg_") for part in path.resolve().parts):
        return
    raise ConfigError(
        f"{name}: {place} is in the folder of this Ray job, which is deleted with it; give the absolute path "
        f"of a folder that all hosts of the cluster see, such as /mnt/{path.name or 'runs'}, or s3://BUCKET/PATH"
    )


def listed(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What in a folder matches a pattern, in order."""
    found: list[AnyPath] = [*folder.glob(pattern)]
    return sorted(found)


def folders_in(folder: AnyPath) -> set[str]:
    """The names of the folders in one, listed at once; none where it is not there."""
    if isinstance(folder, ObjectPath):
        return {one.name for one in folder._children()[0]}
    try:
        with os.scandir(folder) as found:
            return {one.name for one in found if one.is_dir()}
    except FileNotFoundError:
        return set()


def asked(function: Callable[[Place], Reply], places: Sequence[Place], storage: AnyPath) -> list[Reply]:
    """The function of each place; several at once where they lie in an object store, which takes its time."""
    if isinstance(storage, Path):
        return [function(place) for place in places]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(function, places))


def check_bucket(path: ObjectPath) -> None:
    """ConfigError when the bucket of `path` is not there, StorageError when we may not ask."""
    try:
        with asking(path):
            _store(path).list_with_delimiter(path.key or None)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no bucket {path.bucket}; create it, or give another storage"
        ) from None


def cache_folder() -> Path:
    """Where this host keeps what lies elsewhere: SEAL_RAY_CACHE, or ~/.cache/seal-ray."""
    named = os.environ.get("SEAL_RAY_CACHE")
    return Path(with_home(named)).absolute() if named else Path.home() / ".cache" / "seal-ray"


def on_this_host(folder: AnyPath) -> Path:
    """The folder, or what stands for it on this host, for what only works with files."""
    if isinstance(folder, Path):
        return folder
    return cache_folder().joinpath(folder.scheme, *folder._parts)


@contextlib.contextmanager
def asking(path: ObjectPath) -> Iterator[None]:
    """What obstore raises becomes FileNotFoundError or StorageError."""
    from botocore.exceptions import BotoCoreError
    from obstore.exceptions import BaseError

    try:
        yield
    except (OSError, BaseError, BotoCoreError) as error:
        said = str(error)
        # A list of a bucket that is not there is no FileNotFoundError.
        if isinstance(error, FileNotFoundError) or "status code: 404" in said:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        name, variables = SERVICES[path.scheme]
        raise StorageError(
            f"{path}: {name} refuses or does not answer ({_reason(said)}); see {variables} on this host"
        ) from None  # its words may hold a signed address


@contextlib.contextmanager
def _putting(path: ObjectPath) -> Iterator[None]:
    """The same for a put, which misses nothing but the bucket."""
    try:
        with asking(path):
            yield
    except FileNotFoundError:
        raise StorageError(f"{path}: there is no bucket {path.bucket}; create it") from None


def _reason(said: str) -> str:
    """Of what obstore says what helps: a code of the service, or what is wrong with the connection."""
    for known in (r"<Code>(\w+)<", r"status code: (\d+ [\w ]+)", r'message: "([^"]+)"', r"kind: (\w+)"):
        if found := re.search(known, said):
            return found[1].strip()
    return said.splitlines()[0]


def _is_literal(part: str) -> bool:
    return not set(part) & set("*?[")


def _store(path: ObjectPath) -> ObjectStore:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return _store_of(path.scheme, path.bucket, endpoint, ATTEMPTS, SILENCE)


@functools.cache
def _store_of(scheme: str, bucket: str, endpoint: str, attempts: int, silence: float) -> ObjectStore:
    """The client of a bucket. endpoint: of S3, AWS's own where it is empty."""
    from obstore.store import AzureStore, GCSStore, S3Store

    how: dict[str, Any] = {
        "client_options": {
            "allow_http": True,  # an endpoint of one's own may be; those of the services are not
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
            "read_timeout": timedelta(seconds=silence),
            "timeout": timedelta(days=1),  # of a request as a whole: a large object takes its time
        },
        # Of attempts that meet with silence there are two.
        "retry_config": {"max_retries": attempts - 1, "retry_timeout": timedelta(seconds=2 * silence)},
    }
    if scheme == "gs":
        return GCSStore(bucket, **how)
    if scheme == "az":
        return AzureStore(bucket, **how)
    return S3Store(bucket, **how, **_aws(endpoint))


def _aws(endpoint: str) -> dict[str, Any]:
    """Endpoint, region and keys as every AWS client takes them from the environment and ~/.aws.

    Without keys requests are not signed, which is enough for what is public.
    """
    from botocore.session import Session

    if endpoint and not re.match("https?://.", endpoint):
        raise ConfigError("AWS_ENDPOINT_URL: is no URL; give one such as https://HOST:PORT")
    session = Session()
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    credentials = session.get_credentials()

    def keys() -> S3Credential:
        now, soon = credentials.get_frozen_credentials(), datetime.now(UTC) + timedelta(minutes=10)
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": soon,  # when they are asked for again, since some expire
        }

    signed = {"credential_provider": keys} if credentials else {"skip_signature": True}
    return {"region": region, **signed, **({"endpoint": endpoint.rstrip("/")} if endpoint else {})}
