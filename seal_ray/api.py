"""What one does with recipes and runs, each in one call: the functions of `import seal_ray`.

The command line calls these. What a user can mend is a SealRayError. console: where progress is shown, by
default standard output; `rich.console.Console(quiet=True)` shows nothing. plugins: files of code that are
loaded first, as `plugins:` in a YAML. trust_plugins: run the plugin files that runs in an object store have
brought along. address: a running Ray cluster, or "auto"; None: Ray is started on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.storage.paths import AnyPath, storage_path

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]
    from rich.console import Console
    from torch import nn

    from seal_ray.analysis.evaluations import EvaluationKind
    from seal_ray.analysis.tasks import TaskOutcome
    from seal_ray.data.images import Images
    from seal_ray.phases.schedule import Row
    from seal_ray.recipe import Job, Placement, Recipe
    from seal_ray.reports.study import Study
    from seal_ray.runs.folder import Store
    from seal_ray.sweeps.leaderboard import Line, RunResult
    from seal_ray.training.loop import EpochResult
    from seal_ray.training.world import World


@dataclass(frozen=True, repr=False)
class StoredRun:
    """A run as its folder has it, which is read when asked, so also while it trains."""

    folder: AnyPath
    job: Job

    def __repr__(self) -> str:
        """The run's id and how it stands."""
        return f"<run {self.id}: {self.status}>"

    @property
    def id(self) -> str:
        """`<method>-s<seed>-<10 hex digits>`."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """What the run computes."""
        return self.job.recipe

    @property
    def status(self) -> str:
        """One of `seal_ray.runs.summary.STATUSES`, or new or damaged."""
        from seal_ray.runs.summary import summarise

        return str(summarise(self.folder, self.job)["status"])

    @property
    def rows(self) -> list[Row]:
        """The metrics, a mapping an epoch; docs/guide.md has fields and units. CheckpointError if damaged."""
        from seal_ray.runs.folder import Store

        return Store(self.folder, self.id).rows()

    @property
    def moments(self) -> tuple[str, ...]:
        """The labels of the moments that were kept, such as `g002-relearned`, in the order of training."""
        return tuple(moment.label for moment in self._moments())

    def results(self, what: str) -> dict[str, dict[str, Any]]:
        """What an analysis found, by moment. what: such as `depth`, `transfer-cub200`, `fewshot-cub200`."""
        from seal_ray.analysis.tasks import read_result

        held = {moment.label: read_result(moment, what) for moment in self._moments()}
        return {label: found["result"] for label, found in held.items() if found}

    def to_pandas(self) -> DataFrame:
        """The metrics as a data frame, one row an epoch. ConfigError without pandas."""
        return _pandas().DataFrame(self.rows)

    def network(self, moment: str | None = None) -> nn.Module:
        """The network at a moment, by default the last relearned one; in eval mode, float32, on the CPU.

        It takes images (N, 3, H, W) normalised with the data set's mean and standard deviation. ConfigError
        for a moment that was not kept, CheckpointError for a damaged one.
        """
        from seal_ray.runs.export import read_network

        return read_network(self.folder, moment)

    def _moments(self) -> list[Any]:
        from seal_ray.analysis.moments import AnalysedRun

        return AnalysedRun(self.folder, self.job, self.id).moments()


Target = StoredRun | str | AnyPath
"""A run, its folder, a storage folder, a sweep's YAML, or the folder of a sweep's results."""


@dataclass(frozen=True)
class TrainingOutcome:
    """How training a run ended: `finished`, `stopped`, `diverged` or `failed`, and why."""

    run: StoredRun
    status: str
    reason: str = ""


@dataclass(frozen=True, repr=False)
class Leaderboard:
    """The settings of a sweep compared, a line for each over its seeds.

    folder: where results.* lie. search: how one stands, in words.
    """

    name: str
    lines: tuple[Line, ...]
    runs: tuple[RunResult, ...]
    folder: AnyPath
    search: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The `lines` of results.json, a plain mapping for each setting: per cent, intervals of 95 %."""
        from seal_ray.sweeps.leaderboard import to_json

        rows: list[dict[str, Any]] = to_json(self.name, self.lines, ())["lines"]
        return rows

    def to_markdown(self) -> str:
        """The table as in results.md, before other data sets have been judged on."""
        from seal_ray.sweeps.leaderboard import to_markdown

        return to_markdown(self.lines)

    def to_pandas(self) -> DataFrame:
        """The table as in results.csv, numbers unrounded. ConfigError without pandas."""
        from seal_ray.sweeps.leaderboard import to_csv

        return _pandas().read_csv(io.StringIO(to_csv(self.lines)), keep_default_na=False, na_values=[""])

    __repr__ = _repr_markdown_ = to_markdown  # on a terminal and in a notebook


