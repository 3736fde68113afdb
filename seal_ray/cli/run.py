"""`seal-ray train`, `validate`, `plan`, and what is done with runs that are stored."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from seal_ray import api
from seal_ray.cli.options import (
    Address,
    AxisOption,
    Folder,
    Plugins,
    Set,
    Storage,
    Trust,
    WorkersOption,
    out,
    overrides,
    show,
    split_names,
    trust_plugins,
)
from seal_ray.errors import ConfigError, DataError, StorageError
from seal_ray.storage.paths import storage_path

if TYPE_CHECKING:
    from seal_ray.recipe import Recipe

File = Annotated[Path, typer.Argument(help="YAML file of a run or a sweep.", show_default=False)]


def train(
    files: Annotated[list[Path], typer.Argument(help="YAML files, trained in turn.", show_default=False)],
    set_: Set = None,
    workers: WorkersOption = None,
    storage: Storage = None,
    address: Address = None,
    plugin: Plugins = None,
) -> None:
    """Train runs. The same command again goes on where a run stands; a finished one trains nothing."""
    from seal_ray.recipe import load_job

    jobs = []
    for file in files:
        job = load_job(file, overrides(set_, workers, storage), plugin or [])
        jobs.append(job)
        out.print(f"{file}: {job.recipe.method.name}, {job.recipe.budget.epochs} epochs", markup=False)
    unfinished = False
    with contextlib.closing(api.train_each(jobs, address=address, console=out)) as outcomes:
        for outcome in outcomes:
            reason = f": {outcome.reason}" if outcome.reason else ""
            out.print(f"{outcome.run.id}: {outcome.status}{reason}", markup=False)
            unfinished = unfinished or outcome.status != "finished"
            if outcome.status == "stopped":
                break
    if unfinished:
        raise typer.Exit(1)


def validate(file: File, set_: Set = None, plugin: Plugins = None) -> None:
    """Check a YAML file of a run, a sweep or an evaluation; says what is wrong and where."""
    from seal_ray.analysis.evaluations import is_evaluation, load_evaluation
    from seal_ray.recipe import load_job
    from seal_ray.sweeps.file import is_sweep, load_sweep
    from seal_ray.tracking.environment import wandb_mode

    wandb_mode("auto")  # what the environment says is read at every start
    if is_evaluation(file):
        if set_ or plugin:
            raise ConfigError("--set and --plugin: are for runs and sweeps, not for evaluations")
        found_targets = load_evaluation(file).targets
        out.print(f"{file}: valid ({', '.join(found_targets)})", markup=False)
        return
    if is_sweep(file):
        found = load_sweep(file, set_ or [], plugin or [])
        _check_shards([run.job.recipe for run in found.runs])
        out.print(f"{file}: valid ({found.size})", markup=False)
        return
    job = load_job(file, set_ or [], plugin or [])
    _check_shards([job.recipe])
    out.print(f"{file}: valid ({job.recipe.method.name}, {job.recipe.budget.epochs} epochs)", markup=False)


def _check_shards(recipes: Sequence[Recipe]) -> None:
    """ConfigError for shards of one image that cannot be trained on, where the data is there."""
    for recipe in recipes:
        if recipe.batch_size == recipe.shards:
            from seal_ray.data.prepared import describe_dataset
            from seal_ray.recipe import check_shards

            with contextlib.suppress(DataError, StorageError):
                check_shards(recipe, describe_dataset(recipe.data.path).size)


def plan(
    file: File,
    set_: Set = None,
    axis: AxisOption = None,
    workers: WorkersOption = None,
    storage: Storage = None,
    measure: Annotated[bool, typer.Option("--measure", help="Sweep: time a few steps, to estimate.")] = False,
    images_per_second: Annotated[
        float | None, typer.Option(min=0.1, help="Sweep: the speed to estimate with.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Show what a run or a sweep would do: phases, rates, steps, storage; what is shared.

    Where the data is not prepared but its folder is called as a known data set, its size is assumed.
    """
    from seal_ray.cli.tables import plan_table, sweep_plan_table
    from seal_ray.data.assumed import open_or_assume
    from seal_ray.distributed.launch import prepare_job
    from seal_ray.recipe import load_job
    from seal_ray.sweeps.file import is_sweep, load_sweep
    from seal_ray.sweeps.results import prepare_sweep

    assignments, plugins = overrides(set_, workers, storage, axis), plugin or []
    if is_sweep(file):
        runs = prepare_sweep(load_sweep(file, assignments, plugins), open_or_assume)
        from seal_ray.sweeps.plan import measured_speed, plan_sweep

        speed = measured_speed(runs) if measure else images_per_second
        parts = sweep_plan_table(plan_sweep(runs, speed), runs)
    elif images_per_second or measure or axis:
        raise ConfigError(
            "--axis, --measure and --images-per-second: are for sweeps; this is the file of a run"
        )
    else:
        planned = prepare_job(load_job(file, assignments, plugins), open_data=open_or_assume)
        from seal_ray.sweeps.plan import make_plan

        parts = plan_table(make_plan(planned), planned)
    for part in parts:
        out.print(part)


KEYS = {"epochs": "epochs_done", "best": "best_top1", "images/s": "images_per_second"}
"""The keys of `list_runs` that columns have another name for."""
WATCH_INTERVAL = 2.0
"""Seconds between two looks of `runs --watch`."""


