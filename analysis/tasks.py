"""Tasks, one analysis of one moment each: what it depends on, which are left to be done, and their results.

A result is `<run>/analysis/<what>-gGGG-<moment>.json`, with arrays and a picture beside it. The .json is
written last, so that where it is, the others are; `numpy.load(path, allow_pickle=False)` reads the arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, create_model

from seal_ray.analysis.base import Analysis, Result
from seal_ray.analysis.evaluations import Destination
from seal_ray.analysis.moments import LAST, NAMES, AnalysedRun, Moment, RunSet
from seal_ray.config.document import Document, override
from seal_ray.config.messages import STRICT, parse
from seal_ray.config.plugin_files import from_names
from seal_ray.data.prepared import Dataset
from seal_ray.errors import CheckpointError, ConfigError, SealRayError
from seal_ray.plugins import PluginFile, source_digest, using
from seal_ray.recipe import ANALYSES, Job
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath

RESULTS = "analysis"
EVALUATION_FORMAT = 1
"""Raised whenever a change of this package changes what an evaluation finds."""
PRESETS = ("quick", "paper")
"""`quick` takes seconds a moment on a laptop; `paper` is for GPUs."""

Status = Literal["computed", "copied", "known", "failed", "stopped"]
"""What becomes of an analysis: `known` was there already, `copied` has the weights of another moment."""


@dataclass(frozen=True)
class AnalysisSettings:
    """How thoroughly moments are analysed: a preset, fields of analyses that take the place of its own, and
    overrides of both such as `depth.k=10`.
    """

    preset: str = "quick"
    overrides: tuple[str, ...] = ()
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, known: Mapping[str, type[Analysis]]) -> dict[str, BaseModel]:
        """The settings of each analysis by its name. ConfigError names each override that cannot be used."""
        sections: Any = {name: (_strict(kind.Settings), ...) for name, kind in known.items()}
        paper = self.preset == "paper"
        values = {name: (paper and kind.paper) or kind.Settings() for name, kind in known.items()}
        dumped = {name: value.model_dump(mode="json") for name, value in values.items()}
        for name, fields in self.fields.items():
            dumped[name] = {**dumped.get(name, {}), **fields}
        model = create_model("AnalysisSettings", __config__=STRICT, **sections)
        read = parse(override(Document(dumped, {(): f"preset {self.preset}"}), self.overrides), model)
        return {name: getattr(read, name) for name in known}

    def of_one(self, kind: type[Analysis]) -> BaseModel:
        """The settings of one analysis, whatever others are called."""
        own = [one for one in self.overrides if one.startswith(f"{kind.name}.")]
        fields = {name: held for name, held in self.fields.items() if name == kind.name}
        return replace(self, overrides=tuple(own), fields=fields).of({kind.name: kind})[kind.name]


def _strict(settings: type[BaseModel]) -> type[BaseModel]:
    """The same model, which refuses fields that it does not have, whatever its author set."""
    return type(settings.__name__, (settings,), {"__module__": __name__, "model_config": {"extra": "forbid"}})


def load_settings(preset: str, overrides: Sequence[str] = ()) -> AnalysisSettings:
    """A preset after overrides, which `plan_analyses` checks. ConfigError for a preset that there is not."""
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: is not one of {', '.join(PRESETS)}")
    return AnalysisSettings(preset, tuple(overrides))


def analyses_of(job: Job, given: Sequence[PluginFile] = ()) -> dict[str, type[Analysis]]:
    """The analyses of packages, of a run's own plugin files, and of those given, by name.

    A given file takes the place of the run's copy of its name.
    """
    names = {file.name for file in given}
    with using([*(file for file in from_names(job.plugins) if file.name not in names), *given]):
        return dict(ANALYSES)


@dataclass(frozen=True)
class Task:
    """One analysis of one moment, or, where that is None, its evaluation on another data set.

    key: says by what the result is determined; equal keys have equal results. others: the moments that it
    is compared with, by their role: `before`, `generation` (the previous `relearned`) and `baseline`.
    """

    what: str  # an analysis, or such as transfer-cub200
    moment: Moment
    key: str
    weights_sha256: str
    epochs: int  # trained by then
    settings: Mapping[str, Any]
    others: Mapping[str, Moment] = field(default_factory=dict)
    analysis: type[Analysis] | None = None
    destination: Destination | None = None

    @property
    def processes(self) -> int:
        """How many processes work on it at the same time."""
        return int(self.settings.get("shards", 1))

    def head(self) -> dict[str, Any]:
        """What of a result depends on whose it is, and what identifies it."""
        return {
            "run_id": self.moment.run.name,
            "moment": self.moment.name,
            "generation": self.moment.generation,
            "epochs": self.epochs,
            "what": self.what,
            "key": self.key,
            "weights_sha256": self.weights_sha256,
            "settings": dict(self.settings),
            "compared_with": {role: f"{other.run.name}/{other.label}" for role, other in self.others.items()},
            "copied_from": None,
        }


@dataclass(frozen=True)
class TaskOutcome:
    """What became of an analysis of a moment, or of a run of which nothing can be analysed."""

    run_id: str
    what: str
    moment: str  # its label; empty when it is about the whole run
    status: Status
    seconds: float = 0.0
    reason: str = ""

    @classmethod
    def of(cls, task: Task, status: Status, seconds: float = 0.0, reason: str = "") -> TaskOutcome:
        """The outcome of a task."""
        return cls(task.moment.run.name, task.what, task.moment.label, status, seconds, reason)


@dataclass(frozen=True)
class TaskPlan:
    """What is to be done. todo: to compute, in the order of runs and moments. copies: by the key of a task
    in todo, or of a known one, those that get its result. known: there already.
    """

    todo: tuple[Task, ...]
    copies: Mapping[str, tuple[Task, ...]]
    known: tuple[Task, ...]
    failed: tuple[TaskOutcome, ...]

    @property
    def tasks(self) -> int:
        """How many analyses were asked for and can be made."""
        return len(self.todo) + len(self.known) + sum(map(len, self.copies.values()))


def plan_analyses(
    run_set: RunSet,
    what: Sequence[str],
    moments: Sequence[str] | None,
    settings: AnalysisSettings,
    plugins: Sequence[PluginFile] = (),
) -> TaskPlan:
    """Which tasks there are, which are known, and which are the same work.

    moments: names, labels such as g002-relearned, or `last`; None: all. ConfigError for one that no run has,
    saying which there are, and for an analysis that there is not; what is wrong with one run or moment is a
    failed outcome.
    """
    known = {run.folder: analyses_of(run.job, plugins) for run in run_set.runs}
    every = {name: kind for of_run in known.values() for name, kind in of_run.items()}
    if unknown := [name for name in what if run_set.runs and name not in every]:
        raise ConfigError(f"--what {unknown[0]}: is not one of {', '.join(every)}")
    settings.of(every)
    kinds = {kind for of_run in known.values() for kind in of_run.values()}
    parsed = {kind: settings.of_one(kind) for kind in kinds}

    def make(name: str, moment: Moment, run: AnalysedRun, dataset: Dataset) -> Task:
        kind = known[run.folder].get(name)
        if kind is None:
            raise ConfigError(f"{name}: is in no plugin file of this run; name its file with --plugin")
        return task_of(kind, moment, run, dataset, parsed[kind])

    return plan_tasks(run_set, [name for name in every if name in what], moments, make)


def plan_tasks(
    run_set: RunSet,
    what: Sequence[str],
    moments: Sequence[str] | None,
    make: Callable[[str, Moment, AnalysedRun, Dataset], Task],
) -> TaskPlan:
    """The same of tasks of any kind, each made by `make`, which may raise SealRayErrors."""
    _check_moments(run_set, moments)
    failed = [TaskOutcome(run, "", "", "failed", 0.0, text) for run, text in run_set.unreadable.items()]
    tasks: list[Task] = []
    for run in run_set.runs:
        try:
            dataset = run.dataset()
        except SealRayError as error:
            failed.append(TaskOutcome(run.run_id, "", "", "failed", 0.0, str(error)))
            continue
        chosen = _chosen(run, moments)
        if not chosen:
            failed.append(TaskOutcome(run.run_id, "", "", "failed", 0.0, _lacks(run, moments)))
        for moment in chosen:
            for one in what:
                try:
                    tasks.append(make(one, moment, run, dataset))
                except SealRayError as error:
                    failed.append(TaskOutcome(run.run_id, one, moment.label, "failed", 0.0, str(error)))
    return _sorted_out(tasks, failed)


def _sorted_out(tasks: Sequence[Task], failed: Sequence[TaskOutcome]) -> TaskPlan:
    known = [task for task in tasks if _is_known(task)]
    there, done = {task.key for task in known}, {(task.what, task.moment) for task in known}
    todo: list[Task] = []
    copies: dict[str, list[Task]] = {}
    for task in tasks:
        if (task.what, task.moment) in done:
            continue
        if task.key in there:
            copies.setdefault(task.key, []).append(task)
        else:
            there.add(task.key)
            todo.append(task)
    return TaskPlan(
        tuple(todo), {key: tuple(same) for key, same in copies.items()}, tuple(known), tuple(failed)
    )


def _is_known(task: Task) -> bool:
    held = read_result(task.moment, task.what)
    return held is not None and held.get("key") == task.key


def task_of(
    kind: type[Analysis], moment: Moment, run: AnalysedRun, dataset: Dataset, settings: BaseModel
) -> Task:
    """An analysis of a moment, with its key. CheckpointError for a damaged manifest."""
    facts, recipe, section = run.facts(moment), run.job.recipe, settings.model_dump(mode="json")
    others = kind().compared_with(moment, run)
    held = [recipe.data.holdout] if recipe.data.holdout else []  # keys of before there was one stay
    body: dict[str, Any] = {
        "format": kind.version,
        "what": kind.name,
        "settings": {name: value for name, value in section.items() if name != "shards"},
        "weights": facts.weights_sha256,
        "others": {role: run.facts(other).weights_sha256 for role, other in others.items()},
        "data": [dataset.training_identity, recipe.data.per_class, recipe.data.label_noise, *held],
        "model": [recipe.model.arch, *recipe.model.arguments.values()],
        **kind().depends_on(moment, run, settings),
    }
    if (source := source_digest(kind)) is not None:
        body["source"] = source
    key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return Task(kind.name, moment, key, facts.weights_sha256, facts.epochs, section, others, kind)


def _chosen(run: AnalysedRun, names: Sequence[str] | None) -> list[Moment]:
    """The moments of a run that are called by name, `relearned`, by label, `g002-relearned`, or LAST."""
    kept = run.moments()
    last = [moment for moment in kept if moment.name == "relearned"][-1:] if LAST in (names or ()) else []
    return [one for one in kept if names is None or one.name in names or one.label in names or one in last]


def _check_moments(run_set: RunSet, moments: Sequence[str] | None) -> None:
    """ConfigError for a name or label that no run of the run_set has a moment of."""
    kept = {moment.name for run in run_set.runs for moment in run.moments()}
    there = [name for name in NAMES if name in kept]
    for name in moments or ():
        if not any(_chosen(run, [name]) for run in run_set.runs):
            said = f"there are {', '.join(there)}" if there else "no run keeps any"
            raise ConfigError(
                f"--moments {name}: no run in {run_set.folder} has such a moment; {said} "
                "(placement.keep.moments says which are kept)"
            )


def _lacks(run: AnalysedRun, moments: Sequence[str] | None) -> str:
    kept = [moment.label for moment in run.moments()]
    asked = f"no moment {' or '.join(moments)}" if moments else "no moments"
    return f"{run.folder}: has {asked}" + (f"; it has {', '.join(kept)}" if kept else " yet")


def result_path(moment: Moment, what: str, suffix: str = ".json") -> AnyPath:
    """Where a result lies."""
    return moment.run / RESULTS / f"{what}-{moment.label}{suffix}"


def read_result(moment: Moment, what: str) -> dict[str, Any] | None:
    """A result as it was written; None when there is none that can be read."""
    held = read_result_at(result_path(moment, what))
    return held if held and all(path.exists() for path in _files(moment, what, held)) else None


def read_result_at(path: AnyPath) -> dict[str, Any] | None:
    """The same of any file, whatever lies beside it."""
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return held if isinstance(held, dict) and isinstance(held.get("result"), dict) else None


def read_arrays(moment: Moment, what: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a result. CheckpointError when they are damaged."""
    path = result_path(moment, what, ".npz")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            return dict(held)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"{path}: damaged ({type(error).__name__}); remove it and analyse again"
        raise CheckpointError(problem) from None


