"""Which runs a page is of, what they are compared by, and what is known of them.

Runs are read from their folders into frozen values; nothing is computed but the leaderboard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from seal_ray.analysis.moments import AnalysedRun, Moment, RunSet, baseline_in, find_runs, sweep_runs
from seal_ray.analysis.scores import Column, columns_of
from seal_ray.analysis.tasks import RESULTS, read_result
from seal_ray.config.document import stored_in
from seal_ray.data.prepared import describe_dataset
from seal_ray.errors import CheckpointError, ConfigError, SealRayError
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job, Recipe, load_job
from seal_ray.reports.charts import shades
from seal_ray.runs.checkpoint import read_manifest
from seal_ray.runs.folder import Store
from seal_ray.runs.sharing import RunKeys, run_keys
from seal_ray.storage.paths import AnyPath, listed
from seal_ray.sweeps.cautions import caution, said_once
from seal_ray.sweeps.file import Setting, is_sweep, load_sweep
from seal_ray.sweeps.leaderboard import Line, RunResult, compared, leaderboard, notes
from seal_ray.sweeps.results import Member, images_per_epoch, prepare_sweep, run_result

StudyKind = Literal["run", "sweep", "storage"]


@dataclass(frozen=True)
class StudySource:
    """What a page is of. folder: where it goes by default.

    members: the runs in order; baseline: labels that differences are taken to, empty where there is none;
    unreadable: runs that cannot be told apart, and why; after_generations: as the sweep asks for;
    search: how it stands, in words.
    """

    name: str
    kind: StudyKind
    folder: AnyPath
    members: tuple[Member, ...]
    baseline: Setting
    unreadable: Mapping[str, str] = field(default_factory=dict)
    after_generations: tuple[int, ...] = ()
    search: str = ""


def find_source(path: Path, storage: str | None = None) -> StudySource:
    """The runs that a path stands for: a run's folder or YAML, a sweep's YAML or folder, a storage folder.

    storage: overrides placement.storage of a YAML file. Errors as `seal_ray.analysis.moments.find_runs`,
    and CheckpointError when no run can be read.
    """
    if path.is_file() and is_sweep(path):
        sweep = prepare_sweep(load_sweep(path, stored_in(storage)))
        sweep_runs(sweep)  # at least one run has begun
        asked = [(run.store.folder, run.job.recipe, sweep.settings[run.run_id]) for run in sweep.planned]
        return StudySource(
            name=sweep.sweep.name,
            kind="sweep",
            folder=sweep.folder,
            members=tuple(_members(asked)),
            baseline=dict(sweep.sweep.baseline),
            after_generations=sweep.sweep.after_generations,
            search=sweep.search.summary() if sweep.search else "",
        )
    run_set = find_runs(path, storage)
    if path.is_dir() and not (path / "job.yaml").is_file() and (path / "results.json").is_file():
        return _of_sweep_folder(run_set)
    return _of_runs(run_set)


def _of_sweep_folder(run_set: RunSet) -> StudySource:
    """A sweep by the results.json in its folder, which `find_runs` could read."""
    held = json.loads((run_set.folder / "results.json").read_bytes())
    storage = run_set.folder.parent.parent
    order = [line["setting"] for line in held["lines"]]
    try:
        runs = sorted(held["runs"], key=lambda run: (order.index(run["setting"]), run["seed"]))
        members = [
            Member(storage / run["run_id"], int(run["seed"]), int(run["epochs"]), run["setting"])
            for run in runs
        ]
        # A file of before there were such columns has none.
        after = tuple(int(many) for line in held["lines"][:1] for many in line.get("after", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{run_set.folder / 'results.json'}: damaged ({type(error).__name__}); `seal-ray sweep` "
            "writes it anew"
        ) from None
    return StudySource(
        name=run_set.name,
        kind="sweep",
        folder=run_set.folder,
        members=tuple(members),
        baseline=baseline_in(held),
        after_generations=after,
        search=str(held.get("search", "")),
    )


def _of_runs(run_set: RunSet) -> StudySource:
    """Runs without a sweep: their settings are what their recipes differ in, the baseline plain training."""
    if not run_set.runs:
        raise CheckpointError(
            f"{run_set.folder}: no run in it can be read:\n  " + "\n  ".join(run_set.unreadable.values())
        )
    recipes = [run.job.recipe for run in run_set.runs]
    settings = list(settings_of(recipes))
    folders = [run.folder for run in run_set.runs]
    members = list(_members(zip(folders, recipes, settings, strict=True)))
    # By setting in the order of their labels, plain training first.
    members.sort(key=lambda one: (one.setting["method"] != "normal", tuple(one.setting.values()), one.seed))
    several = len({tuple(one.setting.items()) for one in members}) > 1
    plain = {"method": "normal"} if several and any(s["method"] == "normal" for s in settings) else {}
    _refuse_doubles(members, run_set)
    kind: StudyKind = "run" if len(members) == 1 and members[0].folder == run_set.folder else "storage"
    return StudySource(run_set.name, kind, run_set.folder, tuple(members), plain, run_set.unreadable)


def _members(runs: Iterable[tuple[AnyPath, Recipe, Setting]]) -> Iterator[Member]:
    for folder, recipe, setting in runs:
        yield Member(folder, recipe.seed, recipe.budget.epochs, setting)


def settings_of(recipes: Sequence[Recipe]) -> Iterator[Setting]:
    """A label for each recipe on each axis: `method`, and every other field in which they differ.

    The method's label holds those of its fields in which runs of that method differ. The seed is no axis.
    """
    flat = [dict(flat_fields(recipe)) for recipe in recipes]
    for one in flat:
        del one["seed"]
    varying = {key for key in flat[0] if not key.startswith("method.") and _varies(flat, key)}
    for one in flat:
        same = [other for other in flat if other["method.name"] == one["method.name"]]
        own = [key for key in one if key.startswith("method.") and _varies(same, key)]
        fields = ", ".join(f"{key.removeprefix('method.')}={one[key]}" for key in own)
        method = one["method.name"] + (f"({fields})" if fields else "")
        yield {"method": method, **{key: one[key] for key in one if key in varying}}


def flat_fields(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every field of a recipe by its dotted path, as text."""
    yield from _flat("", recipe.model_dump(mode="json"))


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _flat(f"{path}.{key}" if path else key, held)
    elif isinstance(value, bool) or value is None:
        yield path, {True: "true", False: "false", None: "null"}[value]
    else:
        yield path, f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _varies(flat: Sequence[Mapping[str, str]], key: str) -> bool:
    return len({one.get(key) for one in flat}) > 1


