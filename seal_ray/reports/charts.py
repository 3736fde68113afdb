"""Line charts as SVG: curves with bands, direct labels, phases as ribbons below. Pure: data in, text out.

What moves when a reader zooms lies in an inner svg (class `plot`), whose viewBox the script changes; the
numbers that it needs are in `data-chart`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from seal_ray.reports.svg import Scale, around, brief, element, line, path, rect, spread, svg, text

COLOURS = 7
"""Families that have a colour of their own; the next take the same ones again."""
WIDE, NARROW = 920, 358
"""Widths that charts are drawn in, in CSS pixels: for a page, and for a phone."""
RIBBON = 15
CROWDED, SLANT = 8, 14
"""With more curves than this their names are far from their ends: pixels for lines that lead there."""
LABEL = 14
"""Pixels between the names of curves that end at the same level, at least."""
MOST_RANGES = 6
"""With more curves than this their ranges would hide everything, and are only said when read off."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart: at each x the mean over seeds, and where there are several their least and greatest.

    family decides its colour, shade its dashes and width; n: the seeds; partial: some seeds have points that
    are left out, since others have none there.
    """

    name: str
    family: int
    shade: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    partial: bool = False


@dataclass(frozen=True)
class Stretch:
    """A phase in a run: from so many epochs trained to so many."""

    start: int
    end: int
    generation: int
    name: str
    ascends: bool
    edits: bool  # whether weights are changed in place as it begins


@dataclass(frozen=True)
class Axes:
    """What the axes say. ticks: of x, where they are not round numbers; whole: x is whole.

    digits: of y, when it is read off.
    """

    x_title: str
    y_title: str
    ticks: tuple[tuple[float, str], ...] = ()
    log: bool = False
    whole: bool = False
    digits: int = 2
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Mark:
    """A symbol on a chart: `>` `<` triangles at an edge; said: what it stands for."""

    x: float
    y: float
    shape: str
    said: str


@dataclass(frozen=True)
class Ribbon:
    """The phases of a setting, below the chart of its curve."""

    name: str
    family: int
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Box:
    """Where the axes are: the inner rectangle, in pixels of the chart."""

    left: float
    top: float
    width: float
    height: float


def line_chart(
    curves: Sequence[Curve],
    axes: Axes,
    label: str,
    *,
    width: float = WIDE,
    height: float = 340,
    ribbons: Sequence[Ribbon] = (),
    marks: Sequence[Mark] = (),
    dots: bool = False,
    named: bool = True,
    swarm: bool = False,
    frontier: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Curves with their bands. dots: show the points; named: each with its name at its right end.

    swarm: curves are points, those at the same x beside each other. frontier: the corners of a line behind
    the curves, as values.

    Ascents in `ribbons` are shaded behind the curves, and borders of generations are lines where all agree.
    """
    letters = 17 if width > NARROW else 9
    slant = SLANT if len(curves) > CROWDED else 0
    right = 12 + slant + 7.7 * max(min(letters, len(curve.name)) for curve in curves) if named else 10
    left, top = (70 if ribbons else 46), (24 if axes.y_title else 10)
    below = 44 + RIBBON * len(ribbons) + (6 if ribbons else 0)
    box = Box(left, top, width - left - right, height - top - 44)
    xs = [v for curve in curves for v in curve.x]
    # All there is, with room for whole dots.
    all_x = (min(xs), max(xs)) if min(xs) < max(xs) and not dots else around(xs, 0.03)
    x = Scale(*(axes.x_range or all_x), 0, box.width)
    low, high = axes.y_range or around(v for curve in curves for v in (*curve.low, *curve.high))
    y = Scale(low, high, box.height, 0, axes.log)
    ranges = len(curves) <= MOST_RANGES or swarm
    # Pixels by which curves are moved aside, so that their ranges at the same x do not hide each other.
    apart = 5.0 if dots and ranges and any(curve.n > 1 for curve in curves) else 0.0
    middle = (len(curves) - 1) / 2
    aside = _swarm(curves, box) if swarm else [(i - middle) * apart for i in range(len(curves))]
    drawn = [_drawn(curve, x, y, by, dots, ranges) for curve, by in zip(curves, aside, strict=True)]
    drawn += [_led(curve, x, y) for curve in curves if named and not swarm and curve.x[-1] < max(xs)]
    behind = [path([(x(a), y(b)) for a, b in frontier], class_="frontier")] if frontier else []
    plot = [*_shaded(ribbons, x, box), *behind, *drawn]
    parts = [
        _grid(x, y, axes, box),
        _inner("plot", box, plot),
        *(_ends(curves, y, box, letters, slant) if named else ()),
        *(_mark(mark, x, y, box) for mark in marks),
        *_ribbons(ribbons, x, box),
        text(box.left + box.width / 2, box.top + box.height + 34 + below - 44, axes.x_title, class_="title"),
    ]
    total = box.top + box.height + below
    held = _numbers(curves, axes, (x.low, x.high), (y.low, y.high), box)
    return svg("chart lines", width, total, parts, role="img", aria_label=label, data_chart=held)