def load(run: Target, *, trust_plugins: bool = False) -> StoredRun:
    """The run in a folder. CheckpointError when it is no run's, ConfigError for a damaged job.yaml."""
    from seal_ray.recipe import load_job

    folder = _place(run, trust_plugins)
    if not (folder / "job.yaml").is_file():
        raise CheckpointError(f"{folder}: is no run's folder, it has no job.yaml; see `seal-ray runs`")
    return StoredRun(folder.resolve(), load_job(folder / "job.yaml"))


def fit(
    recipe: Recipe,
    images: Images | None = None,
    *,
    storage: str | AnyPath | None = None,
    store: Store | None = None,
    world: World | None = None,
    placement: Placement | None = None,
) -> Iterator[EpochResult]:
    """Train in this process, without Ray, and yield each epoch; see `training.loop.fit`.

    placement: by default `Placement(loader="torch")`, which needs no FFCV, as `Placement()` does; what it
    says of processes, storage and tracking is for `train`. storage: a folder or s3://bucket/path; without
    it (and store) nothing is saved. There the run gets the folder that `seal-ray train` would give it,
    begins after generations that others have trained, and goes on where it stands. Raises as loop.fit,
    and ClusterError where the run is being trained already.
    """
    from seal_ray.training import loop

    if storage is None:
        yield from loop.fit(recipe, images, store=store, world=world, placement=placement)
        return
    if images or store or world:
        raise ConfigError("fit: storage is for the data at recipe.data.path; leave images, store, world out")
    from seal_ray.data.images import Images
    from seal_ray.distributed.launch import begin, prepare_job
    from seal_ray.recipe import Job, Placement, Tracking
    from seal_ray.runs.folder import ENDED
    from seal_ray.storage.lease import hold_lease, owns

    asked = placement or Placement(loader="torch")
    here = {"storage": str(storage), "workers": 1, "tracking": Tracking(wandb="off")}
    placement = Placement.model_validate({**dict(asked), **here})
    planned = prepare_job(Job(name=recipe.method.name, recipe=recipe, placement=placement))
    if planned.store.status().get("status") in ENDED:
        return
    with hold_lease(planned.store.folder) as token:
        begin(planned, lambda text: None)
        images = Images.from_dataset(planned.dataset, loader=placement.loader)
        owned = replace(planned.store, owned=functools.partial(owns, planned.store.folder, token))
        with owned.failing():
            yield from loop.fit(planned.job.recipe, images, store=owned, placement=placement)


def train(
    job: Job | str | Path,
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[Path] = (),
    address: str | None = None,
    console: Console | None = None,
) -> TrainingOutcome:
    """Train a run on Ray Train, with the analyses that it asks for; a finished one trains nothing.

    job: a YAML file, after overrides such as "recipe.seed=1", or a Job. What cannot be trained is an error
    before anything starts; what goes wrong later is in the outcome.
    """
    from seal_ray.recipe import Job, load_job

    job = job if isinstance(job, Job) else load_job(job, overrides, plugins)
    with contextlib.closing(train_each([job], address=address, console=console)) as outcomes:
        return next(outcomes)


