"""The registry of sources: what can be prepared, what is known of it before, and how it is read."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from seal_ray.data.dataset import Source
from seal_ray.errors import ConfigError
from seal_ray.plugins import Registry

OPTIONS = {
    "path": "--source",
    "train": "--train",
    "val": "--val",
    "val_share": "--val-share",
    "size": "--size",
    "background": "--background",
    "download": "--download",
    "allow_subset": "--allow-subset",
    "seed": "--seed",
}
"""The parameters that a source may have, and what the command line calls them."""

A_FIFTH = "none is published, so a fifth of each class, drawn by seed 0, is held out"

R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is read.

    needs: the files that `path` holds, packed or extracted. one_of: options of which one must be given, the
    usual one first. classes, images, train: as published; None where
    that is not, or depends on the user's own images. split: where train and val come from.
    """

    name: str
    needs: tuple[str, ...] = ()
    one_of: tuple[tuple[str, ...], ...] = ()
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


def open_source(name: str, *, seed: int = 0, **options: Any) -> Source:
    """Read the source of that name, from the options of OPTIONS that it takes; `source` is its `path`.

    An option that is None or False is not given. Raises ConfigError for an unknown name and for an option
    that is missing or does not apply; DataError when what the options point to is missing, incomplete or
    damaged.
    """
    given = check_options(name, options)
    read = SOURCES[name]
    if "seed" in inspect.signature(read).parameters:
        given["seed"] = seed
    found = read(**given)
    try:
        held = {
            field.name: getattr(found, field.name)
            for field in fields(Source)
            if hasattr(found, field.name) or field.name not in ("notes", "converted")
        }
    except AttributeError as error:
        raise ConfigError(f"the source {name!r} gives no Source: {error}") from error
    return replace(Source(**held), name=name, licence_note=held["licence_note"] or read.info.licence_note)


def check_options(name: str, options: Mapping[str, Any], also: Sequence[str] = ()) -> dict[str, Any]:
    """The options that are given, as a source's parameters.

    ConfigError for an unknown source, or that names all options that one lacks or does not take. also: what
    is missing besides, as the command line calls it.
    """
    given = {
        "path" if option == "source" else option: value
        for option, value in options.items()
        if value is not None and value is not False
    }
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SOURCES)}"
        raise ConfigError(f"unknown data source {name!r}; {hint}")
    parameters = inspect.signature(SOURCES[name]).parameters
    problems = [
        f"{OPTIONS[option]} does not apply to {name}; leave it out"
        for option in OPTIONS
        if option in given and option not in parameters
    ]
    groups = [group for group in _needed(name) if not set(group) & set(given)]
    lacking = [
        OPTIONS[first] + (f" (or {' or '.join(OPTIONS[one] for one in rest)})" if rest else "")
        for first, *rest in groups
    ]
    if lacking := [*lacking, *also]:
        listed = " and ".join(filter(None, [", ".join(lacking[:-1]), lacking[-1]]))
        problems.append(f"{name} needs {listed}")
    if problems:
        raise ConfigError(". ".join(problems))
    return given


def required(name: str) -> list[str]:
    """The options without which a source cannot be read, the usual one where it needs one of several."""
    return [group[0] for group in _needed(name)]


def _needed(name: str) -> list[tuple[str, ...]]:
    """Of each group a source needs one option."""
    parameters = inspect.signature(SOURCES[name]).parameters
    alone = [(option,) for option, parameter in parameters.items() if parameter.default is parameter.empty]
    return [*alone, *SOURCES[name].info.one_of]
