"""`seal-ray methods`, its likes, and `check`: what recipes may name, and whether it keeps its promises."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import typer

from seal_ray.cli.options import Plugins, out
from seal_ray.errors import ConfigError

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
Name = Annotated[Optional[str], typer.Argument(help="Show this one in full.", show_default=False)]  # noqa: UP045


LISTS = {
    "methods": (
        ("method", "seal_ray.methods", "METHODS"),
        "List the methods: what each does, its parameters with defaults and ranges, and where it comes from.",
    ),
    "augmentations": (
        ("augmentation", "seal_ray.augmentations", "AUGMENTATIONS"),
        "List the augmentations that `augment.then` may hold, as `methods` does.",
    ),
    "losses": (("loss", "seal_ray.phases.losses", "LOSSES"), "List the losses, as `methods` does."),
    "optimizers": (
        ("optimizer", "seal_ray.phases.optimizers", "OPTIMIZERS"),
        "List the optimizers, as `methods` does.",
    ),
    "metrics": (
        ("metric", "seal_ray.metrics", "METRICS"),
        "List the metrics that `placement.metrics` may hold, as `methods` does.",
    ),
    "analyses": (
        ("analysis", "seal_ray.analysis", "ANALYSES"),
        "List the analyses: what each computes, its settings with defaults and ranges, and where it is from.",
    ),
}
"""Commands that show a registry: of what and where it is, and what the command says of itself."""


def list_of(what: str, home: str, registry: str) -> Callable[..., None]:
    """The command that shows what a registry has, or one of it in full."""

    def show(name: Name = None, plugin: Plugins = None) -> None:
        from seal_ray.config.plugin_files import given_files
        from seal_ray.plugins import using

        with using(given_files(plugin or [])):
            known = dict(getattr(import_module(home), registry))
        if name is not None and name not in known:
            raise ConfigError(f"{name}: is no {what}; there are {', '.join(known)}")
        for cls in known.values() if name is None else [known[name]]:
            paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
            module = inspect.getdoc(sys.modules[cls.__module__]) or ""
            paper = module.partition("\n")[0] if what in ("method", "analysis") else ""
            texts = [paper, *(paragraphs if name else paragraphs[:1])]
            _show(cls.name, [re.sub(r"\n\s*", "\n", text) for text in texts], _parameters(cls), cls)

    return show


def networks(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Show this one, such as timm/convnext_atto.", show_default=False),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List the networks: what each is, its fields with defaults and ranges, and where it comes from."""
    from seal_ray.config.plugin_files import given_files
    from seal_ray.networks import NETWORKS, factory_of, network_fields
    from seal_ray.plugins import using

    with using(given_files(plugin or [])):
        try:
            shown = {one: factory_of(one) for one in ([*NETWORKS] if name is None else [name])}
        except ConfigError as error:
            raise ConfigError(f"{name}: is no network; {error}") from None
    for arch, factory in shown.items():
        described = [
            (field, MISSING if default is None else default, hint)
            for field, (hint, default) in network_fields(factory).items()
        ]
        _show(arch, [inspect.getdoc(factory) or ""], described, factory)
    if name is None:
        out.print("timm/NAME: any image classifier of timm; its names are those of timm.list_models()")


def check(
    file: Annotated[Path, typer.Argument(help="A plugin file.", show_default=False)],
    ranks: Annotated[
        bool, typer.Option("--ranks/--no-ranks", help="Train in two processes as well, as workers would.")
    ] = True,
    size: Annotated[int, typer.Option(min=1, help="Pixels of the images that networks are checked on.")] = 32,
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="What its data sources read, the --source of `seal-ray data prepare`."),
    ] = None,
) -> None:
    """Check that what a plugin file registers keeps what is relied on, on tiny networks and images."""
    from seal_ray.augmentations import AUGMENTATIONS
    from seal_ray.config.plugin_files import given_files
    from seal_ray.data.sources import SOURCES
    from seal_ray.methods import METHODS
    from seal_ray.metrics import METRICS
    from seal_ray.networks import NETWORKS
    from seal_ray.phases.losses import LOSSES
    from seal_ray.plugins import Registry, using
    from seal_ray.recipe import ANALYSES
    from seal_ray.testing import (
        CheckResult,
        analysis_checks,
        augmentation_checks,
        loss_checks,
        method_checks,
        metric_checks,
        network_checks,
        source_checks,
    )

    kinds: list[tuple[Registry[Any], Callable[[str, Any], Iterator[CheckResult]]]] = [
        (METHODS, lambda _, cls: method_checks(cls(), ranks=ranks)),
        (NETWORKS, lambda arch, _: network_checks(arch, size=size, ranks=ranks)),
        (AUGMENTATIONS, lambda _, cls: augmentation_checks(cls(), ranks=ranks)),
        (LOSSES, lambda _, cls: loss_checks(cls(), ranks=ranks)),
        (METRICS, lambda _, cls: metric_checks(cls())),
        (ANALYSES, lambda _, cls: analysis_checks(cls)),
        (SOURCES, lambda name, _: source_checks(name, source=source)),
    ]
    [plugin] = given_files([file])
    broken = False
    with using([plugin]):
        found = [
            (name, one, checks)
            for registry, checks in kinds
            for name, one in registry.items()
            if one in registry.of(plugin)
        ]
        if not found:
            decorators = ", ".join(f"@seal_ray.{registry.kind}" for registry, _ in kinds)
            raise ConfigError(f"{file}: registers nothing; decorate it with one of {decorators}")
        for name, one, checks in found:
            try:
                results = checks(name, one)
            except TypeError as error:
                raise ConfigError(f"{file}: give every field of {one.__name__} a default ({error})") from None
            for result in results:
                said = f"BROKEN  {name}: {result.promise}: {result.problem}"
                out.print(said if result.problem else f"ok      {name}: {result.promise}", markup=False)
                broken = broken or bool(result.problem)
    if broken:
        raise typer.Exit(1)


def _show(
    name: str, texts: Iterable[str], parameters: Iterable[tuple[str, Any, Any]], found: Callable[..., Any]
) -> None:
    """Print what a class or function says of itself, its parameters (name, default, type), and its source."""
    from seal_ray.plugins import source_of

    out.print(name, markup=False, style="bold")
    for text in filter(None, texts):
        out.print("  " + text.replace("\n", "\n  "), markup=False)
    for parameter, default, hint in parameters:
        given = "" if default is MISSING else f" = {_value(default)}"
        out.print(f"    {parameter}{given}  ({_range(hint)})", markup=False)
    out.print(f"  {source_of(found)}\n", markup=False)


def _parameters(cls: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, default and type of each field; of an analysis, of its settings."""
    if is_dataclass(cls):
        hints = get_type_hints(cls, include_extras=True)
        yield from ((field.name, field.default, hints[field.name]) for field in fields(cls))
    else:
        for name, field in cls.Settings.model_fields.items():
            yield name, field.get_default(call_default_factory=True), field.rebuild_annotation()


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
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
    if get_origin(hint) is tuple:
        return f"list of {', '.join(map(_range, get_args(hint)))}"
    if is_dataclass(hint):
        return "{" + ", ".join(field.name for field in fields(hint)) + "}"
    names = {
        Any: "any value of YAML",
        float: "number",
        int: "whole number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))
