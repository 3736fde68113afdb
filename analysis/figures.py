"""Figures of the analyses of several runs beside each other, as PNG and SVG.

Equal results give equal files. Colours are Okabe and Ito's, which the colour-blind can tell apart; lines
differ in their dashes and markers as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from seal_ray.analysis.depth import DOMINANT, FEWEST, Example
from seal_ray.analysis.moments import Moment, RunSet
from seal_ray.analysis.tasks import RESULTS, analyses_of, read_arrays, read_result
from seal_ray.data.dataset import Pixels
from seal_ray.errors import CheckpointError
from seal_ray.plugins import PluginFile
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dvp*"
DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
TRAIN, VAL = "#56B4E9", "#D55E00"
OPEN = {"init": "x", "forgotten": "v", "ascended": "^"}
"""Markers of moments within a generation, beside the line through its ends."""
EDITED = ("init", "forgotten")
"""Moments with weights that were just drawn or edited."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "seal-ray",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
COLUMNS = 4
PICTURES = 8
"""Example images beside each other."""
WRONG = "#B3400B"
"""The colour of a wrong prediction, `label→prediction`."""


@dataclass(frozen=True)
class MomentResults:
    """What was found of a moment of a run: results by analysis."""

    label: str  # what runs of one setting have in common
    seed: int
    length: int  # epochs of a generation
    moment: Moment
    epochs: int
    results: Mapping[str, Mapping[str, Any]]


def gather(run_set: RunSet, names: Iterable[str]) -> list[MomentResults]:
    """The results of these analyses of runs that can be read, in the order of runs and moments."""
    found = []
    for run in run_set.runs:
        for moment in run.moments():
            held = {what: read_result(moment, what) for what in names}
            results = {what: one["result"] for what, one in held.items() if one is not None}
            epochs = next((one["epochs"] for one in held.values() if one is not None), 0)
            if results:
                recipe = run.job.recipe
                found.append(
                    MomentResults(run.label, recipe.seed, recipe.budget.length, moment, epochs, results)
                )
    return found


def write_figures(run_set: RunSet, plugins: Sequence[PluginFile] = ()) -> list[AnyPath]:
    """Draw what there are results for into `<folder>/analysis/`; returns the files that were written."""
    kinds = {name: kind for one in run_set.runs for name, kind in analyses_of(one.job, plugins).items()}
    found = gather(run_set, kinds)
    with mpl.rc_context(STYLE):
        drawn: dict[str, Figure] = {}
        for name, kind in kinds.items():
            if some := [one for one in found if name in one.results]:
                drawn |= kind().figures(some)
        written: list[AnyPath] = []
        with saving(run_set.folder):
            for name, figure in drawn.items():
                for suffix in ("png", "svg"):
                    path = run_set.folder / RESULTS / f"{name}.{suffix}"
                    write_durably(path, _rendered(figure, suffix))
                    written.append(path)
    return written


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _line_style(i: int) -> dict[str, Any]:
    """Of the line of setting `i`."""
    dashes, marker = DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": dashes, "marker": marker, "markersize": 5}


def _labels(found: Sequence[MomentResults]) -> list[str]:
    return list(dict.fromkeys(one.label for one in found))


def _last(found: Sequence[MomentResults]) -> dict[str, list[MomentResults]]:
    """By label, the last end of a generation that each of its seeds has."""
    ends = {(one.label, one.seed): one for one in found if one.moment.name == "relearned"}
    last = {label: [one for (of, _), one in ends.items() if of == label] for label in _labels(found)}
    return {label: some for label, some in last.items() if some}


def has_ends(found: Sequence[MomentResults]) -> bool:
    """Whether there is an end of a generation among results."""
    return bool(_last(found))


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels with common axes, at most COLUMNS beside each other."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + 1.6, height * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def _seeds(some: Sequence[MomentResults]) -> str:
    return f"{len(some)} seed{'s' if len(some) > 1 else ''}"


