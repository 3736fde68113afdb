"""`seal-ray sweep`: many runs, and how their settings compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seal_ray import api
from seal_ray.cli.options import Address, AxisOption, Plugins, Set, Storage, WorkersOption, out, overrides


def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep's YAML file.", show_default=False)],
    set_: Set = None,
    axis: AxisOption = None,
    workers: WorkersOption = None,
    storage: Storage = None,
    address: Address = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; default: as many as the cluster holds.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="Train what runs have in common once, or in each.")
    ] = True,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="One run after the other in this process, without Ray.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Train all runs of a sweep and compare them. The same command again does what is left."""
    board = api.sweep(
        file,
        overrides(set_, workers, storage, axis),
        plugins=plugin or [],
        address=address,
        concurrent=concurrent,
        share=share,
        in_process=in_process,
        console=out,
    )
    from seal_ray.sweeps.leaderboard import (
        COMPUTE_MEANING,
        meanings,
        notes,
        to_compute_table,
        to_other_table,
        to_table,
    )
    from seal_ray.sweeps.results import problems, totals

    out.print(to_table(board.lines, board.name))
    if (other := to_other_table(board.lines)) is not None:
        out.print()
        out.print(other)
    out.print()
    out.print(to_compute_table(board.lines))
    folder = board.folder
    if isinstance(folder, Path) and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    said = f"{totals(board.runs)}; {folder}/results.md"
    for line in [
        *meanings(board.lines),
        COMPUTE_MEANING,
        *notes(board.lines),
        *filter(None, [board.search]),
        said,
    ]:
        out.print(f"  {line}", markup=False)
    if list(problems(board.runs)):
        raise typer.Exit(1)