def train_each(
    jobs: Sequence[Job], *, address: str | None = None, console: Console | None = None
) -> Generator[TrainingOutcome]:
    """Train runs in turn on one Ray, as `train`, once all of them have been checked."""
    from seal_ray.distributed.launch import check_this_machine, launch, offline, prepare_job, ray_session
    from seal_ray.runs.folder import ENDED
    from seal_ray.tracking.environment import falls_back

    console = _shown(console)
    planned = [prepare_job(job) for job in jobs]
    for one in planned:
        if one.store.status().get("status") not in ENDED:
            check_this_machine(one.job, address)
    note = functools.partial(console.print, markup=False)
    asked = dict.fromkeys(one.job.placement.tracking for one in planned)
    silent = [tracking for tracking in asked if falls_back(tracking, note)]
    planned = [offline(one) if one.job.placement.tracking in silent else one for one in planned]
    from seal_ray.sweeps.plan import cautions

    for text in cautions(planned):
        note(f"warning: {text}")
    from seal_ray.tracking.terminal import RunProgress

    with ray_session(address, note):
        from seal_ray.analysis.run import analysing_run

        for one in planned:
            with analysing_run(one, console):
                outcome = launch(one, RunProgress(console))
            yield TrainingOutcome(StoredRun(one.store.folder, one.job), **outcome)


def sweep(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[Path] = (),
    address: str | None = None,
    concurrent: int | None = None,
    share: bool = True,
    in_process: bool = False,
    console: Console | None = None,
) -> Leaderboard:
    """Train what is left of a sweep on Ray Tune, with its analyses, and compare its settings.

    concurrent: runs at once; None: as many as the cluster holds. share: train what runs have in common once.
    in_process: one run after the other in this process, without Ray. What cannot be trained is an error
    before anything starts; what goes wrong with a run later is in `runs` of the leaderboard.
    """
    from seal_ray.sweeps.file import load_sweep
    from seal_ray.sweeps.results import prepare_sweep, track_results, write_results
    from seal_ray.tracking.environment import falls_back

    console, asked = _shown(console), load_sweep(file, overrides, plugins)
    note = functools.partial(console.print, markup=False)
    note(f"{file}: {asked.size}")
    if falls_back(asked.runs[0].job.placement.tracking, note):
        asked = load_sweep(file, [*overrides, "tracking.wandb=offline"], plugins)
    runs = prepare_sweep(asked)
    from seal_ray.analysis.run import analyse_ended, analysing_sweep, measure
    from seal_ray.analysis.scores import widen_results
    from seal_ray.sweeps.plan import cautions
    from seal_ray.sweeps.tune import run_sweep

    if runs.search is not None:
        runs.search.measure = measure
    for text in cautions(runs.planned, runs.corners):
        note(f"warning: {text}")
    trained = run_sweep(
        runs,
        console,
        share=share,
        address=address,
        concurrent=concurrent,
        in_process=in_process,
        while_training=analysing_sweep(runs, console, concurrent=concurrent, in_process=in_process),
    )
    if not trained:
        analyse_ended(runs, console, address=address, in_process=in_process)
    runs = runs.anew()
    lines, found = write_results(runs)
    widen_results(runs, lines, found)
    track_results(runs, {"leaderboard": lines})
    said = runs.search.summary() if runs.search else ""
    return Leaderboard(runs.sweep.name, lines, tuple(found), runs.folder, said)


def analyze(
    target: Target,
    what: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    *,
    preset: str = "quick",
    trust_plugins: bool = False,
    console: Console | None = None,
    **options: Any,
) -> list[TaskOutcome]:
    """Analyse kept moments, computing only what is missing; `StoredRun.results` has what was found.

    what: such as ["depth"]; None: the built-in ones. overrides: of settings, such as "depth.k=10". preset:
    `quick` or `paper`. options: those of `seal_ray.analysis.run.analyze_moments`.
    """
    console, place = _shown(console), _place(target, trust_plugins)
    console.print(f"{place}: looking for moments", markup=False)
    from seal_ray.analysis import run
    from seal_ray.analysis.tasks import load_settings

    asked = options if what is None else {"what": what, **options}
    return run.analyze_moments(place, console, settings=load_settings(preset, overrides), **asked)