def runs(
    storage: Folder = "runs",
    status: Annotated[
        str | None, typer.Option(help="Only those that stand so, such as running,failed.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Only those of these methods, such as seal,llf.")] = None,
    sort: Annotated[
        Literal["id", "method", "status", "epochs", "top1", "best", "images/s"] | None,
        typer.Option(help="The column to sort by, the largest number first; default: method and seed."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show them whenever they change, until Ctrl-C.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    trusted: Trust = False,
) -> None:
    """List runs: where they are, how well they do, and how far each ascent raised the loss."""
    from seal_ray.cli.tables import runs_table
    from seal_ray.runs.summary import chosen_runs, list_runs

    if watch and json_:
        raise ConfigError("--watch: shows a table; leave out --json")
    trust_plugins(storage_path(storage), trusted)

    def look() -> list[dict[str, Any]]:
        found = list_runs(storage_path(storage))
        return chosen_runs(
            found, split_names(status) or (), split_names(method) or (), sort and KEYS.get(sort, sort)
        )

    found = look()
    if not found and (status or method) and not json_:
        out.print(f"{storage}: no run is of that status and method", markup=False)
        return
    if not watch:
        show(found, json_, lambda: runs_table(found, storage))
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            out.clear()
            out.print(runs_table(found, storage))
            before = found
            while found == before:
                time.sleep(WATCH_INTERVAL)
                found = look()


def sync(
    storage: Folder = "runs",
    run: Annotated[str | None, typer.Option(help="Only the run of this id.")] = None,
    project: Annotated[str | None, typer.Option(help="Another W&B project than the run's.")] = None,
    entity: Annotated[str | None, typer.Option(help="Another W&B team than the run's.")] = None,
    moments: Annotated[bool, typer.Option("--moments", help="Upload the files of moments too.")] = False,
    trusted: Trust = False,
) -> None:
    """Bring runs to W&B: of each run the epochs it lacks, from metrics.jsonl."""
    from seal_ray.tracking.environment import server
    from seal_ray.tracking.sync import sync_storage

    trust_plugins(storage_path(storage), trusted)
    out.print(f"W&B at {server()}", markup=False)
    for one in sync_storage(storage_path(storage), project=project, entity=entity, run=run, moments=moments):
        done = f"skipped, {one.skipped}" if one.skipped else f"{one.uploaded} of {one.epochs} epochs uploaded"
        out.print(f"{one.run_id}: {done}", markup=False)


def dashboard(
    project: Annotated[str, typer.Option(help="W&B project.", show_default=False)],
    entity: Annotated[str | None, typer.Option(help="W&B team; default: your own.")] = None,
    sweep: Annotated[str | None, typer.Option(help="Name of a sweep: a view of its runs alone.")] = None,
    json_: Annotated[
        Path | None,
        typer.Option("--json", help="Write the view to this file, or - to print it; W&B is not asked."),
    ] = None,
) -> None:
    """Save a view of all that is logged in W&B. Again: the same view, brought up to date."""
    from seal_ray.recipe import ANALYSES
    from seal_ray.sweeps.file import NAME
    from seal_ray.tracking.workspace import project_view, save_view, sweep_view, view_json

    if sweep is not None and not re.fullmatch(NAME, sweep):
        raise ConfigError(
            f"--sweep {sweep}: cannot be a sweep's name; by default it is its file's, without .yaml"
        )
    analyses = [kind.section for kind in ANALYSES.values() if kind.section]
    view = project_view(analyses) if sweep is None else sweep_view(sweep, analyses)
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


def clean(
    storage: Folder = "runs",
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
) -> None:
    """List what no run needs any more, and with --yes remove it. Moments stay."""
    from seal_ray.cli.tables import size
    from seal_ray.runs.cleanup import find_litter, remove

    found = find_litter(storage_path(storage))
    gone = remove(found) if yes else found
    for one in gone:
        out.print(f"{one.path}: {one.what} ({size(one.bytes)})", markup=False)
    total = f"{len(gone)} of {len(found)}" if yes else f"{len(found)}"
    verb = "removed" if yes else "would be removed by --yes"
    out.print(f"{total} {verb}, {size(sum(one.bytes for one in gone))}", markup=False)


def export(
    run: Annotated[
        Any, typer.Argument(parser=storage_path, metavar="RUN", help="A run's folder.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; its card goes beside it.")],
    moment: Annotated[
        str | None, typer.Option(help="Such as g002-relearned; default: the last one relearned.")
    ] = None,
    format_: Annotated[
        Literal["safetensors", "torch", "onnx"], typer.Option("--format", help="What to write.")
    ] = "safetensors",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    trusted: Trust = False,
) -> None:
    """Write a moment's weights so that torchvision and timm load them, or as ONNX, with a card beside it."""
    from seal_ray.runs.export import export as export_moment

    trust_plugins(run, trusted)
    done = export_moment(run, output, moment=moment, file_format=format_, force=force)
    top1 = "" if done.top1 is None else f", top1 {done.top1:.1f} %"
    out.print(f"{done.path}: {done.run_id} {done.moment}{top1}; card {done.card}", markup=False)


def doctor() -> None:
    """Check this machine: Python, torch, GPU, FFCV, Ray, W&B, disk."""
    from seal_ray.cli.doctor import examine

    checks = examine()
    for check in checks:
        mark = "ok     " if check.right else "MISSING"
        out.print(f"{mark}  {check.name:<7}  {check.found}", markup=False)
        if not check.right:
            out.print(f"         {'':<7}  -> {check.remedy}", markup=False)
    if not all(check.right for check in checks):
        raise typer.Exit(1)
