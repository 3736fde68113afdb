"""What recipes choose by name, one open registry a kind, and how other people's code gets into it.

A class registers itself with the decorator of its kind: a built-in one when the package is imported, that
of an installed package when its entry point in the group `seal_ray.plugins` is loaded, that of a plugin file
when the file is. What a plugin file registers is seen inside `using` alone, so that runs whose files define
the same name in different ways do not meet.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import module_from_spec
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from seal_ray.errors import ConfigError, SealRayError, SealRayWarning

GROUP = "seal_ray.plugins"
"""The entry-point group of installed packages."""
MODULE = "seal_ray_plugin_"
"""What the names of modules begin with that plugin files become; the SHA-256 of the code follows."""

T = TypeVar("T")
C = TypeVar("C", bound=type)

_log = logging.getLogger(__name__)
_in_use: ContextVar[tuple[str, ...]] = ContextVar("modules of the plugin files in use", default=())


@dataclass(frozen=True)
class PluginFile:
    """A file of code: where it was read, and what it holds, which alone decides whether two are the same."""

    path: str
    code: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return PurePosixPath(self.path).name

    @property
    def digest(self) -> str:
        """SHA-256 of the file, 64 hex digits."""
        return hashlib.sha256(self.code.encode()).hexdigest()

    @property
    def module(self) -> str:
        """The name of its module."""
        return MODULE + self.digest

    @property
    def is_loaded(self) -> bool:
        """Whether this process has run the same code already."""
        return self.module in sys.modules


class Registry(Mapping[str, type[T]]):
    """The classes of one kind by name: those of packages, and those of the plugin files in use.

    built_in: the module that registers each built-in one, which is imported when its class is asked for; so
    names are told without importing what the classes need.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str] | None = None) -> None:
        self.kind, self._built_in = kind, built_in or {}
        self._classes: dict[str, dict[str, type[T]]] = {}  # by module, then by name

    def add(self, name: str, found: C) -> C:
        """Register a class. ConfigError when another one has its name; the same one again takes its place."""
        if found.__module__ != self._built_in.get(name, found.__module__):
            import_module(self._built_in[name])
        for module, classes in self._classes.items():
            if module == found.__module__ or not module.startswith(MODULE):
                self._check_same(name, classes.get(name), found)
        self._classes.setdefault(found.__module__, {})[name] = found
        return found

    def register(self, found: C, problem: str = "") -> C:
        """What the decorators do: register a frozen dataclass under its `name`.

        problem: what it lacks, if so. ConfigError for that, for another class than a frozen dataclass with a
        usable name, and as `add`.
        """
        name, kind = getattr(found, "name", None), self.kind
        params = vars(found).get("__dataclass_params__")
        if params is None or not params.frozen:
            problem = f"is no frozen dataclass; write @dataclass(frozen=True) under @seal_ray.{kind}"
        elif any(field.name == "name" for field in fields(found)):
            problem = "has its name as a field; write name: ClassVar[str]"
        elif not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            problem = (
                f"is called {name!r}; give it a name of small letters, digits and _, as in `name = 'mine'`"
            )
        if problem:
            raise ConfigError(f"the {kind} {found.__qualname__} {problem}")
        return self.add(str(name), found)

    def of(self, file: PluginFile) -> list[type[T]]:
        """What a plugin file that is loaded registers."""
        return list(self._classes.get(file.module, {}).values())

    def __getitem__(self, name: str) -> type[T]:
        if name in self._built_in:
            import_module(self._built_in[name])
        return self._seen()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._built_in, *self._seen()]))

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._seen()

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _seen(self) -> dict[str, type[T]]:
        installed_packages()
        seen: dict[str, type[T]] = {}
        for module, classes in self._classes.items():
            if not module.startswith(MODULE) or module in _in_use.get():
                for name, found in classes.items():
                    self._check_same(name, seen.get(name), found)
                seen |= classes
        return seen

    def _check_same(self, name: str, one: type | None, other: type) -> None:
        if one and (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
            raise ConfigError(
                f"two classes register the {self.kind} {name!r}: {one.__qualname__} of {source_of(one)} and "
                f"{other.__qualname__} of {source_of(other)}; rename one"
            )


@contextlib.contextmanager
def using(files: Iterable[PluginFile]) -> Iterator[None]:
    """Load files, and let names inside the block stand for what these files register, too.

    The same code is run once in a process. ConfigError, with file and line, for code that fails.
    """
    token = _in_use.set(tuple(_load(file) for file in files))
    try:
        yield
    finally:
        _in_use.reset(token)


@functools.cache
def installed_packages() -> frozenset[str]:
    """The top-level modules of the installed packages with plugins, which the first call loads.

    A package that fails is left out, with a warning.
    """
    loaded = set()
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            package = entry.dist.name if entry.dist else entry.name
            warnings.warn(
                f"the plugin of the installed package {package} is left out: {entry.value} fails: "
                f"{_last_line(error)}",
                SealRayWarning,
                stacklevel=2,
            )
        else:
            loaded.add(entry.module.partition(".")[0])
    return frozenset(loaded)


def loaded_files() -> tuple[PluginFile, ...]:
    """The plugin files that this process has loaded."""
    files = (_file_of(name) for name in list(sys.modules) if name.startswith(MODULE))
    return tuple(file for file in files if file)


def files_of(found: Callable[..., Any]) -> tuple[PluginFile, ...]:
    """The plugin file that another process needs for a class; none where it finds the class by itself.

    ConfigError for a class that only this process has.
    """
    file, package = _file_of(found.__module__), found.__module__.partition(".")[0]
    if file is None and package != "seal_ray" and package not in installed_packages():
        raise ConfigError(
            f"{found.__qualname__}: is defined in {source_of(found)}, where Ray's workers do not find it. "
            "Put it with its decorator into a file of its own, such as mine.py, and name that in the YAML of "
            "the run or sweep: `plugins: [./mine.py]`"
        )
    return (file,) if file else ()


def source_of(found: Callable[..., Any]) -> str:
    """Where a class comes from, for people: its file, with the first digits of the digest if not ours."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    digest = source_digest(found)
    return f"{file or f'the module {found.__module__}'}" + (f" (sha256 {digest[:12]})" if digest else "")


def source_digest(found: Callable[..., Any]) -> str | None:
    """SHA-256 of the file that defines a class, as it was when a plugin file was loaded.

    None for a class of this package, and for one that no file defines, as in a notebook. The path never
    counts: workers have the code and not the file.
    """
    plugin, file = _file_of(found.__module__), getattr(sys.modules.get(found.__module__), "__file__", None)
    if plugin is not None:
        return plugin.digest
    if file is None or found.__module__.partition(".")[0] == "seal_ray":
        return None
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return None


class _Loader(SourceLoader):
    """Loads a module from the code of a plugin file, and shows that code in tracebacks, without a cache."""

    def __init__(self, file: PluginFile) -> None:
        self.file = file

    def get_filename(self, fullname: str) -> str:
        """Where the file was read."""
        return self.file.path

    def get_data(self, path: str | bytes) -> bytes:
        """The code."""
        return self.file.code.encode()


def _load(file: PluginFile) -> str:
    """Run a file's code unless that was done already; returns the name of its module."""
    if file.is_loaded:
        return file.module
    _log.info("code: %s sha256 %s", file.path, file.digest[:12])
    loader = _Loader(file)
    spec = ModuleSpec(file.module, loader, origin=file.path)
    spec.has_location = True
    sys.modules[file.module] = module = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[file.module]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        said = str(error) if isinstance(error, SealRayError) else f"fails: {_last_line(error)}"
        raise ConfigError(f"{file.path}:{_line(error, file.path)}: {said}") from error
    return file.module


def _file_of(module: str) -> PluginFile | None:
    loader = getattr(getattr(sys.modules.get(module), "__spec__", None), "loader", None)
    return loader.file if isinstance(loader, _Loader) else None


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _line(error: BaseException, path: str) -> int:
    """The last line of a file that an error went through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if frame.filename == path), 1)
