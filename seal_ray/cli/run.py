"""The command line: parse, call, print. Errors that a user caused are printed without a traceback."""

from __future__ import annotations

import json
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from seal_ray.cli.analyze import fewshot, transfer
from seal_ray.cli.dashboard import dashboard
from seal_ray.cli.data import data_app
from seal_ray.cli.jobs import PASSED_ON, jobs_app, submit
from seal_ray.cli.options import (
    Address,
    Plugins,
    Set,
    Storage,
    Target,
    Trust,
    Workers,
    out,
    overrides,
    say_what_is_loaded,
    trust_plugins,
)
from seal_ray.cli.plugins import analyses, methods
from seal_ray.cli.plugins import check as check_command
from seal_ray.cli.report import report
from seal_ray.errors import ConfigError, SealRayError
from seal_ray.storage.paths import storage_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Forget-and-relearn training: SEAL, LLF and rivals, on one machine or a Ray cluster.",
)
app.add_typer(data_app, name="data")
app.command()(transfer)
app.command()(fewshot)
app.command()(methods)
app.command()(analyses)
app.command()(check_command)
app.command()(dashboard)
app.command()(report)
app.command(context_settings=PASSED_ON)(submit)
app.add_typer(jobs_app, name="jobs")

File = Annotated[Path, typer.Argument(help="YAML file of a run or a sweep.", show_default=False)]


class FileFormat(StrEnum):
    """What `seal-ray export` writes."""

    safetensors = "safetensors"
    torch = "torch"
    onnx = "onnx"


@app.command()
def train(
    files: Annotated[list[Path], typer.Argument(help="YAML files, trained in turn.", show_default=False)],
    set_: Set = None,
    workers: Workers = None,
    storage: Storage = None,
    address: Address = None,
    plugin: Plugins = None,
) -> None:
    """Train runs. The same command again goes on where a run stands; a finished one trains nothing."""
    from seal_ray.analysis.run import analysing_run
    from seal_ray.distributed.launch import launch, prepare_job, ray_session
    from seal_ray.tracking.terminal import Console

    console = Console(out)
    planned = [prepare_job(_load(file, set_, workers, storage, plugin)) for file in files]
    unfinished = False
    with ray_session(address):
        for one in planned:
            with analysing_run(one, out):
                outcome = launch(one, console)
            reason = f": {outcome.reason}" if outcome.reason else ""
            out.print(f"{outcome.run_id}: {outcome.status}{reason}", markup=False)
            unfinished = unfinished or outcome.status != "finished"
            if outcome.status == "stopped":
                break
    if unfinished:
        raise typer.Exit(1)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep's YAML file.", show_default=False)],
    set_: Set = None,
    workers: Workers = None,
    storage: Storage = None,
    address: Address = None,
    concurrent: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Runs at once; default: as many as the cluster holds."),
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
    from seal_ray.analysis.run import analysing_sweep
    from seal_ray.analysis.scores import widen_results
    from seal_ray.sweeps.file import load_sweep
    from seal_ray.sweeps.leaderboard import meanings, notes, to_other_table, to_table
    from seal_ray.sweeps.results import prepare_sweep, problems, totals, track_results, write_results
    from seal_ray.sweeps.tune import run_sweep

    runs = prepare_sweep(load_sweep(file, overrides(set_, workers, storage), plugin or []))
    run_sweep(
        runs,
        out,
        share=share,
        address=address,
        concurrent=concurrent,
        in_process=in_process,
        while_training=analysing_sweep(runs, out, concurrent=concurrent, in_process=in_process),
    )
    lines, found = write_results(runs)
    widen_results(runs, lines, found)
    track_results(runs, {"leaderboard": lines})
    out.print(to_table(lines, runs.sweep.name))
    if (other := to_other_table(lines)) is not None:
        out.print()
        out.print(other)
    folder = runs.folder
    if isinstance(folder, Path) and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    for line in [*meanings(lines), *notes(lines), f"{totals(found)}; {folder}/results.md"]:
        out.print(f"  {line}", markup=False)
    if list(problems(found)):
        raise typer.Exit(1)


