"""`seal-ray analyze`: what is asked for of which runs, what is there already, and the rest worked off."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seal_ray.analysis import BUILT_IN
from seal_ray.analysis.figures import write_figures
from seal_ray.analysis.moments import Moment, Subject, Target, find_target, sweep_target
from seal_ray.analysis.pool import Done, work_here, work_on_ray
from seal_ray.analysis.results import FOLDER, copy_result
from seal_ray.analysis.tasks import AnalysisSettings, Outcome, Piece, Plan, Status, plan
from seal_ray.analysis.track import track
from seal_ray.config.plugin_files import given_files
from seal_ray.distributed.launch import Planned, ray_session
from seal_ray.distributed.scaling import check_resources
from seal_ray.errors import ConfigError, SealRayError
from seal_ray.plugins import PluginFile
from seal_ray.recipe import Job
from seal_ray.runs.folder import Store
from seal_ray.storage.paths import AnyPath
from seal_ray.sweeps.results import SweepRuns
from seal_ray.sweeps.tune import concurrency

Work = Callable[[Sequence[Piece]], Generator[Done]]
Session = AbstractContextManager[None]

PAUSE = 5.0
"""Seconds between two looks for moments that have come."""


def analyze(
    path: AnyPath,
    rich: Console,
    *,
    what: Sequence[str] = BUILT_IN,
    moments: Sequence[str] | None = None,
    settings: AnalysisSettings | None = None,
    storage: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    in_process: bool = False,
    plugins: Sequence[Path] = (),
) -> list[Outcome]:
    """Analyse moments of the runs that `path` stands for (see `find_target`); returns what became of each.

    what: names of analyses, of packages, of the plugin files of the runs, and of `plugins`, files which take
    the place of the runs' copies of the same name. moments: names; None: all that were kept. Only what is
    missing is computed, by actors on the cluster at `address` or on a local one, or `in_process`; what is
    wrong with one moment or run fails alone. Ctrl-C keeps what is done. ConfigError, ClusterError and
    CheckpointError, before anything starts, for what cannot be asked.
    """
    check_placement(workers, address, in_process)
    target, files = find_target(path, storage), given_files(plugins)
    session = contextlib.nullcontext() if in_process else ray_session(address)
    return analyze_target(
        target,
        rich,
        what,
        moments,
        settings,
        session=session,
        workers=workers,
        in_process=in_process,
        plugins=files,
    )


def check_placement(workers: int | None, address: str | None, in_process: bool) -> None:
    """ConfigError for options of Ray where it is not used."""
    if in_process and (address or workers):
        raise ConfigError("--in-process: works without Ray; leave out --address and --workers")


def analyze_target(
    target: Target,
    rich: Console,
    what: Sequence[str],
    moments: Sequence[str] | None = None,
    settings: AnalysisSettings | None = None,
    *,
    session: Session | None = None,
    workers: int | None = None,
    in_process: bool = False,
    plugins: Sequence[PluginFile] = (),
) -> list[Outcome]:
    """The same of a target. session: what makes Ray ready, entered when there is work; None: it is."""
    planned = plan(target, what, moments, settings or AnalysisSettings(), plugins)
    outcomes = carry_out(planned, rich, session, workers=workers, in_process=in_process)
    if not any(outcome.status == "stopped" for outcome in outcomes):
        _show_results(target, outcomes, rich, plugins)
    return outcomes


def carry_out(
    planned: Plan,
    rich: Console,
    session: Session | None = None,
    *,
    workers: int | None = None,
    in_process: bool = False,
) -> list[Outcome]:
    """Compute what is to be computed, and give each result to all moments whose it is too.

    What Ctrl-C keeps from being made is `stopped`, and said.
    """
    work: Work = work_here if in_process else lambda pieces: work_on_ray(pieces, workers)
    outcomes = _outcomes(planned, rich, work, session or contextlib.nullcontext())
    if any(outcome.status == "stopped" for outcome in outcomes):
        rich.print("stopped; the same command goes on with what is left", markup=False)
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many analyses became what, in words."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in get_args(Status) if counts[status])


def _show_results(
    target: Target, outcomes: Sequence[Outcome], rich: Console, plugins: Sequence[PluginFile]
) -> None:
    """Figures beside the runs, and what is new to W&B."""
    analysed = new_results(target, outcomes)
    folder = target.folder / FOLDER
    if not analysed and list(folder.glob("*.svg")):
        return
    drawn = write_figures(target, plugins)
    if drawn:
        rich.print(f"figures: {folder}", markup=False)
    track(analysed, drawn)


def new_results(
    target: Target, outcomes: Sequence[Outcome]
) -> list[tuple[Subject, list[tuple[Moment, str]]]]:
    """The runs of which something was found that was not there, and what, by moment and analysis."""
    new = {(one.run_id, one.moment, one.what) for one in outcomes if one.status in ("computed", "copied")}
    found = []
    for subject in target.subjects:
        moments = {moment.label: moment for moment in subject.moments()}
        results = [(moments[label], what) for run, label, what in sorted(new) if run == subject.run_id]
        if results:
            found.append((subject, results))
    return found


def _outcomes(planned: Plan, rich: Console, work: Work, session: Session) -> list[Outcome]:
    outcomes = [*planned.failed, *(Outcome.of(piece, "known") for piece in planned.known)]

    def results() -> Iterator[Outcome]:
        for piece in planned.known:
            yield from _copied(piece, planned.copies.get(piece.key, ()))
        if planned.todo:
            with session:
                yield from _worked_off(planned, work)

    with _screen(planned, rich) as show, _remembered_interrupt() as interrupted:
        for failed in planned.failed:
            show(failed)
        try:
            for outcome in results():
                outcomes.append(outcome)
                show(outcome)
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            there = {(one.run_id, one.moment, one.what) for one in outcomes}
            left = [*planned.todo, *(piece for same in planned.copies.values() for piece in same)]
            stopped = (Outcome.of(piece, "stopped") for piece in left)
            outcomes += [one for one in stopped if (one.run_id, one.moment, one.what) not in there]
    return outcomes


@contextlib.contextmanager
def _remembered_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C has been pressed. Python drops a KeyboardInterrupt that falls into a finaliser, of which
    Ray's handles have some.
    """
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
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


