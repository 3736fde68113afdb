"""Scales and their ticks: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps low..high of the data to start..end of a drawing, linearly, or by logarithm where low > 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; values outside of low..high lie outside of the drawing."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5, *, whole: bool = False) -> list[float]:
        """Round numbers within low..high: 1, 2, 2.5 or 5 times a power of ten apart, or powers of ten.

        whole: whole numbers only.
        """
        if self.log:
            return decades(self.low, self.high, about)
        return steps(self.low, self.high, about, whole=whole)


def steps(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Multiples within low..high of the smallest of 1, 2, 2.5, 5 x 10^k that gives at most `about` + 1."""
    rough = max((high - low) / about, float(whole))
    power = 10.0 ** math.floor(math.log10(rough))
    nice = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * one for one in nice if power * one >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def decades(low: float, high: float, about: int) -> list[float]:
    """Powers of ten within low..high, every so many of them, at most `about` + 1."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first) / about))
    return [10.0**power for power in range(first, last + 1) if power % every == 0]


def around(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of values, widened by a share of itself on either side; of one value by 1."""
    some = list(values)
    low, high = min(some), max(some)
    room = (high - low) * margin or 1.0
    return low - room, high + room


def brief(value: float) -> str:
    """A number of a tick: 0.5, 12, 1,200, 1e-6."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    text = f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels near those wanted, at least `gap` apart, within low..high where they fit.

    In the order of `wanted`.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = [0.0] * len(wanted)
    before = low - gap
    for i in order:
        placed[i] = before = max(wanted[i], before + gap)
    after = high + gap
    for i in reversed(order):
        placed[i] = after = min(placed[i], after - gap)
    return placed
