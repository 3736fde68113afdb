"""The sections that say why: prediction depth, curvature, other data sets, example images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seal_ray.analysis.depth import DOMINANT
from seal_ray.analysis.evaluations import EvaluationKind
from seal_ray.analysis.scores import Column
from seal_ray.analysis.tasks import read_arrays
from seal_ray.data.images import SPLITS
from seal_ray.errors import SealRayError
from seal_ray.reports import curves as of
from seal_ray.reports.blocks import (
    Block,
    Calls,
    Figure,
    Grid,
    Missing,
    Picture,
    Section,
    SmallChart,
    SmallCharts,
    Table,
    TableRow,
    number,
    seeds,
    several,
    standing,
)
from seal_ray.reports.charts import NARROW, WIDE, Axes, Curve, Mark, line_chart
from seal_ray.reports.pictures import by_depth, most_forgotten
from seal_ray.reports.small_charts import PANEL, histogram
from seal_ray.reports.study import MomentFacts, SettingFacts, Study

SPECTRUM = 160
"""Points of a spectral density that are drawn at most."""
GRIDS = 6
"""Settings whose example images are shown at most."""

EVALUATED: Mapping[EvaluationKind, tuple[str, str, tuple[str, ...]]] = {
    "transfer": (
        "Linear probes",
        "a linear probe on the frozen features",
        ("transfer", "{}", "--to", "flowers102,cub200"),
    ),
    "finetune": ("Fine-tuning", "the whole network trained on", ()),
    "fewshot": ("Few-shot", "episodes on the frozen features", ("fewshot", "{}", "--on", "eurosat")),
}
"""Evaluations on other data sets: title, what is measured, and the command for it where it is asked for."""

Ends = Sequence[tuple[SettingFacts, Sequence[MomentFacts]]]


def depth_section(study: Study, target: Calls) -> Section:
    """From where in the network on probes agree with it: histograms, and means over generations."""
    title = "Prediction depth"
    ends = of.shown_moments(study, "depth")
    if not ends:
        return Section("depth", title, (_not_analysed(target, "depth"),))
    shares: list[Mapping[str, list[float]]] = [
        {split: _shares(some, split) for split in SPLITS} for _, some in ends
    ]
    log = max(max(values) for one in shares for values in one.values()) > DOMINANT
    panels = []
    for (setting, some), one in zip(ends, shares, strict=True):
        means: dict[str, float] = {split: _mean([_depth(m, split)["mean"] for m in some]) for split in SPLITS}
        places = [*some[0].results["depth"]["result"]["probes"], "never"]
        said = ", ".join(f"{split} mean {mean:.2f}" for split, mean in means.items())
        label = f"Prediction depths of {setting.name}: {said}"
        chart = histogram(one, means, places, label, log=log)
        panels.append(SmallChart(_heading(setting, some), setting.family, chart))
    axis = "images (%, log axis)" if log else "images (%)"
    caption = (
        f"Share of {axis} by the first probe from which on all agree with the network, at the last end of a "
        "generation, mean over seeds; triangles: mean depth (Baldock et al. 2021)."
    )
    key = (("swatch train", "training images"), ("swatch val", "validation images"))
    blocks: list[Block] = [SmallCharts(caption, tuple(panels), key)]
    blocks += _depth_means(study)
    blocks.append(_depth_table(ends))
    return Section("depth", title, tuple(blocks))


def _not_analysed(target: Calls, what: str) -> Missing:
    return Missing("No moment has been analysed for it.", target.command("analyze", "{}", "--what", what))


def _heading(setting: SettingFacts, some: Sequence[MomentFacts]) -> str:
    return f"{setting.name} · {some[0].moment.label} · {seeds(len(some))}"


def _depth(one: MomentFacts, split: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one.results["depth"]["result"][split]["all"]
    return found


def _shares(some: Sequence[MomentFacts], split: str) -> list[float]:
    """Per cent of images at each depth, the mean over seeds."""
    counts = np.array([_depth(one, split)["histogram"] for one in some], dtype=float)
    return [float(v) for v in 100 * (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _depth_means(study: Study) -> list[Figure]:
    """Mean depth of validation images over training."""
    label = "Mean prediction depth of validation images at the end of each generation"
    points = of.at_ends("depth", lambda held: held["result"]["val"]["all"]["mean"])
    return _over_training(of.curves(study, points), "mean depth (probes)", label)


def _over_training(found: Sequence[Curve], what: str, label: str) -> list[Figure]:
    """Curves over epochs trained, where there is more than one point."""
    if max((len(one.x) for one in found), default=0) < 2:
        return []
    axes = Axes("epochs trained", what, whole=True, digits=3)
    wide, narrow = (
        line_chart(found, axes, label, width=width, height=height, dots=True)
        for width, height in ((WIDE, 250), (NARROW, 240))
    )
    left = (
        " Points that not all seeds of a setting have are left out." if any(c.partial for c in found) else ""
    )
    return [Figure(f"{label}; bars: the range over seeds where there are several.{left}", wide, narrow)]


def _depth_table(ends: Ends) -> Table:
    rows = []
    for setting, some in ends:
        wrong = [
            m["mean"] for m in (one.results["depth"]["result"]["val"]["wrong"] for one in some) if m["count"]
        ]
        means = [several([_depth(one, split)["mean"] for one in some]) for split in SPLITS]
        cells = (setting.name, str(some[0].moment.generation), str(len(some)), *means, several(wrong))
        rows.append(TableRow(cells, setting.family))
    headings = ("setting", "after generation", "n", "train", "val", "val, predicted wrongly")
    return Table("Mean prediction depth, with its range over seeds.", headings, tuple(rows))


def curvature_section(study: Study, target: Calls) -> Section:
    """Spectra of the Hessian side by side, and their numbers."""
    title = "Curvature"
    ends = of.shown_moments(
        study, "curvature", lambda one: "all" in one.results["curvature"]["result"]["parts"]
    )
    if not ends:
        return Section("curvature", title, (_not_analysed(target, "curvature"),))
    blocks: list[Block] = []
    if panels := _spectra(ends):
        caption = (
            "Spectral density of the Hessian of the training loss at the last end of a generation, a line a "
            "seed, on common axes; triangles: the smallest and the largest eigenvalue."
        )
        blocks.append(SmallCharts(caption, tuple(panels)))
    blocks.append(_curvature_table(ends))
    return Section("curvature", title, tuple(blocks))


def _part(one: MomentFacts) -> Mapping[str, Any]:
    part: Mapping[str, Any] = one.results["curvature"]["result"]["parts"]["all"]
    return part


def _spectra(ends: Ends) -> list[SmallChart]:
    """A panel a setting, on common axes."""
    known = [(setting, some, [c for one in some if (c := _density(setting, one))]) for setting, some in ends]
    top = 2 * max((v for *_, found in known for curve in found for v in curve.y), default=0.0)
    if not top:
        return []
    every = [one for _, some in ends for one in some]
    floor = min(map(_floor, every))
    reach = [_extreme(one, end) for one in every for end in ENDS]
    room = (max(reach) - min(reach)) * 0.05
    x_range = (min(reach) - room, max(reach) + room)
    axes = Axes("eigenvalue", "density", log=True, x_range=x_range, y_range=(floor, top))
    panels = []
    for setting, some, found in known:
        if found:
            marks = [
                Mark(_extreme(one, end), floor * 2.5, shape, f"{end} eigenvalue {_extreme(one, end):.4g}")
                for one in some
                for end, shape in ENDS.items()
            ]
            low, high = min(mark.x for mark in marks), max(mark.x for mark in marks)
            label = f"Spectral density of {setting.name}: eigenvalues from {low:.3g} to {high:.3g}"
            chart = line_chart(found, axes, label, width=PANEL, height=222, marks=marks, named=False)
            panels.append(SmallChart(_heading(setting, some), setting.family, chart))
    return panels


ENDS = {"smallest": "<", "largest": ">"}
"""The ends of a spectrum, and the shapes that mark them."""


def _extreme(one: MomentFacts, end: str) -> float:
    return float(_part(one)[end][0]["value"])


def _floor(one: MomentFacts) -> float:
    """Where the axis of densities begins: below what a single eigenvalue makes of one."""
    return float(1 / (_part(one)["parameters"] * _part(one)["density_sigma"]) / 30)


def _density(setting: SettingFacts, one: MomentFacts) -> Curve | None:
    """The density of a moment as a curve; None where its arrays are damaged."""
    try:
        arrays = read_arrays(one.moment, "curvature")
        points = zip(arrays["all_grid"].tolist(), arrays["all_values"].tolist(), strict=True)
    except (SealRayError, KeyError, ValueError):
        return None
    found = of.curve(setting, [[(x, max(y, _floor(one))) for x, y in points]])
    return None if found is None else of.thinned(found, SPECTRUM)


def _curvature_table(ends: Ends) -> Table:
    measures: list[tuple[str, Callable[[Mapping[str, Any]], float], str]] = [
        ("largest", lambda part: part["largest"][0]["value"], ".3g"),
        ("smallest", lambda part: part["smallest"][0]["value"], ".3g"),
        ("trace", lambda part: part["trace"]["value"], ".3g"),
        ("gradient in top space", lambda part: part["gradient_overlap"], ".2f"),
    ]
    rows = []
    for setting, some in ends:
        numbers = (several([value(_part(one)) for one in some], form) for _, value, form in measures)
        mass = _negative_mass([_part(one)["negative_mass"] for one in some])
        cells = (setting.name, str(some[0].moment.generation), str(len(some)), *numbers, mass)
        rows.append(TableRow(cells, setting.family))
    caption = (
        "Eigenvalues and trace in nats per squared unit of weight, with their ranges over seeds; negative "
        "mass: the share of eigenvalues below a threshold, given in units of the largest magnitude, with the "
        "range of its bounds over seeds. The threshold is the smallest at which the Lanczos steps of every "
        "seed resolve the mass."
    )
    headings = ("setting", "after generation", "n", *(name for name, _, _ in measures), "negative mass")
    return Table(caption, headings, tuple(rows))


def _negative_mass(found: Sequence[Mapping[str, Any]]) -> str:
    """The mean over seeds and the range of bounds, where all are resolved; results of before have none."""
    for bounds in zip(*(one.get("bounds", ()) for one in found), strict=False):
        if all(one["resolved"] for one in bounds):
            low, high = [one["low"] for one in bounds], [one["high"] for one in bounds]
            middle = number((sum(low) + sum(high)) / (2 * len(bounds)), ".2g")
            reach = f"{number(min(low), '.2g')} … {number(max(high), '.2g')}"
            return f"{middle} ({reach}) below {number(-bounds[0]['relative'], '.0e')}"
    return "not resolved"


def further_section(study: Study, target: Calls) -> Section:
    """The scalars of analyses that are not this package's: over training, and at the last ends."""
    every = [one for run in study.runs for one in run.moments]
    blocks: list[Block] = []
    for what in sorted({name for one in every for name in one.results if "scalars" in one.results[name]}):
        ends = of.shown_moments(study, what)
        names = list(dict.fromkeys(name for _, some in ends for m in some for name in _scalars(m, what)))
        for name in names:
            points = of.at_ends(what, lambda held, name=name: held["scalars"].get(name))  # type: ignore[misc]
            label = f"{name} at the end of each generation"
            blocks += _over_training(of.curves(study, points), name, label)
        rows = []
        for setting, some in ends:
            values = [[v for m in some if (v := _scalars(m, what).get(name)) is not None] for name in names]
            means = [several(held, ".4g") for held in values]
            rows.append(
                TableRow(
                    (setting.name, str(some[0].moment.generation), str(len(some)), *means), setting.family
                )
            )
        if rows:
            headings = ("setting", "after generation", "n", *names)
            blocks.append(
                Table(f"The numbers of {what}, with their range over seeds.", headings, tuple(rows))
            )
    return Section("further", "Further analyses", tuple(blocks))


