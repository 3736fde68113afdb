"""Analyses and evaluations: what is asked for of which runs, what is there already, and the rest computed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from seal_ray.analysis.compute import made_by
from seal_ray.analysis.evaluations import COMMANDS, Destination, Evaluation, find_destination
from seal_ray.analysis.figures import write_figures
from seal_ray.analysis.finetune import finetune, model_in
from seal_ray.analysis.moments import LAST, AnalysedRun, Moment, RunSet, find_runs, sweep_at, sweep_runs
from seal_ray.analysis.numbers import numbers_tables
from seal_ray.analysis.pool import Done, Working, compute_here, compute_on_ray
from seal_ray.analysis.scores import moments_table, weights_table, widen_results, write_scores
from seal_ray.analysis.scoring import Normalisation, score
from seal_ray.analysis.tasks import (
    EVALUATION_FORMAT,
    RESULTS,
    AnalysisSettings,
    Status,
    Task,
    TaskOutcome,
    TaskPlan,
    copy_result,
    plain,
    plan_analyses,
    plan_tasks,
    read_result_at,
)
from seal_ray.analysis.track import track
from seal_ray.config.plugin_files import given_files
from seal_ray.data.prepared import Dataset, open_dataset
from seal_ray.device import prepare_process
from seal_ray.distributed.launch import Planned, ray_session
from seal_ray.distributed.workers import check_resources
from seal_ray.errors import ConfigError, SealRayError
from seal_ray.plugins import PluginFile
from seal_ray.recipe import BUILT_IN_ANALYSES, Analyses, Job
from seal_ray.runs.export import Loaded, load_weights
from seal_ray.runs.folder import ENDED, Store
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath
from seal_ray.sweeps.leaderboard import notes, to_table
from seal_ray.sweeps.progress import clock
from seal_ray.sweeps.results import SweepRuns, track_results, write_results
from seal_ray.sweeps.tune import concurrency

ComputeTasks = Callable[[Sequence[Task]], Generator[Done | Working]]
"""Yields what is done, and what is being worked on while it waits."""
News = TaskOutcome | Working

STILL = 60.0
"""Seconds after which what is worked on is named again where there is no terminal."""
PAUSE = 5.0
"""Seconds between two looks for moments that have come."""
IMAGENET = Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's and timm's weights were trained with."""


def analyze_moments(
    path: AnyPath,
    rich: Console,
    *,
    what: Sequence[str] = BUILT_IN_ANALYSES,
    moments: Sequence[str] | None = None,
    settings: AnalysisSettings | None = None,
    storage: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    in_process: bool = False,
    plugins: Sequence[Path] = (),
) -> list[TaskOutcome]:
    """Analyse moments of the runs that `path` stands for (see `find_runs`); returns what became of each.

    what: names of analyses, of packages, of the plugin files of the runs, and of `plugins`, files which take
    the place of the runs' copies of the same name. moments: names, labels such as g002-relearned, or `last`,
    the last `relearned` of each run; None: all that were kept. Only what is missing is computed, by actors on
    the cluster at `address` or on a local one, or `in_process`; what is wrong with one moment or run fails
    alone. Ctrl-C keeps what is done. ConfigError, ClusterError and
    CheckpointError, before anything starts, for what cannot be asked.
    """
    check_placement(workers, address, in_process)
    run_set, files = find_runs(path, storage), given_files(plugins)
    session = contextlib.nullcontext() if in_process else ray_session(address, _printer(rich))
    outcomes = analyze_runs(
        run_set,
        rich,
        what,
        moments,
        settings,
        session=session,
        workers=workers,
        in_process=in_process,
        plugins=files,
    )
    _print_numbers(run_set, outcomes, rich)
    return outcomes


def _print_numbers(run_set: RunSet, outcomes: Sequence[TaskOutcome], rich: Console) -> None:
    if not any(outcome.status == "stopped" for outcome in outcomes):
        for table in numbers_tables(run_set, outcomes):
            rich.print(table)


def _printer(rich: Console) -> Callable[[str], None]:
    return functools.partial(rich.print, markup=False)


def check_placement(workers: int | None, address: str | None, in_process: bool) -> None:
    """ConfigError for options of Ray where it is not used."""
    if in_process and (address or workers):
        raise ConfigError("--in-process: works without Ray; leave out --address and --workers")


