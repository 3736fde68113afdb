"""What line charts are made of: values, however they were found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A line of a chart: at each x the mean over seeds, and where there are several their least and greatest.

    family decides its colour, shade its dashes; n: the most seeds at any x.
    """

    name: str
    family: int
    shade: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class Stretch:
    """A phase in a run: from so many epochs trained to so many."""

    start: int
    end: int
    generation: int
    name: str
    ascends: bool
    edits: bool  # whether weights are changed in place as it begins
