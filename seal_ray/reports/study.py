"""What is known of runs: read from their folders into frozen values, nothing computed but the leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from seal_ray.analysis.moments import AnalysedRun, Moment
from seal_ray.analysis.scores import Column, columns_of
from seal_ray.analysis.tasks import FOLDER, read_result
from seal_ray.data.staging import describe
from seal_ray.errors import CheckpointError, SealRayError
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job, load_job
from seal_ray.reports.charts import shades
from seal_ray.reports.source import Member, StudyKind, StudySource
from seal_ray.runs.checkpoint import read_manifest
from seal_ray.runs.folder import Store
from seal_ray.runs.sharing import RunKeys, run_keys
from seal_ray.runs.summary import generation_ends, summarise
from seal_ray.storage.paths import AnyPath, listed
from seal_ray.sweeps.file import Setting
from seal_ray.sweeps.leaderboard import Line, RunResult, leaderboard, notes

DRAWN = ("depth", "curvature", "calibration")
"""Built-in analyses that the page shows; of others it shows the scalars that lie in their results."""


@dataclass(frozen=True)
class MomentFacts:
    """A kept moment: the epochs trained by then, and what each analysis found, as its JSON file holds it."""

    moment: Moment
    epochs: int
    fingerprint: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunFacts:
    """A run: how it stands, its metrics and its moments. job is None where it has not begun or is damaged."""

    result: RunResult
    folder: AnyPath
    job: Job | None
    rows: tuple[Row, ...]
    moments: tuple[MomentFacts, ...]
    warnings: tuple[str, ...]
    starts: tuple[int, ...]
    data: str  # identity of the data set that lies at its path; empty where there is none

    @property
    def id(self) -> str:
        """The run's identity."""
        return self.result.run_id

    @property
    def own_rows(self) -> tuple[Row, ...]:
        """The epochs that it trained itself."""
        return tuple(row for row in self.rows if row["trained_by"] == self.id)


@dataclass(frozen=True)
class SettingFacts:
    """A setting over its seeds. index: its place on the page; family: that of its method, which is toggled.

    shade: its place among the settings of its colour.
    """

    index: int
    family: int
    shade: int
    name: str
    line: Line
    runs: tuple[RunFacts, ...]

    @property
    def job(self) -> Job | None:
        """The job of its first run that has one."""
        return next((run.job for run in self.runs if run.job is not None), None)


@dataclass(frozen=True)
class Study:
    """All that a page says. axes: those in which settings differ; families: methods, in the page's order."""

    name: str
    kind: StudyKind
    folder: AnyPath
    axes: tuple[str, ...]
    families: tuple[str, ...]
    settings: tuple[SettingFacts, ...]
    baseline: Setting
    columns: tuple[Column, ...]
    run_keys: tuple[RunKeys, ...]
    notes: tuple[str, ...]
    unreadable: Mapping[str, str]

    @property
    def runs(self) -> tuple[RunFacts, ...]:
        """All runs, setting by setting."""
        return tuple(run for setting in self.settings for run in setting.runs)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The leaderboard."""
        return tuple(setting.line for setting in self.settings)


def read_study(source: StudySource) -> Study:
    """Read the runs of a source. What is damaged is a fact too, and raises nothing."""
    runs = [read_run(member) for member in source.members]
    results = [run.result for run in runs]
    lines = leaderboard(results, source.baseline, source.after_generations)
    # Where every setting is its own baseline there is none to compare with.
    baseline = source.baseline if any(not line.is_baseline for line in lines) else {}
    axes = _varying([one.setting for one in lines])
    names = [_name(line.setting, axes) for line in lines]
    methods = [
        line.setting["method"] if "method" in axes else name for line, name in zip(lines, names, strict=True)
    ]
    families = tuple(dict.fromkeys(methods))
    family = [families.index(method) for method in methods]
    shade = shades(family)
    settings = tuple(
        SettingFacts(
            index=i,
            family=family[i],
            shade=shade[i],
            name=names[i],
            line=line,
            runs=tuple(run for run in runs if run.result.setting == line.setting),
        )
        for i, line in enumerate(lines)
    )
    jobs = {run.folder: run.job for run in runs if run.job is not None}
    return Study(
        name=source.name,
        kind=source.kind,
        folder=source.folder,
        axes=axes,
        families=families,
        settings=settings,
        baseline=baseline,
        columns=columns_of(jobs, results, baseline),
        run_keys=tuple(_run_keys(runs)),
        notes=tuple(notes(lines)),
        unreadable=source.unreadable,
    )


def read_run(member: Member) -> RunFacts:
    """What the folder of a run says, if it is there."""
    store = Store(member.folder, member.folder.name)
    found = summarise(member.folder) if (member.folder / "job.yaml").exists() else None
    whole = found is not None and found["status"] != "damaged"
    job = load_job(member.folder / "job.yaml") if whole else None
    rows = tuple(store.rows()) if whole else ()
    own = sum(row["trained_by"] == store.run_id for row in rows)
    result = RunResult(
        run_id=store.run_id,
        setting=member.setting,
        seed=member.seed,
        status=found["status"] if found else "new",
        reason=found["reason"] if found else "",
        top1=found["top1"] if found and found["status"] == "finished" else None,
        best_top1=found["best_top1"] if found else None,
        epochs=member.epochs,
        epochs_trained=own,
        epochs_shared=len(rows) - own,
        images=0,  # the page shows epochs
        generation_top1=generation_ends(rows, job.recipe.budget.length) if job else (),
    )
    return RunFacts(
        result=result,
        folder=member.folder,
        job=job,
        rows=rows,
        moments=tuple(_moments(member.folder, job)) if job else (),
        warnings=tuple(store.warnings()),
        starts=tuple(store.starts()),
        data=_identity(job) if job else "",
    )


def _moments(folder: AnyPath, job: Job) -> Iterator[MomentFacts]:
    """The moments whose manifests can be read, in the order in which the run reached them."""
    run = AnalysedRun(folder, job, "")
    files = [path.stem for path in listed(folder / FOLDER, "*.json")]
    for moment in run.moments():
        with suppress(CheckpointError):
            fingerprint = read_manifest(moment.path)["fingerprint"]
            there = [name.removesuffix(f"-{moment.label}") for name in files if name.endswith(moment.label)]
            held = {what: read_result(moment, what) for what in (*DRAWN, *sorted({*there} - {*DRAWN}))}
            results = {
                what: one
                for what, one in held.items()
                if one is not None and (what in DRAWN or "scalars" in one)
            }
            yield MomentFacts(moment, run.facts(moment).epochs, fingerprint, results)


def _identity(job: Job) -> str:
    with suppress(SealRayError):
        return describe(job.recipe.data.path).identity
    return ""


def _run_keys(runs: Sequence[RunFacts]) -> Iterator[RunKeys]:
    """The runs as the generation tree sees them, as far as they have recorded their generations."""
    for run in runs:
        known = Store(run.folder, run.id).generations()
        if known is not None and run.job is not None:
            yield run_keys(run.id, known.keys, run.job.recipe)


def _varying(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The axes on which settings differ, the method first."""
    axes = dict.fromkeys(axis for setting in settings for axis in setting)
    return tuple(
        axis
        for axis in sorted(axes, key=lambda axis: axis != "method")
        if len({setting.get(axis) for setting in settings}) > 1
    )


def _name(setting: Setting, axes: Sequence[str]) -> str:
    """A setting in words: its labels on the axes that vary; of a single one its method."""
    return " ".join(setting.get(axis, "-") for axis in axes) or setting.get("method", "all")