def analyze_runs(
    run_set: RunSet,
    rich: Console,
    what: Sequence[str],
    moments: Sequence[str] | None = None,
    settings: AnalysisSettings | None = None,
    *,
    session: AbstractContextManager[None] | None = None,
    workers: int | None = None,
    in_process: bool = False,
    plugins: Sequence[PluginFile] = (),
) -> list[TaskOutcome]:
    """The same of runs that were found. session: makes Ray ready, entered when there is work; None: it is."""
    planned = plan_analyses(run_set, what, moments, settings or AnalysisSettings(), plugins)
    outcomes = run_tasks(planned, rich, session, workers=workers, in_process=in_process)
    if not any(outcome.status == "stopped" for outcome in outcomes):
        _show_results(run_set, outcomes, rich, plugins)
    return outcomes


def run_tasks(
    planned: TaskPlan,
    rich: Console,
    session: AbstractContextManager[None] | None = None,
    *,
    workers: int | None = None,
    in_process: bool = False,
) -> list[TaskOutcome]:
    """Compute what is to be computed, and give each result to all moments whose it is too.

    What Ctrl-C keeps from being made is `stopped`, and said.
    """
    work: ComputeTasks = compute_here if in_process else lambda tasks: compute_on_ray(tasks, workers)
    outcomes = _outcomes(planned, rich, work, session or contextlib.nullcontext())
    if any(outcome.status == "stopped" for outcome in outcomes):
        rich.print("stopped; the same command goes on with what is left", markup=False)
    return outcomes


def summary(outcomes: Sequence[TaskOutcome]) -> str:
    """How many analyses became what, in words."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in get_args(Status) if counts[status])


def _show_results(
    run_set: RunSet, outcomes: Sequence[TaskOutcome], rich: Console, plugins: Sequence[PluginFile]
) -> None:
    """Figures beside the runs, and what is new to W&B."""
    analysed = new_results(run_set, outcomes)
    folder = run_set.folder / RESULTS
    if not analysed and list(folder.glob("*.svg")):
        return
    drawn = write_figures(run_set, plugins)
    if drawn:
        rich.print(f"figures: {folder}", markup=False)
    track(analysed, drawn)


def new_results(
    run_set: RunSet, outcomes: Sequence[TaskOutcome]
) -> list[tuple[AnalysedRun, list[tuple[Moment, str]]]]:
    """The runs of which something was found that was not there, and what, by moment and analysis."""
    new = {(one.run_id, one.moment, one.what) for one in outcomes if one.status in ("computed", "copied")}
    found = []
    for run in run_set.runs:
        moments = {moment.label: moment for moment in run.moments()}
        results = [(moments[label], what) for run_id, label, what in sorted(new) if run_id == run.run_id]
        if results:
            found.append((run, results))
    return found


def _outcomes(
    planned: TaskPlan,
    rich: Console,
    work: ComputeTasks,
    session: AbstractContextManager[None],
) -> list[TaskOutcome]:
    outcomes = [*planned.failed, *(TaskOutcome.of(task, "known") for task in planned.known)]

    def results() -> Iterator[News]:
        for task in planned.known:
            yield from _copied(task, planned.copies.get(task.key, ()))
        if planned.todo:
            with session:
                yield from _worked_off(planned, work)

    with _screen(planned, rich) as show, _remembered_interrupt(rich) as interrupted:
        for failed in planned.failed:
            show(failed)
        try:
            for news in results():
                show(news)
                if isinstance(news, TaskOutcome):
                    outcomes.append(news)
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            there = {(one.run_id, one.moment, one.what) for one in outcomes}
            left = [*planned.todo, *(task for same in planned.copies.values() for task in same)]
            stopped = (TaskOutcome.of(task, "stopped") for task in left)
            outcomes += [one for one in stopped if (one.run_id, one.moment, one.what) not in there]
    return outcomes


@contextlib.contextmanager
def _remembered_interrupt(rich: Console) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C has been pressed: to be asked again and again, because Python drops a KeyboardInterrupt
    that falls into a finaliser, of which Ray's handles have some.
    """
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if not pressed:
            rich.print("stopping: what is done stays; press Ctrl-C again to stop at once", markup=False)
        pressed = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _worked_off(planned: TaskPlan, work: ComputeTasks) -> Iterator[News]:
    """The outcomes of what is to do and of its copies, and what is being worked on while there is none; for a
    damaged moment its equal takes its place.
    """
    todo, copies = list(planned.todo), dict(planned.copies)
    while todo:
        instead = []
        with contextlib.closing(work(todo)) as finished:
            for done in finished:
                if isinstance(done, tuple):
                    yield done
                    continue
                status: Status = "failed" if done.reason else "computed"
                yield TaskOutcome.of(done.task, status, done.seconds, done.reason)
                same = copies.pop(done.task.key, ())
                if not done.reason:
                    yield from _copied(done.task, same)
                elif done.unreadable and same:
                    instead.append(same[0])
                    copies[done.task.key] = same[1:]
                else:
                    yield from (TaskOutcome.of(task, "failed", reason=done.reason) for task in same)
        todo = instead


