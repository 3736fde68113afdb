"""`seal-ray dashboard`: the W&B workspace of a project, or of one of its sweeps."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from seal_ray.cli.options import out
from seal_ray.errors import ConfigError


def dashboard(
    project: Annotated[str, typer.Option(help="W&B project.", show_default=False)],
    entity: Annotated[Optional[str], typer.Option(help="W&B team; default: your own.")] = None,  # noqa: UP045
    sweep: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it
        typer.Option(help="Name of a sweep: a view of its runs alone."),
    ] = None,
    json_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="Write the view to this file, or - to print it; W&B is not asked."),
    ] = None,
) -> None:
    """Save a view of all that is logged in W&B. Again: the same view, brought up to date."""
    from seal_ray.sweeps.file import NAME
    from seal_ray.tracking.workspace import project_view, save_view, sweep_view, view_json

    if sweep is not None and not re.fullmatch(NAME, sweep):
        raise ConfigError(
            f"--sweep {sweep}: cannot be a sweep's name; by default it is its file's, without .yaml"
        )
    view = project_view() if sweep is None else sweep_view(sweep)
    if json_ is None:
        saved = save_view(view, project, entity)
        out.print(f"{view.name}: {'updated' if saved.existed else 'created'}, {saved.url}", markup=False)
        return
    text = view_json(view, project, entity)
    if str(json_) == "-":
        sys.stdout.write(text)
        return
    try:
        json_.write_text(text)
    except OSError as error:
        raise ConfigError(f"--json {json_}: cannot be written ({error.strerror})") from None
    out.print(f"{view.name}: {json_}", markup=False)