def write_result(moment: Moment, what: str, head: Mapping[str, Any], result: Result) -> None:
    """Write a result, as a whole or not at all. CheckpointError when the storage does not take it."""
    files = {}
    if result.arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **dict(result.arrays))  # type: ignore[arg-type]
        files[".npz"] = buffer.getvalue()
    if result.picture is not None:
        files[".png"] = result.picture
    _write(moment, what, files, {**head, "files": sorted(files), "result": plain(result.numbers)})


def copy_result(source: Moment, moment: Moment, what: str, head: Mapping[str, Any]) -> None:
    """Give `moment` the result of `source`, whose weights are the same. CheckpointError as write_result."""
    held = read_result(source, what)
    if held is None:
        raise CheckpointError(f"{result_path(source, what)}: is gone; analyse again")
    files = {path.suffix: path.read_bytes() for path in _files(source, what, held)}
    _write(moment, what, files, {**held, **head, "copied_from": f"{source.run.name}/{source.label}"})


def _write(moment: Moment, what: str, files: Mapping[str, bytes], body: Mapping[str, Any]) -> None:
    with saving(moment.run):
        for suffix, data in files.items():
            write_durably(result_path(moment, what, suffix), data)
        text = json.dumps(body, indent=1, allow_nan=False) + "\n"
        write_durably(result_path(moment, what), text.encode())


def _files(moment: Moment, what: str, held: Mapping[str, Any]) -> list[AnyPath]:
    return [result_path(moment, what, suffix) for suffix in held.get("files", ())]


def plain(value: Any) -> Any:
    """Nested mappings and sequences as JSON holds them; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