def _numbers(
    curves: Sequence[Curve], axes: Axes, x: tuple[float, float], y: tuple[float, float], box: Box
) -> str:
    """What the script needs to say values and to zoom, as JSON."""
    held: dict[str, Any] = {
        "x": x,
        "y": y,
        "log": axes.log,
        "whole": axes.whole,
        "box": [box.left, box.top, box.width, box.height],
        "xTitle": axes.x_title,
        "ticks": axes.ticks,
        "curves": [],
    }
    for curve in curves:
        said = {"y": curve.y, **({"low": curve.low, "high": curve.high} if curve.n > 1 else {})}
        numbers = {
            key: [float(f"{v:.3g}") if axes.log else round(v, axes.digits) for v in values]
            for key, values in said.items()
        }
        xs = [float(f"{v:.6g}") for v in curve.x]
        held["curves"].append({"name": curve.name, "family": curve.family, "x": xs, **numbers})
    return json.dumps(held, separators=(",", ":"))


def _inner(name: str, box: Box, parts: Iterable[Markup]) -> Markup:
    return element(
        "svg",
        *parts,
        class_=name,
        x=box.left,
        y=box.top,
        width=box.width,
        height=box.height,
        viewBox=f"0 0 {box.width:g} {box.height:g}",
        preserveAspectRatio="none",
    )


