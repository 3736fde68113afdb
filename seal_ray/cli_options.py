"""What the commands of the command line have in common: their output, their options."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Optional

import typer
from rich.console import Console as RichConsole

from seal_ray.objects import storage_path

out = RichConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)

Set = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it
    typer.Option("--set", help="Override a field, such as recipe.budget.epochs=8. Repeatable."),
]
Storage = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Folder that runs are stored in, or s3://BUCKET/PATH."),
]
Target = Annotated[
    Any,  # a path, or one in S3
    typer.Argument(
        parser=storage_path,
        metavar="TARGET",
        help="A run's folder, a storage folder, or a sweep's YAML.",
        show_default=False,
    ),
]
Workers = Annotated[Optional[int], typer.Option(help="Number of workers; divides recipe.shards.")]  # noqa: UP045

Address = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="A running Ray cluster, or `auto`; without it Ray is started on this machine."),
]


def overrides(given: list[str] | None, workers: int | None, storage: str | None) -> list[str]:
    """The assignments of --set, and of the options that are short for one."""
    from seal_ray.yaml_file import stored_in

    assignments = list(given or [])
    if workers is not None:
        assignments.append(f"placement.workers={workers}")
    return assignments + stored_in(storage)