@app.command()
def validate(file: File, set_: Set = None, plugin: Plugins = None) -> None:
    """Check a YAML file of a run, a sweep or an evaluation; says what is wrong and where."""
    from seal_ray.analysis.evaluations import is_evaluation, load_evaluation
    from seal_ray.sweeps.file import is_sweep, load_sweep

    if is_evaluation(file):
        if set_ or plugin:
            raise ConfigError("--set and --plugin: are for runs and sweeps, not for evaluations")
        found_targets = load_evaluation(file).targets
        out.print(f"{file}: valid ({', '.join(found_targets)})", markup=False)
        return
    if is_sweep(file):
        found = load_sweep(file, set_ or [], plugin or [])
        epochs = sum(run.job.recipe.budget.epochs for run in found.runs)
        out.print(f"{file}: valid ({len(found.runs)} runs, {epochs:,} epochs)", markup=False)
        return
    job = _load(file, set_, None, None, plugin)
    out.print(f"{file}: valid ({job.recipe.method.name}, {job.recipe.budget.epochs} epochs)", markup=False)


@app.command()
def plan(
    file: File,
    set_: Set = None,
    workers: Workers = None,
    storage: Storage = None,
    measure: Annotated[bool, typer.Option("--measure", help="Sweep: time a few steps, to estimate.")] = False,
    images_per_second: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="Sweep: the speed to estimate with."),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Show what a run or a sweep would do: phases, rates, steps, storage; what is shared.

    Where the data is not prepared but its folder is called as a known data set, its size is assumed.
    """
    from seal_ray.cli.tables import plan_table
    from seal_ray.data.assumed import open_or_assume
    from seal_ray.distributed.launch import prepare_job
    from seal_ray.sweeps.file import is_sweep
    from seal_ray.sweeps.plan import make_plan

    if is_sweep(file):
        _plan_sweep(file, overrides(set_, workers, storage), plugin, images_per_second, measure)
        return
    if images_per_second or measure:
        raise ConfigError("--measure and --images-per-second: are for sweeps; this is the file of a run")
    planned = prepare_job(_load(file, set_, workers, storage, plugin), open_data=open_or_assume)
    for part in plan_table(make_plan(planned), planned):
        out.print(part)


@app.command()
def runs(
    storage: Annotated[str, typer.Option(help="Folder that runs are stored in.")] = "runs",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    trusted: Trust = False,
) -> None:
    """List runs: where they are, how well they do, and how far each ascent raised the loss."""
    from seal_ray.cli.tables import runs_table
    from seal_ray.runs.summary import list_runs

    trust_plugins(storage_path(storage), trusted)
    found = list_runs(storage_path(storage))
    if json_:
        print(json.dumps(found, indent=1))
    else:
        out.print(runs_table(found, storage))


@app.command()
def analyze(
    target: Target,
    what: Annotated[
        str, typer.Option(help="Any of `seal-ray analyses`, or of plugin files, separated by commas.")
    ] = "depth,curvature,similarity,calibration",
    moments: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Any of init, forgotten, ascended, relearned; default: all that were kept."),
    ] = None,
    preset: Annotated[str, typer.Option(help="quick, for a look, or paper, for a publication.")] = "quick",
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="Override a setting, such as depth.k=10. Repeatable."),
    ] = None,
    workers: Annotated[Optional[int], typer.Option(min=1, help="Actors at once.")] = None,  # noqa: UP045
    storage: Storage = None,
    address: Address = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="In this process, without Ray.")] = False,
    plugin: Plugins = None,
    trusted: Trust = False,
) -> None:
    """Analyse moments: prediction depth, curvature, similarity, calibration. Again: only what is missing."""
    from seal_ray.analysis.run import analyze as analyze_target
    from seal_ray.analysis.run import summary
    from seal_ray.analysis.tasks import load_settings

    trust_plugins(target, trusted)
    outcomes = analyze_target(
        target,
        out,
        what=what.split(","),
        moments=moments.split(",") if moments else None,
        settings=load_settings(preset, set_ or []),
        storage=storage,
        workers=workers,
        address=address,
        in_process=in_process,
        plugins=plugin or [],
    )
    out.print(summary(outcomes), markup=False)
    if any(outcome.status in ("failed", "stopped") for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def sync(
    storage: Annotated[str, typer.Option(help="Folder that runs are stored in.")] = "runs",
    run: Annotated[Optional[str], typer.Option(help="Only the run of this id.")] = None,  # noqa: UP045
    project: Annotated[Optional[str], typer.Option(help="Another W&B project than the run's.")] = None,  # noqa: UP045
    entity: Annotated[Optional[str], typer.Option(help="Another W&B team than the run's.")] = None,  # noqa: UP045
    moments: Annotated[bool, typer.Option("--moments", help="Upload the files of moments too.")] = False,
    trusted: Trust = False,
) -> None:
    """Bring runs to W&B: of each run the epochs it lacks, from metrics.jsonl."""
    from seal_ray.tracking.sync import sync_storage

    trust_plugins(storage_path(storage), trusted)
    for one in sync_storage(storage_path(storage), project=project, entity=entity, run=run, moments=moments):
        done = f"skipped, {one.skipped}" if one.skipped else f"{one.uploaded} of {one.epochs} epochs uploaded"
        out.print(f"{one.run_id}: {done}", markup=False)


@app.command()
def clean(
    storage: Annotated[str, typer.Option(help="Folder that runs are stored in.")] = "runs",
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


@app.command()
def export(
    run: Annotated[
        Any,
        typer.Argument(parser=storage_path, metavar="RUN", help="A run's folder.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; its card goes beside it.")],
    moment: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Such as g002-relearned; default: the last one relearned."),
    ] = None,
    format_: Annotated[FileFormat, typer.Option("--format", help="What to write.")] = FileFormat.safetensors,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    trusted: Trust = False,
) -> None:
    """Write a moment's weights so that torchvision and timm load them, or as ONNX, with a card beside it."""
    from seal_ray.runs.export import export as export_moment

    trust_plugins(run, trusted)
    done = export_moment(run, output, moment=moment, file_format=format_.value, force=force)
    top1 = "" if done.top1 is None else f", top1 {done.top1:.1f} %"
    out.print(f"{done.path}: {done.run_id} {done.moment}{top1}; card {done.card}", markup=False)


@app.command()
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


def _plan_sweep(
    file: Path,
    assignments: list[str],
    plugins: list[Path] | None,
    images_per_second: float | None,
    measure: bool,
) -> None:
    from seal_ray.cli.tables import sweep_plan_table
    from seal_ray.data.assumed import open_or_assume
    from seal_ray.sweeps.file import load_sweep
    from seal_ray.sweeps.results import prepare_sweep
    from seal_ray.sweeps.sweep_plan import measured_speed, plan_sweep

    runs = prepare_sweep(load_sweep(file, assignments, plugins or []), open_or_assume)
    speed = measured_speed(runs) if measure else images_per_second
    for part in sweep_plan_table(plan_sweep(runs, speed), runs):
        out.print(part)


def _load(
    file: Path,
    given: list[str] | None,
    workers: int | None,
    storage: str | None,
    plugins: list[Path] | None,
) -> Any:
    from seal_ray.recipe import load_job

    return load_job(file, overrides(given, workers, storage), plugins or [])


def main() -> None:
    """Run the command line; exit 2 for an error that the user can mend."""
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {message}", file=sys.stderr)
    say_what_is_loaded()
    try:
        app()
    except SealRayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