def _grid(x: Scale, y: Scale, axes: Axes, box: Box) -> Markup:
    """Ticks with their grid lines, and the title of the y axis above it."""
    bottom = box.top + box.height
    parts = [text(2, box.top - 12, axes.y_title, class_="title y")] if axes.y_title else []
    for tick in y.ticks():
        at = box.top + y(tick)
        parts.append(line(box.left, at, box.left + box.width, at, class_="grid"))
        parts.append(text(box.left - 7, at + 4, brief(tick), class_="tick y"))
    marked = axes.ticks or [
        (tick, brief(tick)) for tick in x.ticks(max(3, int(box.width // 70)), whole=axes.whole)
    ]
    for tick, said in marked:
        at = box.left + x(tick)
        parts.append(line(at, bottom, at, bottom + 4, class_="axis"))
        parts.append(text(at, bottom + 17, said, class_="tick x"))
    parts.append(line(box.left, bottom, box.left + box.width, bottom, class_="axis"))
    return element("g", *parts, class_="ticks")


def shades(families: Sequence[int]) -> list[int]:
    """For each of some curves its place among those of the same colour, by which dashes tell them apart."""
    colours = [family % COLOURS for family in families]
    return [colours[:place].count(colour) for place, colour in enumerate(colours)]


def line_style(family: int, shade: int = 0) -> str:
    """The classes that give a curve its colour, one of 4 kinds of dashes and one of 4 widths.

    shade: its place among the curves of its colour; sixteen of them look different.
    """
    colour = family % COLOURS
    return f"c{colour} d{(colour + shade) % 4} w{shade // 4 % 4}"


def _drawn(curve: Curve, x: Scale, y: Scale, shift: float, dots: bool, ranges: bool) -> Markup:
    across = [x(a) + shift for a in curve.x]
    points = list(zip(across, map(y, curve.y), strict=True))
    parts = []
    if ranges and curve.n > 1:
        above = list(zip(across, map(y, curve.high), strict=True))
        below = list(zip(across, map(y, curve.low), strict=True))
        if dots:
            parts += [path([high, low], class_="range") for high, low in zip(above, below, strict=True)]
        else:
            parts.append(path([*above, *reversed(below)], closed=True, class_="band"))
    parts.append(path(points, class_="curve"))
    if dots or len(points) == 1:
        # Lines of no length with round ends: dots that stay round when the reader zooms.
        parts += [path([(a, b), (a, b)], class_="dot") for a, b in points]
    return element("g", *parts, class_=line_style(curve.family, curve.shade), data_family=str(curve.family))


def _led(curve: Curve, x: Scale, y: Scale) -> Markup:
    """From the end of a curve that ends sooner than others to its name, at the level that it reached."""
    end, level = x(curve.x[-1]), y(curve.y[-1])
    parts = (
        path([(end, level), (x.end, level)], class_="leader"),
        path([(end, level)] * 2, class_="dot"),
    )
    return element("g", *parts, class_=f"c{curve.family % COLOURS}", data_family=str(curve.family))


def _swarm(curves: Sequence[Curve], box: Box) -> list[float]:
    """Pixels by which points at the same x are moved aside, the lowest first, within a third of the chart."""
    aside = [0.0] * len(curves)
    for at in {curve.x for curve in curves}:
        same = sorted((i for i, curve in enumerate(curves) if curve.x == at), key=lambda i: curves[i].y)
        step = min(12.0, box.width / 3 / len(same))
        for place, i in enumerate(same):
            aside[i] = (place - (len(same) - 1) / 2) * step
    return aside


def _ends(curves: Sequence[Curve], y: Scale, box: Box, letters: int, slant: float) -> list[Markup]:
    """The name of each curve beside its last point, moved apart where they would overlap.

    slant: pixels across which a line leads from the point's level to the name.
    """
    wanted = [box.top + y(curve.y[-1]) for curve in curves]
    placed = spread(wanted, LABEL, box.top + 4, box.top + box.height)
    parts = []
    for curve, at in zip(curves, placed, strict=True):
        said, look = shortened(curve.name, letters), f"name c{curve.family % COLOURS}"
        start, family = box.left + box.width + 4, str(curve.family)
        if slant:
            lead = path([(start, box.top + y(curve.y[-1])), (start + slant, at)], class_="lead")
            colour = f"c{curve.family % COLOURS}"
            parts.append(element("g", lead, class_=colour, data_family=family))
        parts.append(text(start + slant + 4, at + 4, said, class_=look, data_family=family))
    return parts


def shortened(name: str, letters: int) -> str:
    """A name of at most so many letters, of which its end tells more apart than its middle."""
    head = letters // 3
    return name if len(name) <= letters else f"{name[:head]}…{name[head + 1 - letters :]}"


def _mark(mark: Mark, x: Scale, y: Scale, box: Box) -> Markup:
    at, level = box.left + x(mark.x), box.top + y(mark.y)
    tip = 6 if mark.shape == ">" else -6
    corners = [(at - tip, level - 5), (at - tip, level + 5), (at, level)]
    return path(corners, element("title", mark.said), closed=True, class_="mark")


def _shaded(ribbons: Sequence[Ribbon], x: Scale, box: Box) -> list[Markup]:
    """Ascents, once where several settings ascend in the same epochs, and borders that all have in common."""
    ascents = dict.fromkeys((s.start, s.end) for one in ribbons for s in one.stretches if s.ascends)
    parts = [rect(x(start), 0, x(end) - x(start), box.height, class_="ascent") for start, end in ascents]
    borders = [
        {b.start for a, b in pairwise(one.stretches) if b.generation > a.generation} for one in ribbons
    ]
    common = sorted(set.intersection(*borders)) if borders else []
    return parts + [line(x(at), 0, x(at), box.height, class_="border") for at in common]


def _ribbons(ribbons: Sequence[Ribbon], x: Scale, box: Box) -> list[Markup]:
    """A row a setting: its phases, ascents in another colour and hatched."""
    parts, high = [], RIBBON - 4
    for i, ribbon in enumerate(ribbons):
        top = box.top + box.height + 25 + RIBBON * i
        bars, edits = [], []
        for one in ribbon.stretches:
            start, end, first = x(one.start), x(one.end), one.start + 1
            epochs = f"epoch {first}" if one.end == first else f"epochs {first} to {one.end}"
            how = ", an ascent or its control" * one.ascends + ", after an edit of weights" * one.edits
            said = element("title", f"{ribbon.name}: {one.name}{how}, generation {one.generation}, {epochs}")
            kind = "up" if one.ascends else "odd" if one.generation % 2 else "even"
            bars.append(rect(start + 0.5, 0, end - start - 1, high, said, class_=f"phase {kind}"))
            if one.edits:
                edits.append(path([(start, 0), (start, high)], class_="edit"))
        inner = _inner("strip", Box(box.left, top, box.width, high), [*bars, *edits])
        look = f"tick y c{ribbon.family % COLOURS} name"
        name = text(box.left - 7, top + 9, shortened(ribbon.name, 10), class_=look)
        parts.append(element("g", inner, name, data_family=str(ribbon.family)))
    return parts
