"""`seal-ray report`: runs and their analyses as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seal_ray.cli.options import Storage, Target, Trust, out, trust_plugins


def report(
    target: Target,
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it
        typer.Option("--output", "-o", help="File to write; default: report.html beside the results."),
    ] = None,
    storage: Storage = None,
    trusted: Trust = False,
) -> None:
    """Write one HTML page that needs nothing else: leaderboard, curves, analyses, how to repeat it."""
    from seal_ray.cli.tables import size
    from seal_ray.reports.page import write_report

    trust_plugins(target, trusted)
    path, study = write_report(target, output, storage)
    runs = f"{len(study.runs)} run{'' if len(study.runs) == 1 else 's'}"
    out.print(f"{path}: {runs} of {study.name}, {size(path.stat().st_size)}", markup=False)
