"""What charts draw: means over seeds with their range, phases, ends of generations. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from seal_ray.methods import Method
from seal_ray.phases.schedule import Budget
from seal_ray.reports.charts import Curve, Stretch, shades
from seal_ray.reports.study import MomentFacts, RunFacts, SettingFacts, Study
from seal_ray.sweeps.leaderboard import on_frontier
from seal_ray.sweeps.statistics import Estimate

POINTS = 240
"""Points of a curve that are drawn at most: more cannot be told apart on a screen."""
SETTINGS = 16
"""Settings that a chart of lines holds at most."""
GIVEN_UP = ("diverged", "failed", "pruned")
"""Statuses of runs that will not reach what others do."""
BUDGET = ("budget", "budget.epochs", "budget.generation_length")
"""Axes that say how long runs and generations are."""


def curve(setting: SettingFacts, seeds: Iterable[Iterable[tuple[float, float]]]) -> Curve | None:
    """The curve of a setting through the points of each of its seeds; None without any.

    Only where all seeds that have points have one: a mean whose seeds change on the way would jump with them.
    """
    held = [values for points in seeds if (values := dict(points))]
    xs = tuple(sorted(set.intersection(*map(set, held)))) if held else ()
    if not xs:
        return None
    at = [[values[x] for values in held] for x in xs]
    return Curve(
        setting.name,
        setting.family,
        setting.shade,
        xs,
        tuple(math.fsum(ys) / len(ys) for ys in at),
        tuple(map(min, at)),
        tuple(map(max, at)),
        len(held),
        partial=any(len(values) > len(xs) for values in held),
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

    return replace(curve, x=some(curve.x), y=some(curve.y), low=some(curve.low), high=some(curve.high))


def curves(study: Study, points: Callable[[RunFacts], Iterable[tuple[float, float]]]) -> list[Curve]:
    """A curve for each setting that is drawn and has points."""
    found = (_mean(one, points) for one in drawn(study))
    return [thinned(one) for one in found if one is not None]


def _mean(setting: SettingFacts, points: Callable[[RunFacts], Iterable[tuple[float, float]]]) -> Curve | None:
    """The curve of a setting over its seeds, without those given up where there are others."""
    held = [(run, some) for run in setting.runs if (some := list(points(run)))]
    lasting = [some for run, some in held if run.result.status not in GIVEN_UP]
    found = curve(setting, lasting or [some for _, some in held])
    if found is not None and 0 < len(lasting) < len(held):
        return replace(found, partial=True)
    return found


def drawn(study: Study, most: int = SETTINGS) -> tuple[SettingFacts, ...]:
    """The settings that charts of lines show: all, or with many the best, and the best baseline.

    Their shades are of those shown alone, so that no two look the same.
    """
    if len(study.settings) <= most:
        return study.settings
    ranked = sorted(study.settings, key=mean_top1, reverse=True)
    bases = [one for one in ranked if one.line.is_baseline and study.baseline]
    chosen = {one.index for one in [*bases[:1], *(one for one in ranked if one not in bases[:1])][:most]}
    shown = [one for one in study.settings if one.index in chosen]
    new = shades([one.family for one in shown])
    return tuple(replace(one, shade=shade) for one, shade in zip(shown, new, strict=True))


def mean_top1(setting: SettingFacts) -> float:
    """Of its finished runs, in per cent; without any it ranks last."""
    return setting.line.top1.mean if setting.line.top1 else -math.inf


def accuracy(run: RunFacts) -> list[tuple[float, float]]:
    """Validation top-1 (%) after each epoch that was evaluated, over epochs trained."""
    return [(row["global_epoch"] + 1, row["val_top1"]) for row in run.rows if row["val_top1"] is not None]


def memorised_points(run: RunFacts) -> list[tuple[float, float]]:
    """Per cent of wrong labels that were predicted in training, over epochs trained, where it was noted."""
    noted = ((row["global_epoch"] + 1, row.get("train_memorised")) for row in run.rows)
    return [(epoch, share) for epoch, share in noted if share is not None]


def generation_points(run: RunFacts) -> list[tuple[float, float]]:
    """Validation top-1 (%) at the end of each finished generation, over generations from 0 on."""
    return list(enumerate(run.result.generation_top1))


def at_ends(
    what: str, value: Callable[[Mapping[str, Any]], float | None]
) -> Callable[[RunFacts], list[tuple[float, float]]]:
    """A number of an analysis' results at the end of each generation, over epochs trained."""

    def points(run: RunFacts) -> list[tuple[float, float]]:
        ends = (one for one in run.moments if one.moment.name == "relearned" and what in one.results)
        held = ((one.epochs, value(one.results[what])) for one in ends)
        return [(epochs, number) for epochs, number in held if number is not None]

    return points


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

    A curve for all that settings differ in beside the length of a generation, their epochs among it; x:
    generations an epoch.
    """
    others = [axis for axis in study.axes if axis not in BUDGET]
    groups: dict[tuple[str, ...], list[tuple[float, Estimate, int]]] = {}
    budgets = {setting.line.epochs for setting in study.settings}
    for setting in study.settings:
        top1 = setting.line.top1
        if setting.job is not None and top1 is not None:
            labels = [setting.line.setting.get(axis, "-") for axis in others]
            epochs = [f"{setting.line.epochs:,} epochs"] if len(budgets) > 1 else []
            point = (1 / setting.job.recipe.budget.length, top1, setting.family)
            groups.setdefault((*labels, *epochs), []).append(point)
    drawn = {key: some for key, some in groups.items() if len({x for x, _, _ in some}) > 1}
    families = [some[0][2] for some in drawn.values()]
    return [
        _estimates(" ".join(key) or "all", family, shade, [(x, top1) for x, top1, _ in some])
        for (key, some), family, shade in zip(drawn.items(), families, shades(families), strict=True)
    ]


def _estimates(name: str, family: int, shade: int, points: Iterable[tuple[float, Estimate]]) -> Curve:
    """A curve through means with their intervals."""
    placed = sorted(points, key=lambda point: point[0])
    tops = [top1 for _, top1 in placed]
    return Curve(
        name,
        family,
        shade,
        tuple(x for x, _ in placed),
        tuple(top1.mean for top1 in tops),
        tuple(top1.mean if top1.low is None else top1.low for top1 in tops),
        tuple(top1.mean if top1.high is None else top1.high for top1 in tops),
        max(top1.n for top1 in tops),
    )


def over_compute(study: Study) -> tuple[list[Curve], list[tuple[float, float]]]:
    """Last top-1 with its 95 % interval over the passes of a run, a point for each setting that has finished.

    Then the corners of the line of those that no other beats: it climbs where more passes gave more.
    """
    known = [
        (one, one.line.cost, one.line.top1)
        for one in drawn(study)
        if one.line.top1 is not None and one.line.cost is not None
    ]
    best = on_frontier([(cost, top1.mean) for _, cost, top1 in known])
    corners: list[tuple[float, float]] = []
    for cost, worth in sorted((c, t.mean) for (_, c, t), kept in zip(known, best, strict=True) if kept):
        corners += [(cost, corners[-1][1] if corners else worth), (cost, worth)]
    points = [_estimates(one.name, one.family, one.shade, [(cost, top1)]) for one, cost, top1 in known]
    return points, corners


def shown_moments(
    study: Study, what: str, shows: Callable[[MomentFacts], bool] = lambda _: True
) -> list[tuple[SettingFacts, list[MomentFacts]]]:
    """By setting, the end of a generation of each seed that has a result of an analysis, one that `shows`.

    All of a setting are of one generation, the latest that any of its seeds has.
    """
    found = []
    for setting in drawn(study):
        usable = [
            one
            for run in setting.runs
            for one in run.moments
            if one.moment.name == "relearned" and what in one.results and shows(one)
        ]
        if usable:
            latest = max(one.moment.generation for one in usable)
            found.append((setting, [one for one in usable if one.moment.generation == latest]))
    return found
