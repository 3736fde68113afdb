"""What a page is made of: sections of figures and tables, as values for the template."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from seal_ray.storage.paths import AnyPath
from seal_ray.sweeps.leaderboard import Line
from seal_ray.sweeps.statistics import Difference, Estimate


@dataclass(frozen=True)
class TableRow:
    """Cells in the order of the headings. family: the method it is toggled with; None: it always shows."""

    cells: tuple[str, ...]
    family: int | None = None


@dataclass(frozen=True)
class Table:
    """A table. text: how many columns, from the left, hold words; code: columns in a fixed-width font."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]
    text: int = 1
    code: tuple[int, ...] = ()
    folded: bool = False  # shown on demand: long, and of interest to few


@dataclass(frozen=True)
class Figure:
    """A chart with its caption, once for a page and once for a phone."""

    caption: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class SmallChart:
    """A small chart under a heading of its own."""

    heading: str
    family: int
    chart: Markup


@dataclass(frozen=True)
class SmallCharts:
    """Small charts beside each other under one caption; key: swatches (class, words)."""

    caption: str
    charts: tuple[SmallChart, ...]
    key: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Picture:
    """An example image as a data: URI, with what is said below it and instead of it."""

    uri: str
    said: tuple[str, str]  # two lines
    alt: str
    wrong: bool


@dataclass(frozen=True)
class Grid:
    """Example images of a setting."""

    heading: str
    family: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Missing:
    """Why there is nothing to show, and the command that would change it."""

    reason: str
    command: str = ""


@dataclass(frozen=True)
class Text:
    """A text in full, shown on demand."""

    heading: str
    text: str
    family: int | None = None


Block = Table | Figure | SmallCharts | Grid | Missing | Text


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, then blocks; folded: what to say instead until they are asked for."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    folded: str = ""

    def kinds(self) -> list[tuple[str, Block]]:
        """Each block with the name of its kind, by which the template tells them apart."""
        return [(type(block).__name__, block) for block in self.blocks]


@dataclass(frozen=True)
class Calls:
    """How commands call what the page is of. storage: as it was given on the command line."""

    path: Path
    storage: str | None = None

    def command(self, *words: str, storage: bool = True) -> str:
        """`seal-ray <words>`, with {} standing for the target, as a shell takes it."""
        there = ["--storage", self.storage] if storage and self.storage is not None else []
        return shlex.join(["seal-ray", *(str(self.path) if word == "{}" else word for word in words), *there])


def short_path(path: AnyPath) -> str:
    """A path as one would type it here."""
    if isinstance(path, Path) and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def number(value: float | None, form: str = ".2f") -> str:
    """A number with a true minus; a dash for None."""
    return "–" if value is None else f"{value:{form}}".replace("-", "−")


def span(found: Estimate | Difference | None, form: str = "z.2f") -> str:
    """An interval; where it has no width, why."""
    if found is None or found.low is None or found.high is None:
        return "–"
    return alike(found) or f"{number(found.low, form)} … {number(found.high, form)}"


def alike(found: Estimate | Difference) -> str:
    """What to say in place of an interval without width; empty where it has one.

    Accuracies are multiples of one image: equal values of a few seeds are no certainty.
    """
    if found.low is None or found.high is None or found.high - found.low >= 1e-9 * max(1, abs(found.mean)):
        return ""
    return f"the same in all {found.n} seeds"


def standing(line: Line) -> tuple[str, ...]:
    """n, mean top-1, its interval, the difference to the baseline, its interval and p, each as a cell."""
    top1, difference = line.top1, line.difference
    return (
        str(line.runs) if line.finished == line.runs else f"{line.finished} of {line.runs}",
        number(top1.mean if top1 else None),
        span(top1),
        number(difference.mean if difference else None, "+z.2f"),
        span(difference, "+z.2f"),
        number(difference.p if difference else None, ".3g"),
    )


def seeds(count: int) -> str:
    """A number of seeds in words."""
    return "1 seed" if count == 1 else f"{count} seeds"


def several(values: Sequence[float], form: str = ".2f") -> str:
    """The mean of values, with their range where there are several."""
    if not values:
        return "–"
    mean = number(sum(values) / len(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({number(min(values), form)} … {number(max(values), form)})"