def plot_depths(found: Sequence[MomentResults]) -> Figure:
    """The share of images at each prediction depth, a panel a setting, at its last end of a generation.

    Means over seeds; dashed: the mean depth.
    """
    last = _last(found)
    figure, axes = _panels(len(last), 3.0, 2.7)
    splits = ("train", "val")
    log = max(_shares(some, split).max() for some in last.values() for split in splits) > DOMINANT
    for axis, (label, some) in zip(axes, last.items(), strict=True):
        means = []
        for shift, split, colour in ((-0.2, "train", TRAIN), (0.2, "val", VAL)):
            shares = _shares(some, split)
            axis.bar(np.arange(len(shares)) + shift, shares, 0.4, color=colour, linewidth=0)
            means.append(np.mean([one.results["depth"][split]["all"]["mean"] for one in some]))
            axis.axvline(means[-1], color=colour, linestyle="--", linewidth=1.4)
        said = f"mean {means[0]:.2f} train\n{means[1]:.2f} val"
        axis.text(0.98, 0.98, said, transform=axis.transAxes, ha="right", va="top", backgroundcolor="white")
        if log:
            axis.set_yscale("log")
            axis.set_ylim(FEWEST, 250)
            axis.yaxis.set_major_formatter("{x:g}")
        probes = some[0].results["depth"]["probes"]
        axis.set_xticks(range(len(probes) + 1), [*probes, "never"], rotation=60, ha="right", fontsize=7.5)
        axis.set_xlim(-0.6, len(probes) + 0.6)
        axis.grid(visible=False, axis="x")
        axis.set_title(f"{label} ({some[0].moment.label}, {_seeds(some)})")
    figure.supylabel("images (%, log axis)" if log else "images (%)", fontsize=9)
    figure.supxlabel("prediction depth: the first probe from which on all agree with the network", fontsize=9)
    key = [Line2D([], [], color=colour, linewidth=6) for colour in (TRAIN, VAL)]
    key.append(Line2D([], [], color="#555555", linestyle="--", linewidth=1.4))
    figure.legend(key, ["train", "val", "mean"], loc="outside right upper")
    return figure