def _copied(source: Task, same: Sequence[Task]) -> Iterator[TaskOutcome]:
    """The outcomes of giving a result to moments with the same weights."""
    for task in same:
        try:
            copy_result(source.moment, task.moment, task.what, task.head())
            whose = f"{source.moment.run.name} {source.moment.label}"
            yield TaskOutcome.of(task, "copied", reason=f"same weights as {whose}")
        except (SealRayError, OSError) as error:
            yield TaskOutcome.of(task, "failed", reason=str(error))


@contextlib.contextmanager
def _screen(planned: TaskPlan, rich: Console) -> Iterator[Callable[[News], None]]:
    """Shows what is done and what is being worked on: on a terminal bars, one for all and one for each piece,
    and a line for what failed; elsewhere a line for each outcome, and one a minute for what takes long.
    """
    total = planned.tasks - len(planned.known) + len(planned.failed)
    if planned.known:
        rich.print(f"{len(planned.known)} analyses are there already, {total} to go", markup=False)
    shown: _Bars | _Lines = _Bars(total, rich) if rich.is_terminal and total else _Lines(total, rich)
    with shown:
        yield shown.show


class _Lines:
    """What is shown where there is no terminal; while it is entered, also what is worked on for long."""

    def __init__(self, total: int, rich: Console) -> None:
        self._total, self._rich, self._count = total, rich, itertools.count(1)
        self._since: dict[str, float] = {}
        """When work on a piece was first seen."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._name, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def show(self, news: News) -> None:
        """Show what has become of a piece, or note which ones are being worked on."""
        if not isinstance(news, TaskOutcome):
            now = time.monotonic()
            self._since = {piece: self._since.get(piece, now) for piece in map(_piece, news)}
            return
        ended = f"{news.run_id} {news.moment} {news.what}"
        self._since = {piece: since for piece, since in self._since.items() if piece != ended}
        number = f"[{next(self._count):>{len(str(self._total))}}/{self._total}]"
        self._rich.print(f"{number} {_said(news)}", markup=False)

    def _name(self) -> None:
        """Name each piece again and again, from a thread, since this process may be the one that computes."""
        named: dict[str, float] = {}
        while not self._over.wait(min(STILL, 1.0)):
            now = time.monotonic()
            for piece, since in self._since.items():
                if now - max(since, named.get(piece, since)) >= STILL:
                    self._rich.print(f"still at {piece}, for {clock(now - since)}", markup=False)
                    named[piece] = now


class _Bars(Progress):
    """What is shown on a terminal. The bar of a piece is as full as the last one of its kind took seconds."""

    def __init__(self, total: int, rich: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[of]}"),
        )
        super().__init__(*columns, TimeElapsedColumn(), console=rich, transient=True)
        self._took: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._all = self.add_task("analysing", total=total, of=f"0 of {total}")

    def show(self, news: News) -> None:
        """Show what has become of a piece, or which ones are being worked on."""
        if isinstance(news, TaskOutcome):
            whole = self.tasks[0]
            self.update(self._all, advance=1, of=f"{whole.completed + 1:.0f} of {whole.total:.0f}")
            if news.status == "computed":
                self._took[news.what] = news.seconds
            if news.status == "failed":
                self.console.print(_said(news), markup=False)
            return
        at = {_piece(task): task for task in news}
        for piece in self._bars.keys() - at.keys():
            self.remove_task(self._bars.pop(piece))
        for piece in at.keys() - self._bars.keys():
            usual = self._took.get(at[piece].what)
            of = "" if usual is None else f"of some {usual:.0f} s"
            self._bars[piece] = self.add_task(piece, total=usual, of=of)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars as they are now, for each picture."""
        for task in self.tasks[1:]:
            task.completed = task.elapsed or 0.0
        return super().get_renderables()


