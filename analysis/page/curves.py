"""What charts draw: means over seeds with their range, phases, ends of generations. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from analysis.page.facts import MomentFacts, RunFacts, SettingFacts, Study
from analysis.page.shapes import Curve, Stretch
from seal_ray.methods import Method
from seal_ray.schedule import Budget

POINTS = 240
"""Points of a curve that are drawn at most: more cannot be told apart on a screen."""
SETTINGS = 12
"""Settings that a chart of lines holds at most."""


def curve(setting: SettingFacts, points: Iterable[tuple[float, float]]) -> Curve | None:
    """The curve of a setting through points of all its seeds; None without any."""
    values: dict[float, list[float]] = {}
    for x, y in points:
        values.setdefault(x, []).append(y)
    if not values:
        return None
    xs = tuple(sorted(values))
    return Curve(
        setting.name,
        setting.family,
        setting.shade,
        xs,
        tuple(math.fsum(values[x]) / len(values[x]) for x in xs),
        tuple(min(values[x]) for x in xs),
        tuple(max(values[x]) for x in xs),
        max(map(len, values.values())),
    )


def thinned(curve: Curve, limit: int = POINTS) -> Curve:
    """The same curve with at most `limit` points: the first, the last, and of each stretch both extremes."""
    count = len(curve.x)
    if count <= limit:
        return curve
    parts = (limit - 2) // 2
    kept = {0, count - 1}
    for part in range(parts):
        stretch = range(1 + part * (count - 2) // parts, 1 + (part + 1) * (count - 2) // parts)
        kept |= {min(stretch, key=curve.y.__getitem__), max(stretch, key=curve.y.__getitem__)}
    order = sorted(kept)

    def some(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(values[i] for i in order)

    return Curve(
        curve.name,
        curve.family,
        curve.shade,
        some(curve.x),
        some(curve.y),
        some(curve.low),
        some(curve.high),
        curve.n,
    )


def curves(study: Study, points: Callable[[RunFacts], Iterable[tuple[float, float]]]) -> list[Curve]:
    """A curve for each setting that is drawn and has points."""
    found = (curve(one, (p for run in one.runs for p in points(run))) for one in drawn(study))
    return [thinned(one) for one in found if one is not None]


def drawn(study: Study) -> tuple[SettingFacts, ...]:
    """The settings that charts of lines show: all, or with many the best, and the best baseline."""
    if len(study.settings) <= SETTINGS:
        return study.settings

    def worth(setting: SettingFacts) -> float:
        return setting.line.top1.mean if setting.line.top1 else -math.inf

    ranked = sorted(study.settings, key=worth, reverse=True)
    bases = [one for one in ranked if one.line.is_baseline and study.baseline]
    chosen = {one.index for one in [*bases[:1], *(one for one in ranked if one not in bases[:1])][:SETTINGS]}
    return tuple(one for one in study.settings if one.index in chosen)


def accuracy(run: RunFacts) -> list[tuple[float, float]]:
    """Validation top-1 (%) after each epoch that was evaluated, over epochs trained."""
    return [(row["global_epoch"] + 1, row["val_top1"]) for row in run.rows if row["val_top1"] is not None]


def generation_ends(run: RunFacts) -> list[tuple[float, float]]:
    """Validation top-1 (%) at the end of each finished generation, over generations from 0 on."""
    if run.job is None:
        return []
    last = run.job.recipe.budget.length - 1
    return [(row["generation"], row["val_top1"]) for row in run.rows if row["epoch"] == last]


def depth_mean(run: RunFacts) -> list[tuple[float, float]]:
    """Mean prediction depth of validation images at the end of each generation, over epochs trained."""
    return [
        (one.epochs, one.results["depth"]["result"]["val"]["all"]["mean"])
        for one in run.moments
        if one.moment.name == "relearned" and "depth" in one.results
    ]


def stretches(setting: SettingFacts) -> list[Stretch]:
    """The phases of a setting's first run that has a recipe, as far as its longest run has come."""
    job = setting.job
    if job is None:
        return []
    done = max(len(run.rows) for run in setting.runs)
    found = []
    for one in planned(job.recipe.method, job.recipe.budget):
        if one.start < done:
            found.append(replace(one, end=min(one.end, done)))
    return found


def planned(method: Method, budget: Budget) -> list[Stretch]:
    """Every phase of a run, in order."""
    found, start = [], 0
    for generation in range(budget.generations):
        for phase in method.phases(generation, budget):
            end = start + phase.epochs
            found.append(Stretch(start, end, generation, phase.name, phase.ascends, phase.edit is not None))
            start = end
    return found


def frequency(study: Study) -> list[Curve]:
    """Last top-1 with its 95 % interval over the forgetting frequency; none where lengths do not vary.

    A curve for all that settings differ in beside the length of a generation; x: generations an epoch.
    """
    groups: dict[tuple[str, ...], dict[float, SettingFacts]] = {}
    for setting in study.settings:
        if setting.job is not None and setting.line.top1 is not None:
            others = [axis for axis in study.axes if not axis.startswith("budget")]
            key = tuple(setting.line.setting.get(axis, "-") for axis in others)
            groups.setdefault(key, {})[1 / setting.job.recipe.budget.length] = setting
    found = []
    for key, by_x in groups.items():
        if len(by_x) > 1:
            xs = sorted(by_x)
            tops = [top for x in xs if (top := by_x[x].line.top1) is not None]
            first = by_x[xs[0]]
            found.append(
                Curve(
                    " ".join(key) or "all",
                    first.family,
                    0,
                    tuple(xs),
                    tuple(top.mean for top in tops),
                    tuple(top.mean if top.low is None else top.low for top in tops),
                    tuple(top.mean if top.high is None else top.high for top in tops),
                    max(top.n for top in tops),
                )
            )
    return found


def shown_moments(study: Study, what: str) -> list[tuple[SettingFacts, list[MomentFacts]]]:
    """By setting, the last end of a generation of each seed that has a result of an analysis."""
    found = []
    for setting in drawn(study):
        ends = []
        for run in setting.runs:
            with_result = [m for m in run.moments if m.moment.name == "relearned" and what in m.results]
            ends += with_result[-1:]
        if ends:
            found.append((setting, ends))
    return found