def _scalars(one: MomentFacts, what: str) -> Mapping[str, float | None]:
    found: Mapping[str, float | None] = one.results[what]["scalars"]
    return found


def evaluated_section(study: Study, target: Calls) -> Section:
    """Linear probes and few-shot episodes on other data sets."""
    blocks: list[Block] = []
    for kind, (title, how, example) in EVALUATED.items():
        columns = [column for column in study.columns if column.kind == kind]
        if columns:
            blocks.append(_evaluated_table(study, columns, f"{title}: top-1 of {how}"))
        elif example:
            blocks.append(Missing(f"{title}: nothing has been evaluated.", target.command(*example)))
    return Section("carried", "On other data sets", tuple(blocks))


def _evaluated_table(study: Study, columns: Sequence[Column], title: str) -> Table:
    rows = []
    for column in columns:
        for setting, line in zip(study.settings, column.lines, strict=True):
            shots = (str(column.shots),) if column.shots else ()
            rows.append(TableRow((column.target, *shots, setting.name, *standing(line)), setting.family))
    few = columns[0].shots is not None
    headings = (
        "data set",
        *(("shots",) if few else ()),
        *("setting", "n", "top-1 %", "95 % interval", "difference", "its 95 % interval", "p"),
    )
    caption = (
        f"{title} of each run's last relearned moment, over n seeds; differences are to the baseline, paired "
        "by seed."
    )
    return Table(caption, headings, tuple(rows), text=3 if few else 2)


