"""`seal-ray data`: the command line of data sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seal_ray.cli.options import Plugins, out, show

if TYPE_CHECKING:
    from seal_ray.data.prepared import Dataset

NAMED = 20
"""The most classes whose sizes are printed one by one."""

data_app = typer.Typer(no_args_is_help=True, help="List and prepare data sets.")


@data_app.command("list")
def list_sources(
    folder: Annotated[Path, typer.Option(help="Where data sets are prepared.")] = Path("data"),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plugin: Plugins = None,
) -> None:
    """List the data sets that can be prepared: what each needs, where it comes from, its terms."""
    from seal_ray.cli.tables import sources_table
    from seal_ray.config.plugin_files import given_files
    from seal_ray.data.prepared import find_prepared
    from seal_ray.data.sources import SOURCES
    from seal_ray.plugins import source_digest, source_of, using

    prepared = find_prepared(folder)
    with using(given_files(plugin or [])):
        readers = list(SOURCES.values())
    code = {read.info.name: source_of(read) for read in readers if source_digest(read)}
    infos = [read.info for read in readers]
    places = {name: list(map(str, paths)) for name, paths in prepared.items()}
    known = [
        {**dataclasses.asdict(one), "prepared": places.get(one.name, []), "code": code.get(one.name)}
        for one in infos
    ]
    show(known, json_, lambda: sources_table(infos, prepared, code))


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="One of those that `seal-ray data list` shows.")],
    to: Annotated[
        Path | None,
        typer.Option(help="Folder to write train.beton, val.beton, dataset.json to; must be given."),
    ] = None,
    source: Annotated[Path | None, typer.Option(help="The official archive, or a folder.")] = None,
    train_: Annotated[
        Path | None,
        typer.Option("--train", help="folder: as --source, a folder of images a class."),
    ] = None,
    val: Annotated[Path | None, typer.Option(help="folder: the same, to validate on.")] = None,
    val_share: Annotated[
        float | None,
        typer.Option(help="folder: hold out this share of each class, such as 0.1, in place of --val."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side; targets: 64, folder: the median of the shorter sides.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(help="What transparent images are laid on: white, unless black is given."),
    ] = None,
    called: Annotated[
        str | None,
        typer.Option("--name", help="What tags and cards call the data set; folder: the name of --to."),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Only so many classes, drawn by --seed.")] = None,
    per_class: Annotated[int | None, typer.Option(help="Only so many training images a class.")] = None,
    jpeg: Annotated[bool, typer.Option(help="Store JPEG instead of raw pixels: smaller, slower.")] = False,
    seed: Annotated[int, typer.Option(help="Which classes and images are drawn, and held out.")] = 0,
    allow_subset: Annotated[
        bool, typer.Option("--allow-subset", help="Take an incomplete archive: what is there.")
    ] = False,
    download: Annotated[bool, typer.Option(help="Fetch from the official address.")] = False,
    plugin: Plugins = None,
) -> None:
    """Write a data set as .beton files, checked and checksummed. Running it again changes nothing."""
    from seal_ray.cli.tables import data_progress
    from seal_ray.config.plugin_files import given_files
    from seal_ray.data.prepare import prepare as prepare_source
    from seal_ray.data.sources import check_options, open_source
    from seal_ray.plugins import using

    options: dict[str, Any] = {"source": source, "train": train_, "val": val, "val_share": val_share}
    options |= {"size": size, "background": background, "download": download, "allow_subset": allow_subset}
    with using(given_files(plugin or [])):
        check_options(name, options, [] if to else ["--to"])
        opened = open_source(name, **options, seed=seed)
    assert to is not None
    drawn: dict[str, Any] = {"classes": classes, "per_class": per_class, "seed": seed}
    with data_progress(out) as progress:
        dataset = prepare_source(opened, to, **drawn, jpeg=jpeg, name=called, progress=progress)
    counts = ", ".join(f"{file.count} {split}" for split, file in dataset.splits.items())
    lines = [
        f"{to}: {dataset.name}, {len(dataset.classes)} classes, {counts} images of {dataset.size} px",
        f"  {dataset.identity}",
        f"  {_sizes(dataset)}",
        *(f"  {note}" for note in opened.notes),
        *(
            f"  {len(images):,} image{'s' * (len(images) > 1)} {what} ({min(images)})"
            for what, images in sorted(opened.converted.items())
        ),
    ]
    out.print("\n".join(lines), markup=False)


def _sizes(dataset: Dataset) -> str:
    """How many images each class has, by name while they fit a few lines."""
    import numpy as np

    from seal_ray.data.beton import BetonFile

    files = (BetonFile.open(dataset.folder / split.file) for split in dataset.splits.values())
    counts = [np.bincount(file.labels, minlength=len(dataset.classes)).tolist() for file in files]
    if len(dataset.classes) <= NAMED:
        each = zip(dataset.classes, *counts, strict=True)
        return "train + val: " + ", ".join(f"{one.id} {train:,} + {val:,}" for one, train, val in each)
    spans = (f"{min(of):,}" if min(of) == max(of) else f"{min(of):,} to {max(of):,}" for of in counts)
    return "a class: " + " + ".join(spans) + " images, train + val"
