"""`seal-ray analyze`, `transfer`, `fewshot`: what was learned; `seal-ray report`: all of it on one page."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from seal_ray import api
from seal_ray.cli.options import Address, InProcess, Plugins, Storage, TargetArgument, Trust, out, split_names
from seal_ray.errors import ConfigError

if TYPE_CHECKING:
    from seal_ray.analysis.tasks import TaskOutcome

EVALUATION_HELP = {
    "transfer": "Fit linear probes to frozen features of other data sets, or fine-tune. Again: only what is "
    "missing.",
    "fewshot": "Learn new classes from a few images each, on frozen features; every method gets the same "
    "episodes.",
}
Actors = Annotated[int | None, typer.Option("--workers", min=1, help="Actors at once.")]
MODES = ("probe", "finetune")
"""What `seal-ray transfer` does with another data set."""


def analyze(
    target: TargetArgument,
    what: Annotated[
        str | None,
        typer.Option(
            help="Any of `seal-ray analyses`, or of plugin files, separated by commas; default: the built-in."
        ),
    ] = None,
    moments: Annotated[
        str | None,
        typer.Option(
            help="Any of init, forgotten, ascended, relearned, averaged, labels such as g002-relearned, or "
            "last: the last relearned of each run; default: all that were kept."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="quick, for a look, or paper, for a publication.")] = "quick",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as depth.k=10. Repeatable.")
    ] = None,
    workers: Actors = None,
    storage: Storage = None,
    address: Address = None,
    in_process: InProcess = False,
    plugin: Plugins = None,
    trusted: Trust = False,
) -> None:
    """Analyse moments: prediction depth, curvature, similarity, calibration. Again: only what is missing."""
    outcomes = api.analyze(
        target,
        split_names(what),
        set_ or [],
        preset=preset,
        moments=split_names(moments),
        storage=storage,
        workers=workers,
        address=address,
        in_process=in_process,
        plugins=plugin or [],
        trust_plugins=trusted,
        console=out,
    )
    _say(outcomes)


def run_evaluation(
    context: typer.Context,
    target: TargetArgument = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="YAML that says what to do.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Where data sets lie that are called by name.")] = Path("data"),
    moments: Annotated[str | None, typer.Option(help="As of analyze; default: last.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights from elsewhere (.safetensors or .pth) instead of a run's.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="With --weights: the network, such as resnet50.")] = None,
    trained_on: Annotated[
        str,
        typer.Option(help="With --weights: imagenet, or the folder of the data set they were trained on."),
    ] = "imagenet",
    storage: Storage = None,
    workers: Actors = None,
    address: Address = None,
    in_process: InProcess = False,
    trusted: Trust = False,
) -> None:
    """What `seal-ray transfer` and `seal-ray fewshot` do; their further options are in `context.obj`."""
    run, targets = (api.transfer, "to") if context.command.name == "transfer" else (api.fewshot, "on")
    settings = {**context.obj, "shots": _numbers(context.obj.get("shots"))}
    outcomes = run(
        target,
        split_names(settings.pop(targets)),
        evaluation=evaluation,
        data=data,
        moments=split_names(moments),
        weights=weights,
        arch=arch,
        trained_on=trained_on,
        storage=storage,
        workers=workers,
        address=address,
        in_process=in_process,
        trust_plugins=trusted,
        console=out,
        **settings,
    )
    _say(outcomes)


class EvaluationCommand(TyperCommand):
    """A command with an option for each setting of its evaluations, which are looked up when it is called."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All options."""
        return [*_options(self.name), *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Call `run_evaluation` with the settings in `ctx.obj`."""
        ctx.obj = {one.name: ctx.params.pop(one.name) for one in _options(self.name)}
        return super().invoke(ctx)


@functools.cache
def _options(command: str) -> list[Any]:
    """The options of a command that the models of its evaluations make, one for each field but sections."""
    from seal_ray.analysis.evaluations import COMMANDS, EVALUATIONS, TARGET_OPTIONS, WHICH_DATA

    kinds = [kind for kind, its in COMMANDS.items() if its == command]
    models = [EVALUATIONS[kind] for kind in kinds]
    option = TARGET_OPTIONS[kinds[0]].removeprefix("--")
    options = {option: _option(option, str, f"{WHICH_DATA}; separated by commas")}
    if len(kinds) > 1:
        text = "fit a probe to frozen features, or train all weights"
        options["mode"] = _option("mode", Literal[MODES], text, MODES[0])
    for mode, model in zip(MODES, models, strict=False):
        for name, field in model.model_fields.items():
            default = field.default
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
            if name in options or not isinstance(default, (int, float, str)):
                continue
            only = "" if all(name in other.model_fields for other in models) else f"{mode}: "
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            plain: Any = field.annotation if field.annotation in (int, float) else str
            text = ", ".join([f"{only}{field.description}", *choices])
            options[name] = _option(name, plain, text, str(default))

    def read() -> None:
        """Has these options."""

    read.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    made = typer.Typer(add_completion=False)
    made.command()(read)
    return list(typer.main.get_command(made).params)


def _option(name: str, plain: Any, text: str, default: str | bool = False) -> inspect.Parameter:
    """An option that is None unless it is given. default: what then holds."""
    told = Annotated[plain | None, typer.Option(help=f"{text[0].upper()}{text[1:]}.", show_default=default)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=told)


def report(
    target: TargetArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: report.html beside the results."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="File to write the runs to as well, a row each, for statistics elsewhere."),
    ] = None,
    storage: Storage = None,
    trusted: Trust = False,
) -> None:
    """Write one HTML page that needs nothing else: leaderboard, curves, analyses, how to repeat it."""
    path, study = api.report(target, output, csv=csv, storage=storage, trust_plugins=trusted)
    from seal_ray.cli.tables import size

    runs = f"{len(study.runs)} run{'' if len(study.runs) == 1 else 's'}"
    out.print(f"{path}: {runs} of {study.name}, {size(path.stat().st_size)}", markup=False)
    if csv is not None:
        out.print(f"{csv}: a row for each", markup=False)


def _say(outcomes: Sequence[TaskOutcome]) -> None:
    from seal_ray.analysis.run import summary

    out.print(summary(outcomes), markup=False)
    if any(outcome.status in ("failed", "stopped") for outcome in outcomes):
        raise typer.Exit(1)


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(one) for one in text.split(",")]
    except ValueError:
        raise ConfigError(f"--shots {text}: are whole numbers, such as 5,20,50") from None
