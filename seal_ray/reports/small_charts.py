"""Small charts as SVG: histograms, bars within tables, the generation tree. Pure: data in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from seal_ray.analysis.depth import FEWEST
from seal_ray.reports.charts import COLOURS, NARROW, shortened
from seal_ray.reports.svg import Scale, brief, element, line, path, rect, svg, text
from seal_ray.runs.sharing import Branching

PANEL = 292
"""Width of a panel: three beside each other on a page, one on a phone."""


def histogram(
    shares: Mapping[str, Sequence[float]],
    means: Mapping[str, float],
    places: Sequence[str],
    label: str,
    *,
    log: bool,
) -> Markup:
    """Shares (%) of two splits at each of `places`, a bar each beside each other; triangles: their means."""
    width, height, left, top, bottom = PANEL, 214.0, 34.0, 14.0, 62.0
    greatest = max(max(values) for values in shares.values())
    inner = height - top - bottom
    y = Scale(FEWEST, 100, inner, 0, log=True) if log else Scale(0, greatest * 1.06, inner, 0)
    slot = (width - left - 4) / len(places)
    parts = []
    for tick in y.ticks(3):
        at = top + y(tick)
        parts += [
            line(left, at, width, at, class_="grid"),
            text(left - 5, at + 4, brief(tick), class_="tick y"),
        ]
    for i, place in enumerate(places):
        middle = left + slot * (i + 0.5)
        for k, (split, values) in enumerate(shares.items()):
            if values[i] > (FEWEST if log else 0):
                at = y(values[i])
                said = element("title", f"{split}, depth {i} ({place}): {values[i]:.1f} %")
                x = middle + (k - 1) * slot * 0.38
                parts.append(rect(x, top + at, slot * 0.38, inner - at, said, class_=f"bar {split}"))
        turned = f"translate({middle + 3:.1f} {top + inner + 10:.1f}) rotate(-50)"
        parts.append(text(0, 0, place, class_="tick slanted", transform=turned))
    for split, mean in means.items():
        at = left + slot * (mean + 0.5)
        said = element("title", f"{split}: mean depth {mean:.2f}")
        corners = [(at - 4.5, top - 9), (at + 4.5, top - 9), (at, top - 1)]
        parts.append(path(corners, said, closed=True, class_=f"mean {split}"))
    parts.append(line(left, top + inner, width, top + inner, class_="axis"))
    return svg("chart panel", width, height, parts, role="img", aria_label=label)


def interval_bar(
    mean: float, low: float | None, high: float | None, within: tuple[float, float], family: int
) -> Markup:
    """A mean with its interval on a common scale, 0 marked: for a row of a table, which says the numbers."""
    width, height = 150.0, 18.0
    x = Scale(*within, 4, width - 4)
    parts = [line(x(0), 0, x(0), height, class_="zero")]
    if low is not None and high is not None:
        parts.append(line(x(low), height / 2, x(high), height / 2, class_="whisker"))
    parts.append(path([(x(mean), height / 2)] * 2, class_="dot"))
    coloured = element("g", *parts, class_=f"c{family % COLOURS}")
    return svg("chart cell", width, height, [coloured], aria_hidden="true")


def share_bar(parts: Mapping[str, float]) -> Markup:
    """Parts of a whole as a stacked bar: for a row of a table, which says the numbers."""
    width, height = 150.0, 12.0
    total, at, bars = sum(parts.values()) or 1.0, 0.0, []
    for name, part in parts.items():
        bars.append(rect(at, 0, part / total * width, height, class_=f"share {name}"))
        at += part / total * width
    return svg("chart cell", width, height, bars, aria_hidden="true")


TREE_ROW = 24.0


@dataclass(frozen=True)
class Named:
    """What runs are called, their families, and the lengths of their generations, by run id."""

    names: Mapping[str, str]
    families: Mapping[str, int]
    lengths: Mapping[str, int]


def tree_chart(trees: Sequence[tuple[Branching, str]], named: Named, label: str, *, width: float) -> Markup:
    """Which generations of which runs are the same work: a line a setting from left to right, over epochs.

    What several share is one thick line until they part. trees: with the words for their seeds.
    """
    letters = 17 if width > NARROW else 9
    right = 16 + 6.6 * min(letters, max(map(len, named.names.values())))
    longest = max(_end(tree, named.lengths) for tree, _ in trees)
    x = Scale(0, longest, 12, width - right)
    parts: list[Markup] = []
    top = 8.0
    for tree, seeds in trees:
        parts.append(text(12, top + 10, seeds, class_="tick"))
        top += 18
        parts += _grown(tree, x, top, None, named, letters)
        top += TREE_ROW * _leaves(tree) + 8
    for tick in x.ticks(max(3, int(width // 110)), whole=True):
        parts.append(line(x(tick), top, x(tick), top + 4, class_="axis"))
        parts.append(text(x(tick), top + 17, brief(tick), class_="tick x"))
    parts.append(line(x(0), top, x(longest), top, class_="axis"))
    parts.append(text((x(0) + x(longest)) / 2, top + 34, "epochs", class_="title"))
    return svg("chart tree", width, top + 42, parts, role="img", aria_label=label)


def _end(tree: Branching, lengths: Mapping[str, int]) -> int:
    """The epochs of the longest run of a tree."""
    own = (tree.last + 1) * lengths[tree.runs[0]]
    return max([own, *(_end(branch, lengths) for branch in tree.branches)])


def _leaves(tree: Branching) -> int:
    """Rows that a tree takes: one for each run that ends in it."""
    return len(_ending(tree)) + sum(map(_leaves, tree.branches))


def _ending(tree: Branching) -> list[str]:
    """The runs that end with the stretch at the root of a tree."""
    continuing = {run for branch in tree.branches for run in branch.runs}
    return [run for run in tree.runs if run not in continuing]


def _grown(
    tree: Branching, x: Scale, top: float, stem: tuple[float, float] | None, named: Named, letters: int
) -> list[Markup]:
    """A stretch, from its stem on; below each other what branches off it; the names of what ends."""
    length = named.lengths[tree.runs[0]]
    end, level = x((tree.last + 1) * length), top + TREE_ROW / 2
    parts = _limb(tree, x, level, stem, named)
    for branch in tree.branches:
        parts += _grown(branch, x, top, (end, level), named, letters)
        top += TREE_ROW * _leaves(branch)
    for run in _ending(tree):
        family = named.families[run]
        said = shortened(named.names[run], letters)
        look = f"name c{family % COLOURS}"
        parts.append(text(end + 10, top + TREE_ROW / 2 + 4, said, class_=look, data_family=str(family)))
        top += TREE_ROW
    return parts


def _limb(
    tree: Branching, x: Scale, level: float, stem: tuple[float, float] | None, named: Named
) -> list[Markup]:
    """The line of a stretch, with a knot at the end of each generation."""
    first, several = tree.runs[0], len(tree.runs) > 1
    length, family = named.lengths[first], named.families[first]
    look = "shared" if several else f"c{family % COLOURS}"
    toggled = None if several else str(family)
    start, end = x(tree.first * length), x((tree.last + 1) * length)
    parts = []
    if stem is not None:
        bend = start + min(10.0, (end - start) / 3)
        along = (*stem, bend, stem[1], start, level, bend, level)
        curve = "M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*along)
        parts.append(element("path", d=curve, class_=f"limb {look}", data_family=toggled))
        start = bend
    shared = ", ".join(dict.fromkeys(named.names[run] for run in tree.runs))
    span = (
        f"generations {tree.first} to {tree.last}" if tree.last > tree.first else f"generation {tree.first}"
    )
    said = element("title", f"{span}: {'trained once for ' if several else ''}{shared}")
    parts.append(path([(start, level), (end, level)], said, class_=f"limb {look}", data_family=toggled))
    for generation in range(tree.first, tree.last + 1):
        at = x((generation + 1) * length)
        parts.append(path([(at, level)] * 2, class_=f"knot {look}", data_family=toggled))
    if several:
        once = f"once for {len(tree.runs)}"
        parts.append(text((start + end) / 2, level + 17, once, class_="tick x"))
    return parts
