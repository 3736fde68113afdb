"""Timing two sides of a ratio under the same conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One line of the table. `at_least` or `at_most` is the target; neither means reported only."""

    what: str
    value: float
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def shown(self) -> str:
        return f"{self.value:.2f} {self.unit}" if self.unit != "%" else f"{self.value:.2f} %"

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else "reported"

    @property
    def verdict(self) -> str:
        if self.at_least is None and self.at_most is None:
            return ""
        low = self.at_least if self.at_least is not None else float("-inf")
        high = self.at_most if self.at_most is not None else float("inf")
        return "met" if low <= self.value <= high else "missed"


@dataclass(frozen=True)
class Skipped:
    """A line of the table that has no number, and why."""

    what: str
    why: str
    target: str = ""
    verdict: str = ""

    @property
    def shown(self) -> str:
        return f"skipped: {self.why}"


def happened(condition: bool, what: str) -> None:
    """Stop where what a benchmark measures has not happened: its numbers would be of something else."""
    if not condition:
        raise RuntimeError(f"nothing was measured: {what}")


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def best_of(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """The shortest seconds of each side, the sides taking turns, after one unmeasured turn each."""
    for side in sides:
        side()
    times = [[seconds(side) for side in sides] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]