def _refuse_doubles(members: Sequence[Member], run_set: RunSet) -> None:
    """ConfigError for two runs of one setting and seed: they would count as two seeds."""
    seen: dict[Any, Member] = {}
    for one in members:
        before = seen.setdefault((tuple(one.setting.items()), one.seed), one)
        if before is not one:
            raise ConfigError(
                f"{run_set.folder}: {before.folder.name} and {one.folder.name} have the same recipe, but "
                "their data sets differ; report on one of them, or on the sweep that they belong to"
            )


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
    val_images: int = 0  # of that data set
    caution: str = ""  # where next to nothing is forgotten by its recipe, as far as the data set is there

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

    shade: its place among the settings of its colour; stopped: see `stopped_early`.
    """

    index: int
    family: int
    shade: int
    name: str
    line: Line
    runs: tuple[RunFacts, ...]
    stopped: int | None = None

    @property
    def top1(self) -> dict[int, float]:
        """Seed -> top-1 (%) of its finished runs."""
        return {run.result.seed: run.result.top1 for run in self.runs if run.result.top1 is not None}

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

    def rival(self, setting: SettingFacts) -> SettingFacts | None:
        """The setting that differences of another are taken to."""
        if setting.stopped is not None:
            return self.settings[setting.stopped]
        labels = {**setting.line.setting, **self.baseline}
        return next((one for one in self.settings if one is not setting and one.line.setting == labels), None)


def read_study(source: StudySource) -> Study:
    """Read the runs of a source. What is damaged is a fact too, and raises nothing."""
    runs = [read_run(member) for member in source.members]
    results = [run.result for run in runs]
    lines = leaderboard(results, source.baseline, source.after_generations)
    # Where every setting is its own baseline there is none to compare with.
    baseline = source.baseline if any(not line.is_baseline for line in lines) else {}
    jobs = {run.folder: run.job for run in runs if run.job is not None}
    recipes = [
        next((run.job.recipe for run in runs if run.job and run.result.setting == line.setting), None)
        for line in lines
    ]
    stopped = stopped_early(lines, recipes) if baseline else {}
    lines = against_longer(lines, results, stopped)
    axes = _varying([one.setting for one in lines])
    names = _names(lines, axes, stopped)
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
            stopped=stopped.get(i),
        )
        for i, line in enumerate(lines)
    )
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
        notes=(*notes(lines), *_cautions(settings), *([source.search] if source.search else [])),
        unreadable=source.unreadable,
    )


def _cautions(settings: Iterable[SettingFacts]) -> Iterator[str]:
    """Of the settings that forget next to nothing."""
    return said_once(
        (one.name, one.job.recipe, next((run.caution for run in one.runs if run.caution), ""))
        for one in settings
        if one.job is not None
    )


def read_run(member: Member) -> RunFacts:
    """What the folder of a run says, if it is there."""
    store = Store(member.folder, member.folder.name)
    job, data, images, val_images, warned = None, "", 0, 0, ""
    with suppress(SealRayError):  # what is wrong with a job.yaml is said by its status
        job = load_job(member.folder / "job.yaml")
        dataset = describe_dataset(job.recipe.data.path)
        data, val_images = dataset.identity, dataset.splits["val"].count
        images = images_per_epoch(dataset, job.recipe)
        warned = caution(job.recipe, images // job.recipe.batch_size)
    result, rows = run_result(member, job, images)
    job = None if result.status == "damaged" else job
    return RunFacts(
        result=result,
        folder=member.folder,
        job=job,
        rows=rows,
        moments=tuple(_moments(member.folder, job)) if job else (),
        warnings=tuple(store.warnings()),
        starts=tuple(store.starts()),
        data=data,
        val_images=val_images,
        caution=warned,
    )


def _moments(folder: AnyPath, job: Job) -> Iterator[MomentFacts]:
    """The moments whose manifests can be read, in the order in which the run reached them."""
    run = AnalysedRun(folder, job, "")
    files = [path.stem for path in listed(folder / RESULTS, "*.json")]
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


def _run_keys(runs: Sequence[RunFacts]) -> Iterator[RunKeys]:
    """The runs as the generation tree sees them, as far as they have recorded their generations."""
    for run in runs:
        known = Store(run.folder, run.id).generations()
        if known is not None and run.job is not None:
            yield run_keys(run.id, known.keys, run.job.recipe)


def _varying(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The axes on which settings differ, the method first."""
    axes = dict.fromkeys(axis for setting in settings for axis in setting)
    return tuple(axis for axis in sorted(axes, key=lambda axis: axis != "method") if _varies(settings, axis))


