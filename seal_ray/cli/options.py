"""What the commands of the command line have in common: their output, their options."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from seal_ray.errors import ConfigError
from seal_ray.storage.paths import storage_path, with_home

WIDE = 10_000
"""Cells that a table may take where nothing is as narrow as a terminal."""
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field, such as recipe.budget.epochs=8. Repeatable."),
]
AxisOption = Annotated[
    list[str] | None,
    typer.Option("--axis", help="Sweep: add an axis, such as method.ascent_rate=0.1,0.3. Repeatable."),
]
Storage = Annotated[
    str | None,
    typer.Option(help="Folder that runs are stored in, or s3://BUCKET/PATH (gs, az)."),
]
Folder = Annotated[str, typer.Option("--storage", help="Folder that runs are stored in.")]
TargetArgument = Annotated[
    Any,  # a path, or one in S3
    typer.Argument(
        parser=storage_path,
        metavar="TARGET",
        help="A run's folder, a storage folder, or a sweep's YAML.",
        show_default=False,
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A file of code, loaded first, as `plugins:` in the YAML. Repeatable."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-plugins", help="Run the plugin files that runs in an object store have brought along."
    ),
]
WorkersOption = Annotated[int | None, typer.Option(help="Number of workers; divides recipe.shards.")]

Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster, or `auto`; without it Ray is started on this machine."),
]
InProcess = Annotated[bool, typer.Option("--in-process", help="In this process, without Ray.")]


def split_names(text: str | None) -> list[str] | None:
    """The words of an option that takes several, separated by commas; None where it is not given."""
    return None if text is None else text.split(",")


def show(found: Any, json_: bool, drawn: Callable[[], RenderableType]) -> None:
    """Print what was found: as JSON, or for people."""
    if json_:
        print(json.dumps(found, indent=1))
    else:
        out.print(drawn())


def trust_plugins(target: Any, trusted: bool) -> None:
    """Load what --trust-plugins says may be loaded."""
    from seal_ray.config.plugin_files import trust

    if trusted:
        trust(target)


def replaced(word: str) -> str:
    """A word of the command line as a path is written, see `with_home`, if it can be one.

    What assigns, as `--set FIELD=VALUE` does, is left to who reads it.
    """
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if "=" in value or not ("/" in value or value.startswith(("~", "$"))):
        return word
    return option + equals + with_home(value)


def say_what_is_loaded() -> None:
    """Name each plugin file on stderr, with its digest, before its code runs."""
    log = logging.getLogger("seal_ray.plugins")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [_ToStderr()]


class _ToStderr(logging.Handler):
    """Writes to what stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        print(self.format(record), file=sys.stderr)


def overrides(
    given: list[str] | None, workers: int | None, storage: str | None, axes: list[str] | None = None
) -> list[str]:
    """The assignments of --set, and of the options that are short for one."""
    from seal_ray.config.document import stored_in

    assignments = list(given or [])
    if workers is not None:
        assignments.append(f"placement.workers={workers}")
    axes = axes or []
    for axis in axes:
        field, equals, values = axis.partition("=")
        if not equals:
            raise ConfigError(f"--axis {axis}: is not FIELD=VALUES, such as method.ascent_rate=0.1,0.3")
        if any(one.partition("=")[0].strip() == field.strip() for one in axes if one is not axis):
            raise ConfigError(f"--axis {field.strip()}: is given twice; write its values in one, with commas")
        listed = values if values.lstrip().startswith(("[", "{")) else f"[{values}]"
        assignments.append(f"axes.{field.strip().removeprefix('recipe.')}={listed}")
    return assignments + stored_in(storage)
