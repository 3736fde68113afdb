"""`seal-ray submit` and `seal-ray jobs`: the command line of jobs on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from seal_ray.cli.options import Plugins, Set, Storage, WorkersOption, out, overrides, show
from seal_ray.storage.paths import storage_path

jobs_app = typer.Typer(help="List, watch and stop the jobs of a Ray cluster.")

Dashboard = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's dashboard, such as http://HEAD:8265. Its token is taken from RAY_AUTH_TOKEN, "
        "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.",
        show_default=False,
    ),
]
Id = Annotated[str, typer.Argument(help="A submission id, or a job's name for its last attempt.")]
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}
"""How `submit` reads its command line: options of the analyses are theirs to judge."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def submit(
    context: typer.Context,
    kind: Annotated[
        Literal["train", "sweep", "analyze", "transfer", "fewshot"],
        typer.Argument(help="What to do with it.", show_default=False),
    ],
    file: Annotated[
        Any,  # a path, or one in S3
        typer.Argument(
            parser=storage_path,
            metavar="FILE",
            help="YAML file of a run or a sweep; analyses also take a folder on the cluster, or in S3.",
            show_default=False,
        ),
    ],
    address: Dashboard,
    set_: Set = None,
    workers: WorkersOption = None,
    storage: Storage = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="sweep: runs at once.")] = None,
    share: Annotated[bool, typer.Option("--share/--no-share", help="sweep: train common work once.")] = True,
    follow: Annotated[bool, typer.Option("--follow", help="Show what the job prints until it ends.")] = False,
    plugin: Plugins = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable of the job's environment: NAME as it is set here, or NAME=VALUE. Repeatable."
        ),
    ] = None,
    env_file: Annotated[
        list[Path] | None, typer.Option(help="A file of such lines; # begins a comment. Repeatable.")
    ] = None,
) -> None:
    """Train or analyse on a Ray cluster, as a job. The same again: nothing while it runs, else it goes on.

    analyze, transfer and fewshot take the options of those commands as well, such as --what or --to.
    """
    from seal_ray import jobs
    from seal_ray.errors import ConfigError

    environment = jobs.job_environment(env or [], env_file or [])
    options = ["--concurrent", str(concurrent)] if concurrent else []
    options += [] if share else ["--no-share"]
    if options and kind != "sweep":
        raise ConfigError(f"--concurrent and --no-share: are for sweeps; this is {kind}")
    if kind in ("train", "sweep"):
        if context.args:
            raise ConfigError(f"{context.args[0]}: is no option of this; see `seal-ray submit --help`")
        if not isinstance(file, Path):
            raise ConfigError(f"{file}: YAML files are sent from here; copy it below the working directory")
        spec = jobs.training_spec(kind, file, overrides(set_, workers, storage), options, plugin or [])
    else:
        words = [*context.args, *(word for one in set_ or [] for word in ("--set", one))]
        words += [word for one in plugin or [] for word in ("--plugin", str(one))]
        words += ["--workers", str(workers)] if workers else []
        words += ["--storage", storage] if storage else []
        spec = jobs.analysis_spec(kind, file, _given(context, kind, [str(file), *words]))
    client = jobs.connect(address)
    job = jobs.submit(client, spec, note, environment)
    if not follow:
        note(f"to see what it prints: seal-ray jobs logs {job} --follow --address {address}")
    elif jobs.follow(client, job, pass_on) != "succeeded":
        raise typer.Exit(1)


def _given(context: typer.Context, kind: str, words: list[str]) -> dict[str, list[str]]:
    """The options of `seal-ray KIND` among words, each with its values; a usage error if it has none such."""
    commands: Any = context.find_root().command
    parsed = commands.commands[kind].make_context(kind, words)
    given = {}
    for parameter in parsed.command.get_params(parsed):
        source, value = parsed.get_parameter_source(parameter.name), parsed.params.get(parameter.name)
        if parameter.param_type_name == "option" and source.name == "COMMANDLINE":
            values = value if isinstance(value, list) else [] if value is True else [value]
            given[parameter.opts[0]] = [str(one) for one in values]
    return given


@jobs_app.callback(invoke_without_command=True)
def list_all(context: typer.Context, address: Dashboard = "", json_: Json = False) -> None:
    """List the jobs of a Ray cluster, with what each runs and how far it is."""
    if context.invoked_subcommand is not None:
        return
    from seal_ray.cli.tables import jobs_table
    from seal_ray.jobs import connect, list_jobs

    found = list_jobs(connect(address))
    show(found, json_, lambda: jobs_table(found, address))


@jobs_app.command()
def status(context: typer.Context, id_: Id, address: Dashboard = "", json_: Json = False) -> None:
    """Say how a job stands."""
    from seal_ray.jobs import connect, describe_job

    found = describe_job(connect(_asked(context, "address")), id_)
    lines = [f"{key:<8} {'-' if value is None else value}" for key, value in found.items()]
    show(found, _asked(context, "json_"), lambda: Text("\n".join(lines)))


@jobs_app.command()
def logs(
    context: typer.Context,
    id_: Id,
    address: Dashboard = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
) -> None:
    """Show what a job has printed."""
    from seal_ray import jobs

    client = jobs.connect(_asked(context, "address"))
    if follow:
        jobs.follow(client, id_, pass_on)
    else:
        pass_on(jobs.logs(client, id_))


@jobs_app.command()
def stop(
    context: typer.Context,
    id_: Id,
    address: Dashboard = "",
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the end of the epoch.")] = False,
) -> None:
    """Stop a job at its next epoch boundary and wait for that. Submitting it again goes on there."""
    from seal_ray import jobs

    client = jobs.connect(_asked(context, "address"))
    out.print(f"{id_}: {jobs.stop(client, id_, note, now=now)}", markup=False)


def _asked(context: typer.Context, option: str) -> Any:
    """An option of a command of `seal-ray jobs`, which may be given before its name as well as after it."""
    source = context.get_parameter_source(option)
    after = source is not None and source.name == "COMMANDLINE"
    given = context if after or context.parent is None else context.parent
    return given.params[option]


def note(text: str) -> None:
    """Print a line about a job."""
    out.print(text, markup=False)


def pass_on(text: str) -> None:
    """Pass on what a job prints, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()