def _shares(some: Sequence[MomentResults], split: str) -> npt.NDArray[np.float64]:
    """Per cent of images at each depth, the mean over seeds."""
    counts = np.array([one.results["depth"][split]["all"]["histogram"] for one in some], dtype=float)
    shares: npt.NDArray[np.float64] = 100 * (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def plot_mean_depth(found: Sequence[MomentResults]) -> Figure:
    """Mean prediction depth of training and validation images over epochs, a line a setting."""
    figure, axes = _panels(2, 3.6, 2.9)
    for axis, split in zip(axes, ("train", "val"), strict=True):
        _lines(axis, found, lambda one, split=split: one.results["depth"][split]["all"]["mean"])  # type: ignore[misc]
        axis.set_title(f"{split} images", pad=14)
    axes[0].set_ylabel("mean prediction depth (probes)")
    _key(figure, found)
    return figure


def plot_curvature(found: Sequence[MomentResults]) -> Figure:
    """The largest eigenvalue and the trace of the Hessian over epochs, on log axes where they allow it."""
    measures: list[tuple[str, Callable[[MomentResults], float]]] = [
        ("largest eigenvalue", lambda one: _part(one)["largest"][0]["value"]),
        ("trace", lambda one: _part(one)["trace"]["value"]),
    ]
    figure = Figure(figsize=(8.8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, value) in zip(axes, measures, strict=True):
        if min(value(one) for one in found if one.moment.name not in EDITED) > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
        _lines(axis, found, value)
        axis.set_title(f"{name} of the Hessian", pad=14)
        axis.set_ylabel("nats per squared unit of weight")
    _key(figure, found)
    return figure


def _part(one: MomentResults) -> Mapping[str, Any]:
    part: Mapping[str, Any] = one.results["curvature"]["parts"]["all"]
    return part


def _lines(axis: Axes, found: Sequence[MomentResults], value: Callable[[MomentResults], float]) -> None:
    """A line a setting through the means over seeds at the ends of generations; other moments beside it."""
    edited: list[tuple[list[MomentResults], str, str]] = []
    labels, longest = _labels(found), max(one.epochs for one in found)
    for i, label in enumerate(labels):
        aside = (i - (len(labels) - 1) / 2) * 0.012 * longest  # so that ranges over seeds stay apart
        colour = PALETTE[i % len(PALETTE)]
        own = [one for one in found if one.label == label]
        ends = _by_epoch([one for one in own if one.moment.name == "relearned"], value)
        axis.plot(
            [epochs + aside for epochs in ends],
            [np.mean(values) for values in ends.values()],
            **_line_style(i),
        )
        for epochs, values in ends.items():
            if len(values) > 1:
                axis.plot([epochs + aside] * 2, [min(values), max(values)], color=colour, linewidth=1)
        if "ascended" in (kept := {one.moment.name for one in own}):
            _beside(axis, own, "ascended", value, colour)
        edited += [(own, name, colour) for name in EDITED if name in kept]
    low, high = axis.get_ylim()
    for own, name, colour in edited:
        _beside(axis, own, name, value, colour, within=(low, high))
    axis.set_ylim(low, high)
    lengths = {one.length for one in found}
    if len(lengths) == 1:
        axis.set_xticks(np.arange(0, longest + 1, min(lengths)))
    axis.set_xlabel("epochs trained")


def _beside(
    axis: Axes,
    own: Sequence[MomentResults],
    name: str,
    value: Callable[[MomentResults], float],
    colour: str,
    within: tuple[float, float] | None = None,
) -> None:
    """Open markers at the means over seeds of a kind of moments; outside of a range at its edge, in words.

    What was just drawn or edited at random lies far from all that was trained and would squash it.
    """
    for epochs, values in _by_epoch([one for one in own if one.moment.name == name], value).items():
        mean = float(np.mean(values))
        drawn = mean if within is None else min(max(mean, within[0]), within[1])
        axis.plot(
            [epochs], [drawn], OPEN[name], color=colour, markerfacecolor="white", clip_on=False, zorder=3
        )
        if drawn != mean:
            said = f"{mean:,.0f}" if abs(mean) >= 100 else f"{mean:.3g}"
            where: dict[str, Any] = {"xytext": (6, -3 if mean > drawn else 3), "textcoords": "offset points"}
            axis.annotate(said, (epochs, drawn), **where, fontsize=7.5, color=colour)


def _by_epoch(
    some: Sequence[MomentResults], value: Callable[[MomentResults], float]
) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for one in sorted(some, key=lambda one: one.epochs):
        values.setdefault(one.epochs, []).append(value(one))
    return values


def _key(figure: Figure, found: Sequence[MomentResults]) -> None:
    """The legend beside the panels: settings, then the moments that have markers of their own."""
    names = _labels(found)
    handles = [Line2D([], [], **_line_style(i)) for i in range(len(names))]
    kept = {one.moment.name for one in found}
    for name, marker in OPEN.items():
        if name in kept:
            handles.append(
                Line2D([], [], color="#555555", linestyle="", marker=marker, markerfacecolor="white")
            )
            names.append(name)
    if len({one.seed for one in found}) > 1:
        handles.append(Line2D([], [], color="#555555", linewidth=1, marker="|", linestyle="", markersize=9))
        names.append("range of seeds")
    figure.legend(handles, names, loc="outside right upper")


def plot_densities(found: Sequence[MomentResults]) -> Figure:
    """The spectral density of the Hessian, a panel a setting, a line a seed, on a log axis.

    The axis reaches down to where single eigenvalues are seen. Triangles: the smallest and the largest.
    """
    last = _last(found)
    figure, axes = _panels(len(last), 3.2, 2.9)
    single = [
        1 / (_part(one)["parameters"] * _part(one)["density_sigma"]) for some in last.values() for one in some
    ]
    floor, top = min(single) / 30, 0.0
    for i, (axis, (label, some)) in enumerate(zip(axes, last.items(), strict=True)):
        colour = PALETTE[i % len(PALETTE)]
        for one in some:
            grid, density = _density(one)
            top = max(top, *density)
            axis.plot(grid, density, color=colour, linewidth=1.1, alpha=0.9 if len(some) == 1 else 0.6)
        lowest = [_part(one)["smallest"][0]["value"] for one in some]
        highest = [_part(one)["largest"][0]["value"] for one in some]
        for values, marker in ((lowest, "<"), (highest, ">")):
            axis.plot(values, [floor * 2] * len(values), marker, color="black", markersize=6, clip_on=False)
        axis.text(
            0.98,
            0.97,
            f"largest {max(highest):.3g}\nsmallest {min(lowest):.2g}",
            transform=axis.transAxes,
            ha="right",
            va="top",
        )
        axis.set_yscale("log")
        axis.set_ylim(floor, 10 * top)
        axis.set_title(f"{label} ({some[0].moment.label}, {_seeds(some)})")
    figure.supylabel("spectral density", fontsize=9)
    figure.supxlabel(
        "eigenvalue of the Hessian of the training loss (nats per squared unit of weight)", fontsize=9
    )
    handles = [Line2D([], [], color="black", linestyle="", marker=marker) for marker in "<>"]
    figure.legend(handles, ["smallest\neigenvalue", "largest\neigenvalue"], loc="outside right upper")
    return figure


def _density(one: MomentResults) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    try:
        arrays = read_arrays(one.moment, "curvature")
    except CheckpointError:
        return np.array([]), np.array([])
    return arrays["all_grid"], arrays["all_values"]


def picture(ends: Mapping[str, Sequence[Example]], pixels: Pixels, greatest: int) -> bytes:
    """A PNG: a block of rows for each of `ends`, under each image its depth and label.

    pixels: (N, H, W, 3) uint8, of the examples of all ends in turn. greatest: the largest depth there is.
    """
    rows = [
        (end, list(some[i : i + PICTURES]))
        for end, some in ends.items()
        for i in range(0, len(some), PICTURES)
    ]
    size = pixels.shape[1]
    across, down = size * 1.08, size * 1.45  # of a cell, in pixels
    figure = Figure(figsize=(1.05 * PICTURES + 0.3, 1.4 * len(rows) + 0.4))
    axis = figure.add_axes((0.04, 0.0, 0.95, 1 - 0.35 / figure.get_figheight()))
    axis.set(xlim=(0, across * PICTURES), ylim=(down * len(rows), 0), xticks=[], yticks=[])
    axis.axis("off")
    shown = iter(pixels)
    for i, (end, examples) in enumerate(rows):
        top = i * down
        axis.text(-0.08 * size, top + size / 2, end, rotation=90, ha="right", va="center", fontsize=9)
        for j, example in enumerate(examples):
            left = j * across
            axis.imshow(next(shown), extent=(left, left + size, top + size, top), interpolation="nearest")
            right = example.label == example.prediction
            named = (
                _short(example.label) if right else f"{_short(example.label)}→{_short(example.prediction)}"
            )
            said = f"depth {example.depth}\n{named}"
            colour = "black" if right else WRONG
            axis.text(
                left + size / 2, top + 1.04 * size, said, ha="center", va="top", fontsize=7.5, color=colour
            )
    axis.set(xlim=(0, across * PICTURES), ylim=(down * len(rows), 0), aspect="auto")
    figure.suptitle(f"Prediction depth, 0 to {greatest}: validation images at either end", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"