def _piece(task: Task) -> str:
    """What a task is called while it is worked on."""
    return f"{task.moment.run.name} {task.moment.label} {task.what}"


def _said(outcome: TaskOutcome) -> str:
    """An outcome in a line."""
    where = " ".join(filter(None, (outcome.run_id, outcome.moment, outcome.what)))
    took = f" in {outcome.seconds:.1f} s" if outcome.status == "computed" else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{where}: {outcome.status}{took}{reason}"


@contextlib.contextmanager
def analysing_run(planned: Planned, rich: Console) -> Iterator[None]:
    """The analyses that a run asks for, while the block trains it or after it."""
    if not planned.job.analyses.what:
        yield
        return
    find = functools.partial(find_runs, planned.store.folder)
    with _analysing(find, planned.job, rich, runs=1):
        yield


@contextlib.contextmanager
def analysing_sweep(
    runs: SweepRuns, rich: Console, *, concurrent: int | None, in_process: bool
) -> Iterator[None]:
    """The analyses that a sweep asks for, while the block trains its runs or after it."""
    job = runs.planned[0].job
    if not job.analyses.what:
        yield
        return

    def find() -> RunSet:
        return sweep_runs(runs.anew())

    if in_process:
        yield
        analyse_after(find, job.analyses, rich, in_process=True)
        return
    with _analysing(find, job, rich, runs=concurrency(job, concurrent)):
        yield


def analyse_ended(runs: SweepRuns, rich: Console, *, address: str | None, in_process: bool) -> None:
    """The analyses that a sweep asks for whose runs have all ended; Ray is started where some are missing."""
    asked = runs.planned[0].job.analyses
    if asked.what:
        session = None if in_process else ray_session(address, _printer(rich))
        analyse_after(lambda: sweep_runs(runs.anew()), asked, rich, in_process=in_process, session=session)


def measure(planned: Planned, name: str) -> None:
    """Make the analysis of this name of a run's last moment in this process, as its job asks for it."""
    asked = planned.job.analyses
    settings = {name: asked.settings[name]} if name in asked.settings else {}
    alone = asked.model_copy(update={"what": (name,), "moments": (LAST,), "settings": settings})
    quiet = Console(file=io.StringIO())
    _analyze(find_runs(planned.store.folder), quiet, alone, in_process=True)


@contextlib.contextmanager
def _analysing(find: Callable[[], RunSet], job: Job, rich: Console, *, runs: int) -> Iterator[None]:
    """Analyse moments under a Ray that is initialised, while the block trains and what is left after it.

    find: the runs that have begun; `runs` of them train at a time. Where the cluster has no CPU (or GPU, if
    they use it) beyond those of their workers, all of it is done after the block. What fails is left to
    `seal-ray analyze`, and said.
    """
    import ray

    total, asked = ray.cluster_resources(), job.analyses
    free = int(total.get("GPU" if check_resources(job) else "CPU", 0)) - runs * job.placement.max_workers
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(find, asked, free, over), daemon=True)
    if free > 0:
        watcher.start()
    try:
        yield
    finally:
        over.set()
    if free > 0:
        watcher.join()
    analyse_after(find, asked, rich)


def analyse_after(find: Callable[[], RunSet], asked: Analyses, rich: Console, **options: Any) -> None:
    """What is left to analyse once training has ended; nothing, where it was only stopped.

    options: those of `analyze_runs`.
    """
    try:
        run_set = find()
        if any(_status(one) == "stopped" for one in run_set.runs):
            rich.print("analyses: the rest is made when training goes on", markup=False)
            return
        outcomes = _analyze(run_set, rich, asked, **options)
    except SealRayError as error:
        rich.print(f"analyses: none: {error}", markup=False)
        return
    _print_numbers(run_set, outcomes, rich)
    rich.print(f"analyses: {summary(outcomes)}", markup=False)


