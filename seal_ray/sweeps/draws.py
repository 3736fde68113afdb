"""Where the values of a drawn setting come from: random numbers, every choice in turn, a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from seal_ray.errors import ConfigError

DISTRIBUTIONS = ("uniform", "log_uniform", "integer")
LARGEST_BOUND = 10**18
"""The largest bound of a distribution: more than any field takes, little enough for 64 bits."""


class Draws(Protocol):
    """Values of one setting after the other. name: of what is drawn, the same in every setting."""

    def place(self, name: str, count: int) -> int:
        """One of so many places, from 0 on."""
        ...

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number within the bounds, both included."""
        ...

    def number(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number within the bounds, evenly or, `log`, evenly by its logarithm."""
        ...


@dataclass(frozen=True)
class Random:
    """Draws of a generator, independent of each other."""

    rng: np.random.Generator

    def place(self, name: str, count: int) -> int:
        """See `Draws`."""
        return int(self.rng.integers(count))

    def whole(self, name: str, low: int, high: int) -> int:
        """See `Draws`."""
        return int(self.rng.integers(low, high + 1))

    def number(self, name: str, low: float, high: float, *, log: bool) -> float:
        """See `Draws`."""
        if log:
            return math.exp(self.rng.uniform(math.log(low), math.log(high)))
        return float(self.rng.uniform(low, high))


class Every:
    """Every combination in turn, the last choice fastest; of a range its two ends, or a ConfigError."""

    def __init__(self, *, ends: bool, taken: Sequence[tuple[str, int, int]] = ()) -> None:
        self._ends = ends
        self._taken = [*taken]
        """Of each choice in the order of asking, its name, and which place was taken of how many."""
        self._asked = 0

    def place(self, name: str, count: int) -> int:
        """See `Draws`."""
        if self._asked == len(self._taken):
            self._taken.append((name, 0, count))
        self._asked += 1
        return self._taken[self._asked - 1][1]

    def whole(self, name: str, low: int, high: int) -> int:
        """See `Draws`."""
        return (low, high)[self._end(name)]

    def number(self, name: str, low: float, high: float, *, log: bool) -> float:
        """See `Draws`."""
        return (low, high)[self._end(name)]

    def _end(self, name: str) -> int:
        if not self._ends:
            raise ConfigError("is a range, of which a grid cannot take every value; list the values")
        return self.place(name, 2)

    def next(self) -> bool:
        """Go on to the next combination; False after the last one."""
        self._asked = 0
        while self._taken and self._taken[-1][1] + 1 == self._taken[-1][2]:
            self._taken.pop()
        if not self._taken:
            return False
        name, place, count = self._taken.pop()
        self._taken.append((name, place + 1, count))
        return True

    def others(self) -> Iterator[tuple[str, int, Every]]:
        """Each place that was not taken of a choice, with the same before and the first of all after it."""
        for i, (name, taken, count) in enumerate(self._taken):
            for place in range(count):
                if place != taken:
                    before = [*self._taken[:i], (name, place, count)]
                    yield name, place, Every(ends=self._ends, taken=before)


def every_combination(ends: bool) -> Iterator[Every]:
    """See `Every`."""
    every = Every(ends=ends)
    yield every
    while every.next():
        yield every


def every_choice(ends: bool) -> Iterator[Every]:
    """Each place of each choice at least once, mostly with the first of the others."""
    left, seen = [Every(ends=ends)], set[tuple[str, int]]()
    while left:
        every = left.pop(0)
        yield every
        for name, place, other in every.others():
            if place and (name, place) not in seen:
                seen.add((name, place))
                left.append(other)


def is_distribution(held: Any) -> bool:
    """Whether a value stands for draws."""
    return isinstance(held, dict) and len(held) == 1 and next(iter(held)) in DISTRIBUTIONS


def sample(held: Any, draws: Draws, name: str) -> Any:
    """`held` with each {distribution: [low, high]} in it replaced by a draw of three significant digits.

    name: of what holds it. ConfigError for bounds that cannot be used.
    """
    if not is_distribution(held):
        if isinstance(held, dict):
            return {key: sample(value, draws, f"{name}.{key}") for key, value in held.items()}
        return held
    kind, bounds = next(iter(held.items()))
    kinds, what = ((int,), "two whole numbers") if kind == "integer" else ((int, float), "two numbers")
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(b) in kinds for b in bounds)
    if not numbers or not all(abs(b) <= LARGEST_BOUND for b in bounds):
        raise ConfigError(f"{kind} needs [low, high], {what} of at most {LARGEST_BOUND:g} in size")
    low, high = bounds
    if not low < high or (kind == "log_uniform" and low <= 0):
        raise ConfigError(f"{kind} needs low < high" + (", both above 0" if kind == "log_uniform" else ""))
    if kind == "integer":
        return draws.whole(name, low, high)
    drawn = draws.number(name, float(low), float(high), log=kind == "log_uniform")
    return min(max(float(f"{drawn:.3g}"), float(low)), float(high))
