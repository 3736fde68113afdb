"""The command line: parse, one call, print. Errors that a user caused are printed without a traceback."""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import seal_ray
from seal_ray.cli import analyze, data, jobs, plugins, run, sweep
from seal_ray.cli.options import out, replaced, say_what_is_loaded
from seal_ray.errors import SealRayError

INTERRUPTED = {
    **dict.fromkeys(("train", "sweep"), "the same command goes on after the last committed epoch"),
    **dict.fromkeys(("analyze", "transfer", "fewshot"), "the same command goes on with what is left"),
    **dict.fromkeys(("report", "export", "check"), "nothing was written"),
    **dict.fromkeys(("submit", "jobs"), "what was submitted goes on, `seal-ray jobs` lists it"),
    "data": "nothing half-done is left, the same command begins anew",
    "sync": "the same command goes on with what is left",
}
"""What a command has left, and what becomes of it, when Ctrl-C has ended it."""
FIRST = ("doctor", "data")


class InOrder(TyperGroup):
    """Lists commands in the order of work; groups of commands would come last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Every command's words, with the home folder in place of `~` also after `--option=`."""
        return super().parse_args(ctx, [replaced(word) for word in args])

    def invoke(self, ctx: Any) -> Any:
        """Call the command; Ctrl-C ends it at once, unless it has made it mean something else."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            then = INTERRUPTED.get(ctx.invoked_subcommand)
            print("stopped at once" + (f"; {then}" if then else ""), file=sys.stderr)
            raise typer.Exit(130) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return sorted(super().list_commands(ctx), key=lambda name: name not in FIRST)


app = typer.Typer(
    cls=InOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Forget-and-relearn training: SEAL, LLF and rivals, on one machine or a Ray cluster.",
)
app.command()(run.doctor)
app.command()(run.validate)
app.command()(run.plan)
app.command()(run.train)
app.command()(sweep.sweep)
app.command()(run.runs)
app.command()(analyze.analyze)
for _name, _help in analyze.EVALUATION_HELP.items():
    app.command(_name, cls=analyze.EvaluationCommand, help=_help)(analyze.run_evaluation)
app.command()(analyze.report)
app.command()(run.export)
app.command()(run.clean)
app.command()(run.sync)
app.command()(run.dashboard)
for _name, (_registry, _help) in plugins.LISTS.items():
    app.command(_name, help=_help)(plugins.list_of(*_registry))
app.command()(plugins.networks)
app.command()(plugins.check)
app.command(context_settings=jobs.PASSED_ON)(jobs.submit)
app.add_typer(data.data_app, name="data")
app.add_typer(jobs.jobs_app, name="jobs")


def _say_version(asked: bool) -> None:
    if asked:
        out.print(f"seal-ray {seal_ray.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which this is.")
    ] = False,
) -> None:
    """What can be given before a command."""


def main() -> None:
    """Run the command line; exit 2 for an error that the user can mend."""
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {message}", file=sys.stderr)
    say_what_is_loaded()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files hold any bytes, as stderr has it
    try:
        app(prog_name="seal-ray")
    except SealRayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