def _watch(find: Callable[[], RunSet], asked: Analyses, free: int, over: threading.Event) -> None:
    """Do what there is to do until it is over; the last call, after training, says what went wrong."""
    quiet = Console(file=io.StringIO())
    while not over.wait(PAUSE):
        with contextlib.suppress(SealRayError):
            run_set = find()
            if LAST in (asked.moments or ()):  # which is known of runs that have ended
                ended = tuple(one for one in run_set.runs if _status(one) in ENDED)
                run_set = replace(run_set, runs=ended)
            _analyze(run_set, quiet, asked, workers=free)


def _analyze(run_set: RunSet, rich: Console, asked: Analyses, **options: Any) -> list[TaskOutcome]:
    """What a job asks for."""
    settings = AnalysisSettings(asked.preset, fields=asked.settings)
    return analyze_runs(run_set, rich, asked.what, asked.moments, settings, **options)


def _status(run: AnalysedRun) -> str:
    return str(Store(run.folder, run.run_id).status().get("status", ""))


def score_moments(
    path: AnyPath,
    rich: Console,
    evaluation: Evaluation,
    *,
    data: Path = Path("data"),
    moments: Sequence[str] | None = None,
    storage: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    in_process: bool = False,
) -> list[TaskOutcome]:
    """Evaluate moments of the runs that `path` stands for (see `find_runs`) on each of the data sets.

    data: where the data sets lie that are called by name. moments: as of `analyze_moments`; None: `last`.
    Results are `<run>/analysis/<kind>-<target>-gGGG-<moment>.json`; only what is missing is computed, by
    actors on the cluster at `address` or on a local one, or `in_process`. Of a sweep's file the comparison is
    written and shown, of anything else the moments. What is
    wrong with one moment, run or data set fails alone. ConfigError, ClusterError and CheckpointError, before
    anything starts, for what cannot be asked.
    """
    check_placement(workers, address, in_process)
    runs = sweep_at(path, storage)
    run_set = find_runs(path, storage) if runs is None else sweep_runs(runs)
    destinations, unprepared = _destinations(evaluation, data)
    planned = plan_evaluations(run_set, evaluation, destinations, moments)
    planned = replace(planned, failed=(*unprepared, *planned.failed))
    session = None if in_process else ray_session(address, _printer(rich))
    outcomes = run_tasks(planned, rich, session, workers=workers, in_process=in_process)
    if any(outcome.status == "stopped" for outcome in outcomes):
        return outcomes
    found = new_results(run_set, outcomes)
    track(found, [], job_type=COMMANDS[evaluation.kind])
    if runs is None:
        rich.print(moments_table(run_set, outcomes, f"{run_set.name}: {evaluation.kind}"))
    elif lines := write_scores(runs, evaluation.kind):
        widen_results(runs, *write_results(runs))
        if found:
            track_results(runs, {f"{evaluation.kind}_leaderboard": lines})
        rich.print(to_table(lines, f"{runs.sweep.name}: {evaluation.kind}"))
        for note in dict.fromkeys(notes(lines)):
            rich.print(f"  {note}", markup=False)
    return outcomes


def plan_evaluations(
    run_set: RunSet,
    evaluation: Evaluation,
    destinations: Sequence[Destination],
    moments: Sequence[str] | None,
) -> TaskPlan:
    """A task for each moment and data set. ConfigError as `plan_analyses`."""
    settings = _settings(evaluation)
    by_name = {f"{evaluation.kind}-{one.label}": one for one in destinations}

    def make(what: str, moment: Moment, run: AnalysedRun, dataset: Dataset) -> Task:
        facts, model = run.facts(moment), run.job.recipe.model
        network = [model.arch, *model.arguments.values()]
        normalisation = Normalisation.of_dataset(dataset)
        key = _key(what, settings, by_name[what], normalisation, facts.weights_sha256, network)
        return Task(
            what, moment, key, facts.weights_sha256, facts.epochs, settings, destination=by_name[what]
        )

    return plan_tasks(run_set, list(by_name), moments or [LAST], make)


