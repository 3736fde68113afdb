"""Distributions that a sweep in mode random draws from: {uniform: [low, high]}, log_uniform, integer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from seal_ray.errors import ConfigError

DISTRIBUTIONS = ("uniform", "log_uniform", "integer")
LARGEST = 10**18
"""The largest bound: more than any field takes, little enough for 64 bits."""


def is_distribution(held: Any) -> bool:
    """Whether a value stands for draws."""
    return isinstance(held, dict) and len(held) == 1 and next(iter(held)) in DISTRIBUTIONS


def sample(held: Any, rng: np.random.Generator) -> Any:
    """`held` with each {distribution: [low, high]} in it replaced by a draw of three significant digits."""
    if not is_distribution(held):
        return {key: sample(value, rng) for key, value in held.items()} if isinstance(held, dict) else held
    name, bounds = next(iter(held.items()))
    kinds, what = ((int,), "two whole numbers") if name == "integer" else ((int, float), "two numbers")
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(b) in kinds for b in bounds)
    if not numbers or not all(abs(b) <= LARGEST for b in bounds):
        raise ConfigError(f"{name} needs [low, high], {what} of at most {LARGEST:g} in size")
    low, high = bounds
    if not low < high or (name == "log_uniform" and low <= 0):
        raise ConfigError(f"{name} needs low < high" + (", both above 0" if name == "log_uniform" else ""))
    if name == "integer":
        return int(rng.integers(low, high + 1))
    if name == "log_uniform":
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        drawn = rng.uniform(low, high)
    return min(max(float(f"{drawn:.3g}"), float(low)), float(high))