def examples_section(study: Study, target: Calls) -> Section:
    """Validation images at either end of the depths, and those forgotten most often."""
    blocks: list[Block] = []
    ends = of.shown_moments(study, "depth")[:GRIDS]
    for end in ("deepest", "shallowest"):
        for setting, some in ends:
            blocks += _grid(setting, some[0], end, by_depth(some[0], end))
    if not blocks:
        blocks.append(_not_analysed(target, "depth"))
    return Section("examples", "Examples", (*blocks, *_forgotten(study, target)))


def _grid(setting: SettingFacts, one: MomentFacts, end: str, pictures: Iterable[Picture]) -> list[Grid]:
    shown = tuple(pictures)
    heading = f"{end.capitalize()}: {setting.name}, {one.moment.label}"
    return [Grid(heading, setting.family, shown)] if shown else []


def _forgotten(study: Study, target: Calls) -> list[Block]:
    """The images that were forgotten most often, of the first seed of each setting that kept track."""
    blocks: list[Block] = []
    problem = ""
    for setting, some in of.shown_moments(study, "calibration")[:GRIDS]:
        tracked = [one for one in some if "forgetting" in one.results["calibration"]["result"]]
        if tracked and setting.job is not None:
            try:
                pictures = most_forgotten(tracked[0], setting.job)
                blocks += _grid(setting, tracked[0], "most forgotten", pictures)
            except SealRayError as error:
                problem = str(error)
    if blocks:
        return blocks
    if problem:
        return [Missing(f"The most forgotten cannot be shown: {problem}")]
    why = (
        "Most forgotten: no run kept track of single images; train with placement.track_examples: true, then "
        "analyse calibration."
    )
    return [Missing(why, target.command("analyze", "{}", "--what", "calibration"))]
