"""All that analyses have found of several runs, to be drawn beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seal_ray.analysis.moments import Moment, Target
from seal_ray.analysis.results import read_result


@dataclass(frozen=True)
class Found:
    """What was found of a moment of a run: results by analysis."""

    label: str  # what runs of one setting have in common
    seed: int
    length: int  # epochs of a generation
    moment: Moment
    epochs: int
    results: Mapping[str, Mapping[str, Any]]


def gather(target: Target) -> list[Found]:
    """All results of a target's runs that can be read, in the order of runs and moments."""
    found = []
    for subject in target.subjects:
        for moment in subject.moments():
            held = {what: read_result(moment, what) for what in ("depth", "curvature")}
            results = {what: one["result"] for what, one in held.items() if one is not None}
            epochs = next((one["epochs"] for one in held.values() if one is not None), 0)
            if results:
                recipe = subject.job.recipe
                found.append(Found(subject.label, recipe.seed, recipe.budget.length, moment, epochs, results))
    return found