def _names(lines: Sequence[Line], axes: Sequence[str], stopped: Mapping[int, int]) -> list[str]:
    """Settings in words: their labels on the axes that vary; of a single one its method.

    Without the fields of a method where its name alone tells methods apart. Beside those stopped early, a
    budget that all others have in common is not said, and they are called by theirs: `normal 12`.
    """
    methods = {line.setting["method"] for line in lines if "method" in line.setting}
    short = {label: label.partition("(")[0] for label in methods}
    unlike = len(set(short.values())) == len(short)
    one_budget = len({line.epochs for i, line in enumerate(lines) if i not in stopped}) == 1
    hidden = {"budget.epochs"} & {*axes} if stopped and one_budget else set()
    said = [axis for axis in axes if axis not in hidden]
    names = []
    for i, line in enumerate(lines):
        setting = {**line.setting}
        if unlike and "method" in setting:
            setting["method"] = short[setting["method"]]
        labels = [setting.get(axis, "-") for axis in said] or [setting.get("method", "all")]
        names.append(" ".join([*labels, *([str(line.epochs)] if hidden and i in stopped else [])]))
    return names


def stopped_early(lines: Sequence[Line], recipes: Sequence[Recipe | None]) -> dict[int, int]:
    """The settings that are a baseline trained for fewer epochs, each with that baseline, by their places.

    They show what the baseline gains by ending sooner. Where others have as few epochs they are what those
    are compared with, and so none of these.
    """
    fields: dict[int, dict[str, str]] = {}
    for i, recipe in enumerate(recipes):
        if recipe is not None:
            held = dict(flat_fields(recipe))
            fields[i] = {key: held[key] for key in held if key not in ("seed", "budget.epochs")}
    found = {}
    for i, own in fields.items():
        longer = [j for j in fields if lines[j].is_baseline and fields[j] == own and j != i]
        longest = max(longer, key=lambda j: lines[j].epochs, default=i)
        if lines[longest].epochs > lines[i].epochs:
            found[i] = longest
    taken = {line.epochs for i, line in enumerate(lines) if i not in found}
    return {i: j for i, j in found.items() if lines[i].epochs not in taken}


def against_longer(
    lines: Sequence[Line], results: Sequence[RunResult], stopped: Mapping[int, int]
) -> tuple[Line, ...]:
    """The lines, those stopped early compared with their baselines."""

    def scores(line: Line) -> dict[int, float]:
        return {r.seed: r.top1 for r in results if r.setting == line.setting and r.top1 is not None}

    return tuple(
        replace(line, is_baseline=False, difference=compared(scores(line), scores(lines[stopped[i]])))
        if i in stopped
        else line
        for i, line in enumerate(lines)
    )


def memorised(study: Study) -> tuple[Line, ...]:
    """The lines of `train_memorised` in the last epochs of finished runs; none where no run noted it."""
    results = []
    for run in study.runs:
        last = run.rows[-1].get("train_memorised") if run.rows else None
        finished = run.result.top1 is not None and last is not None
        status = "finished" if finished else "not noted"
        results.append(replace(run.result, status=status, top1=last if finished else None))
    lines = leaderboard(results, study.baseline)
    stopped = {one.index: one.stopped for one in study.settings if one.stopped is not None}
    return against_longer(lines, results, stopped) if any(line.top1 for line in lines) else ()
