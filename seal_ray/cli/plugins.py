"""`seal-ray methods` and `seal-ray check`: what recipes may name, and whether it keeps its promises."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Optional,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

from seal_ray.cli.options import Plugins, out
from seal_ray.errors import ConfigError

if TYPE_CHECKING:
    from seal_ray.methods import Method

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def methods(
    name: Annotated[Optional[str], typer.Argument(help="Show this one in full.", show_default=False)] = None,  # noqa: UP045
    plugin: Plugins = None,
) -> None:
    """List the methods: what each does, its parameters with defaults and ranges, and where it comes from."""
    from seal_ray.config.plugin_files import given_files
    from seal_ray.methods import METHODS
    from seal_ray.plugins import using

    with using(given_files(plugin or [])):
        known = dict(METHODS)
    if name is not None and name not in known:
        raise ConfigError(f"{name}: is no method; there are {', '.join(known)}")
    for one in known.values() if name is None else [known[name]]:
        _show(one, whole=name is not None)


def analyses(
    name: Annotated[Optional[str], typer.Argument(help="Show this one in full.", show_default=False)] = None,  # noqa: UP045
    plugin: Plugins = None,
) -> None:
    """List the analyses: what each computes, its settings with defaults and ranges, and where it is from."""
    from seal_ray.analysis import ANALYSES
    from seal_ray.config.plugin_files import given_files
    from seal_ray.plugins import using

    with using(given_files(plugin or [])):
        known = dict(ANALYSES)
    if name is not None and name not in known:
        raise ConfigError(f"{name}: is no analysis; there are {', '.join(known)}")
    for kind in known.values() if name is None else [known[name]]:
        held = kind.Settings.model_fields
        settings = [
            (one, field.get_default(call_default_factory=True), field.rebuild_annotation())
            for one, field in held.items()
        ]
        _describe(kind, settings, whole=name is not None)


def check(
    file: Annotated[Path, typer.Argument(help="A plugin file.", show_default=False)],
    ranks: Annotated[
        bool, typer.Option("--ranks/--no-ranks", help="Train in two processes as well, as workers would.")
    ] = True,
) -> None:
    """Check that the methods and analyses of a plugin file keep what is relied on, on a tiny network."""
    from seal_ray.config.plugin_files import given_files
    from seal_ray.methods import METHODS
    from seal_ray.plugins import using
    from seal_ray.recipe import ANALYSES
    from seal_ray.testing import analysis_checks, method_checks

    [plugin] = given_files([file])
    broken = False
    with using([plugin]):
        methods, analyses = METHODS.of(plugin), ANALYSES.of(plugin)
        if not methods and not analyses:
            raise ConfigError(
                f"{file}: registers nothing; decorate its class with @seal_ray.method or @seal_ray.analysis"
            )
        checks = [(kind.name, analysis_checks(kind)) for kind in analyses]
        for kind in methods:
            try:
                method = kind()
            except TypeError as error:
                raise ConfigError(
                    f"{file}: give every field of {kind.__name__} a default ({error})"
                ) from None
            checks.append((kind.name, method_checks(method, ranks=ranks)))
        for name, results in checks:
            for result in results:
                said = f"BROKEN  {name}: {result.promise}: {result.problem}"
                out.print(said if result.problem else f"ok      {name}: {result.promise}", markup=False)
                broken = broken or bool(result.problem)
    if broken:
        raise typer.Exit(1)


def _show(kind: type[Method], *, whole: bool) -> None:
    hints = get_type_hints(kind, include_extras=True)
    parameters = [(field.name, field.default, hints[field.name]) for field in fields(kind)]
    _describe(kind, parameters, whole=whole)


def _describe(kind: Any, parameters: Sequence[tuple[str, Any, Any]], *, whole: bool) -> None:
    """What a class does and where it comes from; parameters: names, defaults, types."""
    from seal_ray.plugins import source_of

    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    paper = (inspect.getdoc(sys.modules[kind.__module__]) or "").partition("\n")[0]
    out.print(kind.name, markup=False, style="bold")
    for text in filter(None, [paper, *(paragraphs if whole else paragraphs[:1])]):
        out.print("  " + re.sub(r"\n\s*", "\n  ", text), markup=False)
    for name, default, hint in parameters:
        given = "" if default is MISSING else f" = {_value(default)}"
        out.print(f"    {name}{given}  ({_range(hint)})", markup=False)
    out.print(f"  {source_of(kind)}\n", markup=False)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _range(hint: Any) -> str:
    """What values a type allows, in words."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        bounds = [
            f"{sign} {getattr(limit, bound):g}"
            for limit in limits
            for bound, sign in BOUNDS.items()
            if getattr(limit, bound, None) is not None
        ]
        return " ".join([_range(base), ", ".join(bounds)]).strip()
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_range(one) for one in get_args(hint))
    if is_dataclass(hint):
        return "{" + ", ".join(field.name for field in fields(hint)) + "}"
    names = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