def score_weights(
    file: Path,
    arch: str,
    evaluation: Evaluation,
    rich: Console,
    *,
    data: Path = Path("data"),
    trained_on: str = "imagenet",
) -> list[TaskOutcome]:
    """Evaluate weights that somebody else trained as moments are, in this process.

    file, arch: as `seal_ray.runs.export.load_weights` reads them. trained_on: whose normalisation they
    expect, ImageNet's or that of a prepared data set, by its folder. Each result is written beside the file,
    as `<its stem>-<kind>-<target>.json`, and only made if it is not there. Raises as load_weights, and
    DataError for a data set `trained_on` that there is not.
    """
    loaded = load_weights(file, arch)
    destinations, outcomes = _destinations(evaluation, data)
    normalisation = IMAGENET
    if trained_on != IMAGENET.of:
        normalisation = Normalisation.of_dataset(open_dataset(trained_on))
    held = {}
    for one in destinations:
        what = f"{evaluation.kind}-{one.label}"
        try:
            found, seconds = _scored(file, loaded, what, one, normalisation, _settings(evaluation))
        except SealRayError as error:
            outcomes.append(TaskOutcome(file.name, what, "", "failed", 0.0, str(error)))
            continue
        held[what] = found
        status: Status = "known" if seconds is None else "computed"
        outcomes.append(TaskOutcome(file.name, what, "", status, seconds or 0.0))
    for outcome in outcomes:
        if outcome.status == "failed":
            rich.print(f"{outcome.what}: failed: {outcome.reason}", markup=False)
    rich.print(weights_table(held, f"{file.name}: {evaluation.kind}"))
    return outcomes


def _scored(
    file: Path,
    loaded: Loaded,
    what: str,
    destination: Destination,
    normalisation: Normalisation,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], float | None]:
    """The result beside a file, and the seconds that it took; None if it was there already."""
    key = _key(what, settings, destination, normalisation, loaded.weights_sha256, [loaded.arch])
    path = file.with_name(f"{file.stem}-{what}.json")
    there = read_result_at(path)
    if there and there.get("key") == key:
        return there, None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_process(device, deterministic=True, precision="fp32")
    started = time.perf_counter()
    if settings["kind"] == "finetune":
        folder = file.with_name(f"{file.stem}-{what}")
        source = model_in(file, loaded)
        computed = finetune(source, destination, normalisation, settings, device, folder)
    else:
        computed = score(loaded.network.to(device), destination, normalisation, settings, device)
    seconds = round(time.perf_counter() - started, 3)
    body = {
        "weights": file.name,
        "arch": loaded.arch,
        "weights_sha256": loaded.weights_sha256,
        "what": what,
        "key": key,
        "settings": dict(settings),
        **made_by(device, seconds),
        "result": plain(computed.numbers),
    }
    with saving(file.parent):
        write_durably(path, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())
    return body, seconds


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(mode="json", exclude={"targets"})


def _key(
    what: str,
    settings: Mapping[str, Any],
    destination: Destination,
    normalisation: Normalisation,
    weights_sha256: str,
    network: Sequence[str | int],
) -> str:
    """Says by what a result is determined; equal keys have equal results."""
    dataset = destination.dataset
    body = {
        "format": EVALUATION_FORMAT,
        "what": what,
        "settings": dict(settings),
        "data": [dataset.identity, dataset.encoding],
        "normalised_with": asdict(normalisation),
        "weights": weights_sha256,
        "network": list(network),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _destinations(evaluation: Evaluation, data: Path) -> tuple[list[Destination], list[TaskOutcome]]:
    """The data sets that are there, and for the others why not. ConfigError for two of one name."""
    found: dict[str, Destination] = {}
    failed = []
    for wanted in dict.fromkeys(evaluation.targets):
        try:
            one = find_destination(wanted, data)
        except SealRayError as error:
            failed.append(TaskOutcome("", f"{evaluation.kind}-{wanted}", "", "failed", 0.0, str(error)))
            continue
        if one.label in found:
            first = found[one.label].dataset.folder
            raise ConfigError(
                f"{first} and {one.dataset.folder} are both called {one.label}, as their results would be; "
                "evaluate them in storages of their own, or rename a folder"
            )
        found[one.label] = one
    return list(found.values()), failed
