"""Which runs a page is of, and what they are compared by: read from a sweep, or from the recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seal_ray.analysis.moments import RunSet, baseline_in, find_runs, sweep_runs
from seal_ray.config.document import stored_in
from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.recipe import Recipe
from seal_ray.storage.paths import AnyPath
from seal_ray.sweeps.file import Setting, is_sweep, load_sweep
from seal_ray.sweeps.results import SweepRuns, prepare_sweep

StudyKind = Literal["run", "sweep", "storage"]


@dataclass(frozen=True)
class Member:
    """A run that the page is of, whether it has begun or not."""

    folder: AnyPath
    seed: int
    epochs: int  # the budget
    setting: Setting


@dataclass(frozen=True)
class StudySource:
    """What a page is of. folder: where it goes by default.

    members: the runs in order; baseline: labels that differences are taken to, empty where there is none;
    unreadable: runs that cannot be told apart, and why; after_generations: as the sweep asks for.
    """

    name: str
    kind: StudyKind
    folder: AnyPath
    members: tuple[Member, ...]
    baseline: Setting
    unreadable: Mapping[str, str] = field(default_factory=dict)
    after_generations: tuple[int, ...] = ()


def find_source(path: Path, storage: str | None = None) -> StudySource:
    """The runs that a path stands for: a run's folder or YAML, a sweep's YAML or folder, a storage folder.

    storage: overrides placement.storage of a YAML file. Errors as `seal_ray.analysis.moments.find_runs`,
    and CheckpointError when no run can be read.
    """
    if path.is_file() and is_sweep(path):
        return _of_sweep(prepare_sweep(load_sweep(path, stored_in(storage))))
    run_set = find_runs(path, storage)
    if path.is_dir() and not (path / "job.yaml").is_file() and (path / "results.json").is_file():
        return _of_sweep_folder(run_set)
    return _of_runs(run_set)


def _of_sweep(runs: SweepRuns) -> StudySource:
    sweep_runs(runs)  # at least one run has begun
    members = [_member(one.store.folder, one.job.recipe, runs.settings[one.run_id]) for one in runs.planned]
    after = runs.sweep.after_generations
    baseline = dict(runs.sweep.baseline)
    return StudySource(
        runs.sweep.name, "sweep", runs.folder, tuple(members), baseline, after_generations=after
    )


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
    baseline = baseline_in(held)
    return StudySource(
        run_set.name, "sweep", run_set.folder, tuple(members), baseline, after_generations=after
    )


def _of_runs(run_set: RunSet) -> StudySource:
    """Runs without a sweep: their settings are what their recipes differ in, the baseline plain training."""
    if not run_set.runs:
        raise CheckpointError(
            f"{run_set.folder}: no run in it can be read:\n  " + "\n  ".join(run_set.unreadable.values())
        )
    recipes = [run.job.recipe for run in run_set.runs]
    settings = list(settings_of(recipes))
    members = [
        _member(run.folder, run.job.recipe, setting)
        for run, setting in zip(run_set.runs, settings, strict=True)
    ]
    # By setting in the order of their labels, plain training first.
    members.sort(key=lambda one: (one.setting["method"] != "normal", tuple(one.setting.values()), one.seed))
    several = len({tuple(one.setting.items()) for one in members}) > 1
    plain = {"method": "normal"} if several and any(s["method"] == "normal" for s in settings) else {}
    _refuse_doubles(members, run_set)
    kind: StudyKind = "run" if len(members) == 1 and members[0].folder == run_set.folder else "storage"
    return StudySource(run_set.name, kind, run_set.folder, tuple(members), plain, run_set.unreadable)


def _member(folder: AnyPath, recipe: Recipe, setting: Setting) -> Member:
    return Member(folder, recipe.seed, recipe.budget.epochs, setting)


def settings_of(recipes: Sequence[Recipe]) -> Iterator[Setting]:
    """A label for each recipe on each axis: `method`, and every other field in which they differ.

    The method's label holds those of its fields in which runs of that method differ. The seed is no axis.
    """
    flat = [dict(fields_of(recipe)) for recipe in recipes]
    for one in flat:
        del one["seed"]
    varying = {key for key in flat[0] if not key.startswith("method.") and _varies(flat, key)}
    for one in flat:
        same = [other for other in flat if other["method.name"] == one["method.name"]]
        own = [key for key in one if key.startswith("method.") and _varies(same, key)]
        fields = ", ".join(f"{key.removeprefix('method.')}={one[key]}" for key in own)
        method = one["method.name"] + (f"({fields})" if fields else "")
        yield {"method": method, **{key: one[key] for key in one if key in varying}}


def fields_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
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
