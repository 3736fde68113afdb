"""What line charts are made of: values, however they were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = 7
"""Families that have a colour of their own; the next take the same ones again."""


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


def shades(families: Sequence[int]) -> list[int]:
    """For each of some curves its place among those of the same colour, by which dashes tell them apart."""
    colours = [family % COLOURS for family in families]
    return [colours[:place].count(colour) for place, colour in enumerate(colours)]