def _worked_off(planned: Plan, work: Work) -> Iterator[Outcome]:
    """The outcomes of what is to do and of its copies; for a damaged moment its equal takes its place."""
    todo, copies = list(planned.todo), dict(planned.copies)
    while todo:
        instead = []
        with contextlib.closing(work(todo)) as finished:
            for done in finished:
                status: Status = "failed" if done.reason else "computed"
                yield Outcome.of(done.piece, status, done.seconds, done.reason)
                same = copies.pop(done.piece.key, ())
                if not done.reason:
                    yield from _copied(done.piece, same)
                elif done.unreadable and same:
                    instead.append(same[0])
                    copies[done.piece.key] = same[1:]
                else:
                    yield from (Outcome.of(piece, "failed", reason=done.reason) for piece in same)
        todo = instead


def _copied(source: Piece, same: Sequence[Piece]) -> Iterator[Outcome]:
    """The outcomes of giving a result to moments with the same weights."""
    for piece in same:
        try:
            copy_result(source.moment, piece.moment, piece.what, piece.head())
            whose = f"{source.moment.run.name} {source.moment.label}"
            yield Outcome.of(piece, "copied", reason=f"same weights as {whose}")
        except (SealRayError, OSError) as error:
            yield Outcome.of(piece, "failed", reason=str(error))


