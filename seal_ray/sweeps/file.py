"""Sweeps: one YAML file -> the jobs of all its runs. Pure: no data, no cluster.

A sweep names a `base` run, `axes` (recipe fields and the values each takes) and a number of seeds. `grid`
crosses the axes, `zip` walks along them together, `random` draws `samples` settings, `list` has its
settings written out; a `search` suggests one after the other. What a run is called, its *setting*, is its
label on each axis. The values of an axis are a list, labelled by what they are, or a mapping of labels to
values; so are the settings of mode `list`, and a labelled one has that label alone.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, Strict, model_validator

from seal_ray.config.document import Document, Keys, at, check_kind, dotted, override, put, put_over, read
from seal_ray.config.messages import BOOLEANS, CONFIG_ERROR, STRICT, parse, refuse
from seal_ray.config.plugin_files import by_name, given_files, named_files
from seal_ray.config.run_file import base_of, read_base
from seal_ray.errors import ConfigError
from seal_ray.plugins import PluginFile, using
from seal_ray.recipe import Job, Recipe
from seal_ray.sweeps.draws import Draws, Random, every_choice, every_combination, is_distribution, sample

MAX_RUNS = 10_000
MAX_CORNERS = 256
"""Combinations of choices and ends of ranges that are checked before a search starts."""
NAME = r"[\w-][\w.-]{0,99}"
"""What a sweep may be called, since a folder is."""

Setting = Mapping[str, str]
"""A run's label on each axis."""


class EarlyStopping(BaseModel):
    """ASHA (arXiv 1810.05934): of the runs that reach a rung the best 1 / reduction_factor go on.

    A run is judged at the ends of generations only, when everything has been relearned, by val_top1. The
    rungs are at after_epochs x reduction_factor^k epochs, so that runs are compared at equal compute.
    """

    model_config = STRICT

    after_epochs: int = Field(ge=1, description="epochs before a run may be stopped: the first rung")
    reduction_factor: float = Field(default=3.0, gt=1, description="one in so many goes on")