def transfer(
    target: Target | None,
    to: Sequence[str] | None = None,
    *,
    mode: Literal["probe", "finetune"] | None = None,
    **options: Any,
) -> list[TaskOutcome]:
    """How well what was learned serves on other data sets: linear probes on frozen features, or fine-tuning.

    to: prepared folders, or names of `seal-ray data list`. options: those of `run_evaluation`.
    """
    from seal_ray.analysis.evaluations import transfer_kind

    return run_evaluation(target, transfer_kind(mode, options.get("evaluation")), to, **options)


def fewshot(target: Target | None, on: Sequence[str] | None = None, **options: Any) -> list[TaskOutcome]:
    """How well new classes are learned from a few images each, on frozen features; as `transfer`."""
    return run_evaluation(target, "fewshot", on, **options)


def run_evaluation(
    target: Target | None,
    kind: EvaluationKind,
    targets: Sequence[str] | None = None,
    *,
    evaluation: Path | None = None,
    data: str | Path = "data",
    moments: Sequence[str] | None = None,
    weights: Path | None = None,
    arch: str | None = None,
    trained_on: str = "imagenet",
    storage: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    in_process: bool = False,
    trust_plugins: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> list[TaskOutcome]:
    """Evaluate moments, or the weights of somebody else, on other data sets, computing only what is missing.

    evaluation: a YAML file, over which targets and settings (fields of `seal_ray.analysis.evaluations`) go.
    data: where the data sets lie that are called by name. moments, storage, workers, address, in_process: as
    of `seal_ray.analysis.run.score_moments`. weights, arch, trained_on: in place of a target, as of
    `seal_ray.analysis.run.score_weights`.
    """
    from seal_ray.analysis.evaluations import make_evaluation

    console, asked = (
        _shown(console),
        make_evaluation(kind, evaluation, targets=targets and list(targets), **settings),
    )
    where = {"storage": storage, "workers": workers, "address": address, "in_process": in_process}
    if (target is None) == (weights is None) or (weights is None) != (arch is None):
        raise ConfigError("give a run, a storage folder or a sweep; or --weights FILE with --arch NAME")
    if weights is not None and arch is not None:
        if moments or any(where.values()) or trust_plugins:
            raise ConfigError(
                "--weights: is judged in this process; --moments, --storage, --workers, --address, "
                "--in-process and --trust-plugins are for runs"
            )
        from seal_ray.analysis import run

        return run.score_weights(weights, arch, asked, console, data=Path(data), trained_on=trained_on)
    assert target is not None
    if trained_on != "imagenet":
        raise ConfigError("--trained-on: is for --weights; a run knows what it was trained on")
    place = _place(target, trust_plugins)
    console.print(f"{place}: looking for moments", markup=False)
    from seal_ray.analysis import run

    return run.score_moments(place, console, asked, data=Path(data), moments=moments, **where)  # type: ignore[arg-type]


def report(
    target: Target,
    output: str | AnyPath | None = None,
    *,
    csv: str | AnyPath | None = None,
    storage: str | None = None,
    trust_plugins: bool = False,
) -> tuple[AnyPath, Study]:
    """Write a run, a sweep or a storage folder as one HTML page; returns where it is and what it says.

    output: by default report.html in the target's folder. csv: where to write the runs as a table, too, see
    `seal_ray.reports.rows`. storage: overrides that of a YAML file.
    """
    from seal_ray.reports.page import write_report
    from seal_ray.reports.rows import write_rows

    page = None if output is None else storage_path(output)
    written, study = write_report(_place(target, trust_plugins), page, storage)
    if csv is not None:
        write_rows(study, storage_path(csv))
    return written, study


def _place(target: Target, trust_plugins: bool) -> Any:
    """Where the target lies, once its plugin files may be loaded."""
    from seal_ray.config.plugin_files import trust

    place = target.folder if isinstance(target, StoredRun) else storage_path(target)
    if trust_plugins:
        trust(place)
    return place


def _shown(console: Console | None) -> Console:
    from rich.console import Console

    return console or Console(highlight=False, soft_wrap=True)


def _pandas() -> Any:
    try:
        return import_module("pandas")
    except ImportError:
        raise ConfigError("to_pandas needs pandas; pip install pandas") from None