@contextlib.contextmanager
def _screen(planned: Plan, rich: Console) -> Iterator[Callable[[Outcome], None]]:
    """Shows each outcome: a bar on a terminal, with a line for what failed; a line each elsewhere."""
    total = planned.pieces - len(planned.known) + len(planned.failed)
    if planned.known:
        rich.print(f"{len(planned.known)} analyses are there already, {total} to go", markup=False)
    count = itertools.count(1)

    def line(outcome: Outcome) -> None:
        number = f"[{next(count):>{len(str(total))}}/{total}]"
        rich.print(f"{number} {_said(outcome)}", markup=False)

    if not rich.is_terminal or not total:
        yield line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=rich, transient=True) as progress:
        task = progress.add_task("analysing", total=total)

        def advance(outcome: Outcome) -> None:
            progress.update(task, advance=1, description=f"{outcome.moment} {outcome.what}")
            if outcome.status == "failed":
                rich.print(_said(outcome), markup=False)

        yield advance


def _said(outcome: Outcome) -> str:
    """An outcome in a line."""
    where = " ".join(filter(None, (outcome.run_id, outcome.moment, outcome.what)))
    took = f" in {outcome.seconds:.1f} s" if outcome.status == "computed" else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{where}: {outcome.status}{took}{reason}"


@contextlib.contextmanager
def analysing_run(planned: Planned, rich: Console) -> Iterator[None]:
    """The analyses that a run asks for, while the block trains it or after it."""
    if not planned.job.analyses:
        yield
        return
    find = functools.partial(find_target, planned.store.folder)
    with _analysing(find, planned.job, rich, runs=1):
        yield


@contextlib.contextmanager
def analysing_sweep(
    runs: SweepRuns, rich: Console, *, concurrent: int | None, in_process: bool
) -> Iterator[None]:
    """The analyses that a sweep asks for, while the block trains its runs or after it."""
    job = runs.planned[0].job
    if not job.analyses:
        yield
        return
    find = functools.partial(sweep_target, runs)
    if in_process:
        yield
        analyse_after(find, job.analyses, rich, in_process=True)
        return
    with _analysing(find, job, rich, runs=concurrency(job, concurrent)):
        yield


@contextlib.contextmanager
def _analysing(find: Callable[[], Target], job: Job, rich: Console, *, runs: int) -> Iterator[None]:
    """Analyse moments under a Ray that is initialised, while the block trains and what is left after it.

    find: the runs that have begun; `runs` of them train at a time. Where the cluster has no CPU (or GPU, if
    they use it) beyond those of their workers, all of it is done after the block. What fails is left to
    `seal-ray analyze`, and said.
    """
    import ray

    total, what = ray.cluster_resources(), job.analyses
    free = int(total.get("GPU" if check_resources(job) else "CPU", 0)) - runs * job.placement.max_workers
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(find, what, free, over), daemon=True)
    if free > 0:
        watcher.start()
    try:
        yield
    finally:
        over.set()
    if free > 0:
        watcher.join()
    analyse_after(find, what, rich)


def analyse_after(
    find: Callable[[], Target], what: Sequence[str], rich: Console, *, in_process: bool = False
) -> None:
    """What is left to analyse once training has ended; nothing, where it was only stopped."""
    try:
        target = find()
    except SealRayError as error:
        rich.print(f"analyses: none: {error}", markup=False)
        return
    if any(Store(one.folder, one.run_id).status().get("status") == "stopped" for one in target.subjects):
        rich.print("analyses: the rest is made when training goes on", markup=False)
        return
    outcomes = analyze_target(target, rich, what, in_process=in_process)
    rich.print(f"analyses: {summary(outcomes)}", markup=False)


def _watch(find: Callable[[], Target], what: Sequence[str], free: int, over: threading.Event) -> None:
    """Do what there is to do until it is over; the last call, after training, says what went wrong."""
    quiet = Console(file=io.StringIO())
    while not over.wait(PAUSE):
        with contextlib.suppress(SealRayError):
            analyze_target(find(), quiet, what, workers=free)
