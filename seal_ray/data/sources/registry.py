"""The registry of sources: what can be prepared, what is known of it before, and how it is read."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from seal_ray.data.dataset import Source
from seal_ray.errors import ConfigError
from seal_ray.plugins import Registry

OPTIONS = {
    "path": "--source",
    "train": "--train",
    "val": "--val",
    "size": "--size",
    "download": "--download",
    "allow_subset": "--allow-subset",
}
"""The parameters that a source may have, and what the command line calls them."""

A_FIFTH = "none is published, so a fifth of each class, drawn by seed 0, is held out"

R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is read.

    needs: the files that `path` holds, packed or extracted. classes, images, train: as published; None where
    that is not, or depends on the user's own images. split: where train and val come from.
    """

    name: str
    needs: tuple[str, ...] = ()
    address: str = ""
    licence_note: str = ""
    classes: int | None = None
    images: int | None = None
    train: int | None = None
    split: str = "official"

    @property
    def val(self) -> int | None:
        """Images held out, by the published numbers."""
        return None if self.images is None or self.train is None else self.images - self.train


SOURCES: Registry[Any] = Registry("source")
"""What can be prepared: functions and classes that give a Source, each with a SourceInfo, `info`."""


def source(name: str, **facts: Any) -> Callable[[R], R]:
    """Decorator: `seal-ray data prepare` knows this source, a function `(path: Path) -> Source`.

    Or a class whose instances have the fields of a Source. Other parameters may be those of OPTIONS; what has
    no default must be given. facts: the fields of SourceInfo. ConfigError for another name or parameter, and
    for a name that another source has.
    """

    def add(read: R) -> R:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ConfigError(f"the source {name!r}: give it a name of small letters, digits, - and _")
        if others := sorted(inspect.signature(read).parameters.keys() - OPTIONS.keys()):
            raise ConfigError(
                f"the source {name!r}: its parameter {others[0]} is none of {', '.join(OPTIONS)}"
            )
        read.info = SourceInfo(name, **facts)  # type: ignore[attr-defined]
        SOURCES.add(name, read)  # type: ignore[type-var]
        return read

    return add


def open_source(
    name: str,
    *,
    source: Path | None = None,
    train: Path | None = None,
    val: Path | None = None,
    size: int | None = None,
    download: bool = False,
    allow_subset: bool = False,
) -> Source:
    """Read the source of that name, from the options that it takes; `source` is its `path`.

    Raises ConfigError for an unknown name and for an option that is missing or does not apply; DataError when
    what the options point to is missing, incomplete or damaged.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SOURCES)}"
        raise ConfigError(f"unknown data source {name!r}; {hint}")
    read = SOURCES[name]
    options = {"path": source, "train": train, "val": val, "size": size}
    options |= {"download": download or None, "allow_subset": allow_subset or None}
    given = {option: value for option, value in options.items() if value is not None}
    parameters = inspect.signature(read).parameters
    for option, flag in OPTIONS.items():
        if option in given and option not in parameters:
            raise ConfigError(f"{flag} does not apply to {name}; leave it out")
    if lacking := [OPTIONS[option] for option in required(name) if option not in given]:
        raise ConfigError(f"{name} needs {' and '.join(lacking)}")
    found = read(**given)
    try:
        held = {field.name: getattr(found, field.name) for field in fields(Source)}
    except AttributeError as error:
        raise ConfigError(f"the source {name!r} gives no Source: {error}") from error
    return replace(Source(**held), name=name, licence_note=held["licence_note"] or read.info.licence_note)


def required(name: str) -> list[str]:
    """The options without which a source cannot be read."""
    parameters = inspect.signature(SOURCES[name]).parameters
    return [option for option, parameter in parameters.items() if parameter.default is parameter.empty]