class Search(BaseModel):
    """How settings are suggested, and by which number of theirs: its mean over the seeds.

    What is suggested depends on this file and on what has come of earlier suggestions alone. A run is stopped
    at the end of a generation, by the metric there: asha as by `EarlyStopping` with a reduction factor of 3;
    median below the median of the others' running means (Golovin et al., Vizier, KDD 2017).
    """

    model_config = STRICT

    algorithm: Literal["optuna", "random", "grid"] = Field(
        description="optuna: its tree-structured Parzen estimator; random: draws; grid: every combination"
    )
    samples: int | None = Field(
        default=None, ge=1, le=MAX_RUNS, description="settings to suggest; of a grid all"
    )
    metric: str = Field(
        default="val_top1",
        description="of a run's last epoch, or of an analysis of its last moment, such as calibration/ece",
    )
    goal: Literal["max", "min"] | None = Field(
        default=None, description="what is better; default: max, of val_loss min"
    )
    seeds: int = Field(default=1, ge=1, le=1000, description="runs of each setting, from recipe.seed on")
    sample_seed: int = Field(default=0, ge=0, le=2**32 - 1, description="from which suggestions are drawn")
    at_once: int = Field(
        default=4, ge=1, description="optuna: settings at once; the next one is suggested knowing all others"
    )
    stop: Literal["asha", "median", "none"] = Field(default="none", description="give up on bad runs")
    after_epochs: int | None = Field(
        default=None, ge=1, description="epochs before a run may be stopped; default: two generations"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if (self.samples is None) != (self.algorithm == "grid"):
            what = "a grid takes every combination; remove it" if self.samples else "say how many to suggest"
            problems.append(f"samples: {what}")
        if self.metric not in SCORES and self.goal is None:
            problems.append(
                f"goal: say whether a larger {self.metric} is better (max) or a smaller one (min)"
            )
        if "at_once" in self.model_fields_set and self.algorithm != "optuna":
            problems.append(f"at_once: {self.algorithm} does not wait for results; remove it")
        if self.stop == "none" and self.after_epochs is not None:
            problems.append("after_epochs: no run is stopped; remove it, or set stop")
        if self.stop != "none" and "/" in self.metric:
            problems.append(
                f"stop: {self.metric} is not known before a run has ended; use a metric of epochs"
            )
        refuse("Search", problems)
        return self

    @property
    def mode(self) -> str:
        """The goal, `max` or `min`."""
        return self.goal or SCORES[self.metric]


SCORES = {"val_top1": "max", "val_top5": "max", "val_loss": "min"}
"""The numbers of every evaluation, and what is better."""
NOT_OF_A_SEARCH = {
    "mode": "search.algorithm says how settings are made",
    "samples": "write search.samples",
    "sample_seed": "write search.sample_seed",
    "exclude": "remove it",
    "seeds": "write search.seeds",
    "baseline": "remove it",
    "early_stopping": "write search.stop",
}
"""Fields that a sweep with a search cannot have, and what to do instead."""


def _as_labels(value: object) -> object:
    """For validators: the value, which must be a mapping."""
    if value is None or isinstance(value, dict):
        return value
    given = value if isinstance(value, str) and re.fullmatch(NAME, value) else "normal"
    raise ConfigError(
        f"labels: must be axes with a value of each, such as {{method: {given}}}, not {value!r:.60}"
    )


class SweepFile(BaseModel):
    """The fields of a sweep file beside its base, which is a job's."""

    model_config = STRICT

    name: str = Field(min_length=1, description="what people call the sweep; default: the file's name")
    plugins: dict[str, str] = Field(
        default={}, description="files of code that its runs need, in the folder of this file or below"
    )
    base: str | None = Field(default=None, min_length=1, description="a run's YAML file, beside this one")
    recipe: dict[str, Any] = Field(default={}, description="recipe fields for all runs, over those of base")
    placement: dict[str, Any] = Field(default={}, description="placement fields, over those of base")
    tracking: dict[str, Any] = Field(default={}, description="short for placement.tracking")
    mode: Literal["grid", "zip", "random", "list"] = Field(default="grid", description="how axes combine")
    axes: dict[str, Any] | list[dict[str, Any]] = Field(
        description="recipe fields and their values; in mode list the settings themselves, or label: setting"
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=MAX_RUNS,
        description="mode random: settings to draw; one drawn again is the same",
    )
    sample_seed: int = Field(default=0, ge=0, description="mode random: which settings are drawn")
    exclude: list[Annotated[dict[str, Any], BeforeValidator(_as_labels), CONFIG_ERROR]] = Field(
        default=[], description="settings to leave out"
    )
    seeds: int = Field(default=1, ge=1, le=1000, description="runs of each setting, from recipe.seed on")
    baseline: Annotated[dict[str, Any] | None, BeforeValidator(_as_labels), CONFIG_ERROR] = Field(
        default=None, description="what differences are taken to"
    )
    after_generations: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)] = Field(
        default=(),
        description="leaderboard: also the accuracy at the end of so many generations, the first included",
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="give up on bad runs")
    search: Search | None = Field(
        default=None, description="suggest settings one after the other, by what came of earlier ones"
    )
    analyses: list[str] | dict[str, Any] | None = Field(
        default=None, description="as a run's, what to compute from moments; default: what base says"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        settings = self.axes.values() if isinstance(self.axes, dict) else self.axes
        listed = self.mode == "list" and all(isinstance(one, dict) for one in settings)
        problems = []
        if not re.fullmatch(NAME, self.name):
            problems.append(f"name: {self.name!r} cannot name a folder; use letters, digits, - and _")
        if not self.axes:
            problems.append(
                "axes: is empty; name a recipe field and its values, such as method: [normal, seal]"
            )
        if not listed and (self.mode == "list" or isinstance(self.axes, list)):
            wanted = "settings, a list or label: setting" if self.mode == "list" else "a mapping of axes"
            problems.append(f"axes: mode {self.mode} needs {wanted}")
        if self.mode == "random" and self.samples is None:
            problems.append("samples: mode random needs it: how many settings to draw")
        if len(set(self.after_generations)) < len(self.after_generations):
            problems.append("after_generations: has a number twice; keep one")
        for field in sorted({"samples", "sample_seed"} & self.model_fields_set):
            if self.mode != "random":
                problems.append(f"{field}: mode {self.mode} draws nothing; remove it, or set mode: random")
        for field, instead in NOT_OF_A_SEARCH.items() if self.search else ():
            if field in self.model_fields_set:
                problems.append(f"{field}: is not for a search; {instead}")
        refuse("SweepFile", problems)
        return self


def _is_conditional(held: Any) -> bool:
    """Whether an axis has values where others have certain ones only."""
    return isinstance(held, dict) and held.keys() == {"when", "values"}


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: what to train, and its label on each axis. Its seed is in the recipe."""

    job: Job
    setting: Setting


@dataclass(frozen=True)
class Space:
    """What a search may suggest. suggest: the runs of the setting that is drawn, one a seed.

    It raises ConfigError for a setting that cannot be trained. corners: a run each at choices and ends.
    """

    search: Search
    suggest: Callable[[Draws], tuple[SweepRun, ...]]
    corners: tuple[SweepRun, ...]


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, a setting's seeds next to each other; of a search those that need no results."""

    name: str
    runs: tuple[SweepRun, ...]
    baseline: Setting
    early_stopping: EarlyStopping | None
    after_generations: tuple[int, ...] = ()
    space: Space | None = None

    @property
    def most(self) -> tuple[int, int]:
        """How many runs and epochs there may be at most; of a sweep, how many there are."""
        epochs = [run.job.recipe.budget.epochs for run in self.runs]
        if self.space is None or self.space.search.samples is None:
            return len(self.runs), sum(epochs)
        runs = self.space.search.samples * self.space.search.seeds
        return runs, runs * max(run.job.recipe.budget.epochs for run in self.space.corners)

    @property
    def size(self) -> str:
        """The same in words."""
        runs, epochs = self.most
        bound = "at most " * (self.space is not None and self.space.search.samples is not None)
        return f"{bound}{runs:,} runs, {epochs:,} epochs"


@dataclass(frozen=True)
class _Value:
    """A value of an axis: its label and where it stands in the document that holds it."""

    label: str
    source: Document
    held: Keys


SETTING = "setting"
"""The one axis of settings that have labels."""
AS_IN_BASE = _Value("-", Document({}, {}), ())


def is_sweep(path: str | Path) -> bool:
    """Whether a YAML file is a sweep and not a run: it has axes. ConfigError when it cannot be read."""
    return "axes" in read(path).value


def load_sweep(path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()) -> Sweep:
    """The sweep in a YAML file, after overrides (`recipe.budget.epochs=8` is for all runs, `seeds=1`).

    plugins: as for `load_job`; those that base names come in, too. ConfigError lists every problem with its
    file:line: of the sweep, of its base, and of each run.
    """
    document = override(read(path), overrides)
    check_kind(document, path, "sweep")
    base, of_base = Document({}, {(): document.places[()]}), list[PluginFile]()
    if (place := base_of(document, path)) is not None:
        base, of_base = read_base(document, place, [Path(path).resolve()])
    files = [*named_files(document, path), *given_files(plugins), *of_base]
    with using(files):
        return _sweep(document, base, files, Path(path))


def _sweep(document: Document, base: Document, plugins: Sequence[PluginFile], path: Path) -> Sweep:
    """The sweep of a document and its base, with the plugin files in use."""
    value = {"name": path.stem, **document.value, "plugins": by_name(plugins)}
    document = Document(value, document.places)
    file = parse(document, SweepFile)
    base = _base(file, document, base, path)
    if file.search is not None:
        return _searched(file, file.search, document, base, plugins)
    for axis, held in file.axes.items() if isinstance(file.axes, dict) else ():
        if _is_conditional(held):
            raise _error(document, ("axes", axis), "`when` is for a search; here list the settings")
    settings = list(itertools.islice(_settings(file, document), MAX_RUNS + 1))
    if len(settings) > MAX_RUNS:
        raise _error(document, ("axes",), f"make more than {MAX_RUNS} settings; narrow them")
    _check_distinct(settings, document)
    kept = [one for one in settings if not any(_matches(rule, _labels(one)) for rule in file.exclude)]
    _check_rules(file, settings, document)
    if not kept:
        raise _error(document, ("exclude",), "leaves no run; remove a rule")
    if len(kept) * file.seeds > MAX_RUNS:
        problem = f"are more than {MAX_RUNS} runs; narrow them, or lower seeds"
        raise _error(document, ("axes",), f"{len(kept)} settings x {file.seeds} seeds {problem}")
    baseline = _baseline(file, [_labels(setting) for setting in kept], document)
    made = tuple(_runs(file, document, base, kept))
    _check_generations(file, made, document)
    return Sweep(file.name, made, baseline, file.early_stopping, file.after_generations)


def _searched(
    file: SweepFile, search: Search, document: Document, base: Document, plugins: Sequence[PluginFile]
) -> Sweep:
    """The sweep of a search. ConfigError for whatever is wrong with its space, at its choices and ends."""
    from seal_ray.sweeps.search import Suggestions, none_can_be_trained

    if (search.samples or 1) * search.seeds > MAX_RUNS:
        problem = f"{search.samples} settings x {search.seeds} seeds are more than {MAX_RUNS} runs; lower one"
        raise _error(document, ("search",), problem)
    seeded = file.model_copy(update={"seeds": search.seeds})

    def suggest(draws: Draws) -> tuple[SweepRun, ...]:
        with using(plugins):
            return tuple(_runs(seeded, document, base, [_suggested(file, document, draws)]))

    problems, known = dict[str, None](), list[SweepRun]()
    ends = search.algorithm != "grid"
    for corner in itertools.chain(itertools.islice(every_combination(ends), MAX_CORNERS), every_choice(ends)):
        try:
            known += suggest(corner)[:1]
        except ConfigError as error:
            problems |= dict.fromkeys(str(error).split("\n"))
    if problems:
        raise ConfigError("\n".join(problems))
    _check_metric(search, known[0].job, document)
    _check_generations(file, known, document)
    space = Space(search, suggest, tuple(known))
    first, settings = Suggestions(space), list[tuple[SweepRun, ...]]()
    runs = dict[Recipe, SweepRun]()
    while (made := first.next(lambda index: None if settings[index] else "failed")) is not None:
        settings.append(made)
        for run in made:
            runs.setdefault(run.job.recipe, run)
        if len(runs) > MAX_RUNS:
            raise _error(document, ("axes",), f"make more than {MAX_RUNS} runs; narrow them")
    if not runs:
        raise none_can_be_trained(first)
    return Sweep(file.name, tuple(runs.values()), {}, None, file.after_generations, space)


def _suggested(file: SweepFile, document: Document, draws: Draws) -> dict[str, _Value]:
    """A setting of a search; an axis whose condition does not hold is as in base."""
    setting: dict[str, _Value] = {}
    picked: dict[str, str] = {}
    for axis in map(str, file.axes):
        path: Keys = ("axes", axis)
        when: Mapping[str, Any] = {}
        held = at(document.value, path)
        if _is_conditional(held):
            path, when = (*path, "values"), _condition(axis, document, setting)
        if _matches(when, picked):
            setting[axis], picked[axis] = _drawn(axis, document, draws, path)
        else:
            setting[axis] = AS_IN_BASE
    return setting


def _condition(axis: str, document: Document, before: Mapping[str, _Value]) -> Mapping[str, Any]:
    """The condition of an axis. ConfigError unless it names values of axes before it."""
    path: Keys = ("axes", axis, "when")
    when = at(document.value, path)
    if not isinstance(when, dict) or not when:
        raise _error(document, path, "must be axis: value, or axis: a list of values")
    for other, wanted in when.items():
        if other not in before:
            raise _error(
                document, (*path, other), f"is no axis before this one ({', '.join(before) or 'none'})"
            )
        of_other: Keys = ("axes", other)
        if _is_conditional(at(document.value, of_other)):
            of_other = (*of_other, "values")
        if is_distribution(at(document.value, of_other)):
            raise _error(document, (*path, other), "is a range; a condition names values of a list")
        labels = [value.label for value in _values(other, document, of_other)]
        for label in map(_label, wanted if isinstance(wanted, list) else [wanted]):
            if label not in labels:
                problem = f"{label!r} is no value of that axis ({', '.join(labels)})"
                raise _error(document, (*path, other), problem)
    conditions: Mapping[str, Any] = when
    return conditions


def _check_metric(search: Search, job: Job, document: Document) -> None:
    """ConfigError for a number that runs will not have."""
    name, _, of_analysis = search.metric.partition("/")
    known = [*SCORES, *(f"val_{metric.name}" for metric in job.placement.metrics)]
    there = name in job.analyses.what if of_analysis else search.metric in known
    if not there:
        asked = ", ".join(f"{what}/..." for what in job.analyses.what)
        problem = f"{search.metric!r} is not among {', '.join(known)}{asked and ', ' + asked}"
        more = "; list its analysis in `analyses`" if of_analysis else ""
        raise _error(document, ("search", "metric"), problem + more)


def _base(file: SweepFile, document: Document, base: Document, path: Path) -> Document:
    """The document of a job: that of the base file, with the sweep's own sections over it."""
    if file.base is None and "recipe" not in document.value:
        raise ConfigError(f"{path}:1: has neither base nor recipe; add `base: RUN.yaml` or the recipe itself")
    value = {**base.value, "name": file.name, "plugins": file.plugins}
    base = Document(value, {**base.places, ("name",): str(path)})
    for section in ("recipe", "placement", "analyses"):
        if section in document.value:
            base = put_over(base, document, (section,))
    if "tracking" in document.value:
        base = put_over(base, document, ("tracking",), ("placement", "tracking"))
    return base


def _settings(file: SweepFile, document: Document) -> Iterator[dict[str, _Value]]:
    """The value on each axis of every setting, before exclusion; in mode random each one drawn once."""
    if file.mode == "list" and isinstance(file.axes, dict):
        for label in file.axes:
            yield {SETTING: _Value(_label(label), document, ("axes", label))}
        return
    if isinstance(file.axes, list):
        axes = list(dict.fromkeys(axis for setting in file.axes for axis in setting))
        for i, setting in enumerate(file.axes):
            values = [_Value(_label(held), document, ("axes", i, axis)) for axis, held in setting.items()]
            given = dict(zip(setting, values, strict=True))
            yield {axis: given.get(axis, AS_IN_BASE) for axis in axes}
        return
    if file.mode == "random":
        drawn = set()
        for index in range(file.samples or 0):
            draws = Random(np.random.default_rng([file.sample_seed, index]))
            setting = {axis: _drawn(axis, document, draws, ("axes", axis))[0] for axis in file.axes}
            labels = tuple(_labels(setting).values())
            if labels not in drawn:
                yield setting
            drawn.add(labels)
        return
    crossed = {axis: _values(axis, document, ("axes", axis)) for axis in file.axes}
    if file.mode == "zip":
        if len({len(values) for values in crossed.values()}) > 1:
            lengths = ", ".join(f"{_label(axis)} of {len(values)}" for axis, values in crossed.items())
            raise _error(document, ("axes",), f"mode zip needs axes of equal length, not {lengths}")
        combinations: Iterator[Any] = zip(*crossed.values(), strict=True)
    else:
        combinations = itertools.product(*crossed.values())
    for combination in combinations:
        yield dict(zip(crossed, combination, strict=True))


def _values(axis: str, document: Document, path: Keys) -> list[_Value]:
    """The values of an axis, which are at `path`, in order: a list, or a mapping of labels to values."""
    held = at(document.value, path)
    if isinstance(held, dict):
        values = [_Value(_label(label), document, (*path, label)) for label in held]
    elif isinstance(held, list):
        values = [_Value(_label(value), document, (*path, i)) for i, value in enumerate(held)]
    else:
        values = []
    if not values:
        raise _error(document, path, "must be a list of values, or label: value")
    return values


def _drawn(axis: str, document: Document, draws: Draws, path: Keys) -> tuple[_Value, str]:
    """A value of an axis, whose values are at `path`: drawn from a distribution, or one of them.

    Then the label of the value that was chosen; empty where the axis is a distribution.
    """
    name = picked = ""
    drawn_as, held = axis, at(document.value, path)
    if not is_distribution(held):
        values = _values(axis, document, path)
        place = draws.place(axis, len(values))
        choice, drawn_as = values[place], f"{axis}[{place}]"
        picked = choice.label
        name = choice.label if isinstance(held, dict) else ""
        if name and len(values) == 1 and is_distribution(at(document.value, choice.held)):
            problem = f"names its single value {name!r}; for a field of that name write [{{{name}: ...}}]"
            raise _error(document, path, problem)
        path = choice.held
        held = at(document.value, path)
    try:
        value = sample(held, draws, drawn_as)
    except ConfigError as error:
        raise _error(document, path, error) from None
    drawn = "" if name and value == held else _label(value)
    return _Value(f"{name} {drawn}".strip(), Document(value, {(): document.places[path]}), ()), picked


def _labels(setting: Mapping[str, _Value]) -> Setting:
    return {axis: value.label for axis, value in setting.items()}


def _matches(rule: Mapping[str, Any], labels: Setting) -> bool:
    """Whether a setting has one of the rule's labels on each of the rule's axes."""
    return all(
        labels.get(axis) in [_label(held) for held in (wanted if isinstance(wanted, list) else [wanted])]
        for axis, wanted in rule.items()
    )


def _check_distinct(settings: Sequence[Mapping[str, _Value]], document: Document) -> None:
    """ConfigError for a setting that is there twice, at the value that makes it so."""
    first: dict[tuple[str, ...], Mapping[str, _Value]] = {}
    for setting in settings:
        before = first.setdefault(tuple(_labels(setting).values()), setting)
        if before is not setting:
            again = (value.held for axis, value in setting.items() if value.held != before[axis].held)
            path = next(again, ("axes",))
            raise _error(document, path, f"{_said(_labels(setting))} is there twice; keep one")


def _check_rules(file: SweepFile, settings: list[dict[str, _Value]], document: Document) -> None:
    """ConfigError for a rule that leaves nothing out, which is a typing mistake."""
    labels = [_labels(setting) for setting in settings]
    for i, rule in enumerate(file.exclude):
        if not rule or not any(_matches(rule, one) for one in labels):
            raise _error(document, ("exclude", i), f"matches no setting; {_known(labels, rule)}")


def _check_generations(file: SweepFile, runs: Sequence[SweepRun], document: Document) -> None:
    """ConfigError for a number of generations that no run has."""
    most = max(run.job.recipe.budget.generations for run in runs)
    for i, many in enumerate(file.after_generations):
        if many > most:
            problem = f"{many} is more than any run's generations; lower it to {most} or less"
            raise _error(document, ("after_generations", i), problem)


def _known(labels: Sequence[Setting], rule: Mapping[str, Any]) -> str:
    """What a rule that matches no setting was likely meant to say, and what settings there are."""
    axes = {axis: list(dict.fromkeys(one[axis] for one in labels)) for axis in labels[0]}
    meant = []
    for axis, wanted in rule.items():
        there = axes.get(axis, [])
        for label in map(_label, wanted if isinstance(wanted, list) else [wanted]):
            same = [one for one in there if _boolean(one) == _boolean(label)]
            if near := [] if label in there else same or difflib.get_close_matches(label, there, n=1):
                meant.append(repr(near[0]))
    hint = f"did you mean {', '.join(meant)}? " if meant else ""
    known = (f"{_label(axis)}: {', '.join(values[:8])}" for axis, values in axes.items())
    return f"{hint}axes are {'; '.join(known)}"


def _boolean(label: str) -> str:
    """A label, that of the boolean for a word that stands for one where a boolean is wanted."""
    return _label(BOOLEANS.get(label.lower(), label))


def _baseline(file: SweepFile, labels: Sequence[Setting], document: Document) -> Setting:
    """The labels that differences are taken to: as given, or the first of the axis of methods."""
    if file.baseline is None:
        if file.mode == "random":
            return {}
        return {"method": labels[0]["method"]} if "method" in labels[0] and file.mode == "grid" else labels[0]
    wanted = {axis: _label(held) for axis, held in file.baseline.items()}
    if not wanted or not any(_matches(wanted, one) for one in labels):
        raise _error(document, ("baseline",), f"matches no setting; {_known(labels, wanted)}")
    return wanted


def _error(document: Document, path: Keys, problem: object) -> ConfigError:
    return ConfigError(f"{document.places[path]}: {dotted(path)}: {problem}")


def _runs(
    file: SweepFile, sweep: Document, base: Document, settings: Sequence[Mapping[str, _Value]]
) -> Iterator[SweepRun]:
    """The jobs of the settings; ConfigError lists what is wrong with any of them, each problem once."""
    problems: dict[str, str] = {}
    seen: dict[Recipe, Setting] = {}
    for setting in settings:
        document = base
        given = {axis: value for axis, value in setting.items() if value is not AS_IN_BASE}
        changes = {axis: (value.source, value.held) for axis, value in given.items()}
        if SETTING in changes:
            source, held = changes.pop(SETTING)
            changes = {axis: (source, (*held, axis)) for axis in at(source.value, held)}
        for axis, change in sorted(changes.items(), key=lambda item: item[0].count(".")):
            document = put(document, ("recipe", *axis.split(".")), *change)  # a method before its fields
        labels = _labels(setting)
        try:
            job = parse(document, Job)
        except ConfigError as error:
            for problem in str(error).split("\n"):
                problems.setdefault(problem, _said(labels))
            continue
        first = job.recipe.seed
        for seed in range(first, first + file.seeds):
            recipe = job.recipe.model_copy(update={"seed": seed})
            before = seen.setdefault(recipe, labels)
            if before is not labels:
                problem = f"{_said(labels)} computes the same as {_said(before)}; remove one"
                raise _error(sweep, ("axes",), problem)
            yield SweepRun(job.model_copy(update={"recipe": recipe}), labels)
    if problems:
        raise ConfigError("\n".join(f"{what} (first in {one})" for what, one in problems.items()))


def _said(labels: Setting) -> str:
    """A setting in words."""
    return f"the setting ({', '.join(f'{_label(axis)}: {label}' for axis, label in labels.items())})"


def _label(value: Any) -> str:
    """A name of a value, short and exact: text as it is, a mapping as name(field=...)."""
    if isinstance(value, dict):
        fields = ", ".join(f"{key}={_label(held)}" for key, held in value.items() if key != "name")
        name = str(value.get("name", ""))
        return f"{name}({fields})" if name and fields else name or fields
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = str(value)
    return text if text.isprintable() else repr(text)  # a label is one line
