"""Run ids of all shipped jobs, and the defaults that stay out of them, as they were when last raised.

What a recipe computes may change only together with `SEMANTICS`: then stored runs count as other work. To
accept a change, raise it and run `python -m tests.golden.test_identity`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from seal_ray.methods import METHODS, Method
from seal_ray.phases import averaging, data_edits, edits, losses, schedule, steps
from seal_ray.recipe import Recipe, load_job
from seal_ray.runs.lineage import SEMANTICS, generation_keys, run_id
from seal_ray.sweeps.file import is_sweep, load_sweep

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "identity.json"
JOBS = sorted(
    p.relative_to(ROOT).as_posix()
    for kind in ("runs", "sweeps", "studies")
    for p in ROOT.glob(f"jobs/{kind}/**/*.yaml")
)


def recipes(path: str) -> list[Recipe]:
    """The recipes of a run's or a sweep's file."""
    file = ROOT / path
    return [run.job.recipe for run in load_sweep(file).runs] if is_sweep(file) else [load_job(file).recipe]


def ids(path: str) -> list[str]:
    """`<run id> <first digits of the key of each generation>` of each run on some data set."""
    return [
        " ".join([run_id(recipe, "data"), *(key[:6] for key in generation_keys(recipe, "data"))])
        for recipe in recipes(path)
    ]


def defaults() -> dict[str, str]:
    """Every default that may stay out of a key: of recipes, and of what phases are made of."""
    return dict(sorted((*_of_model(Recipe, "recipe"), *_of_phases())))


def _of_model(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _of_model(kind, f"{prefix}.{name}")
        elif is_dataclass(field.default):  # a choice by name
            named = {"name": getattr(field.default, "name", None), **vars(field.default)}
            yield from ((f"{prefix}.{name}.{key}", repr(value)) for key, value in named.items())
        elif not field.is_required():
            yield f"{prefix}.{name}", repr(field.default)


def _of_phases() -> Iterator[tuple[str, str]]:
    modules = [
        averaging,
        data_edits,
        edits,
        losses,
        schedule,
        steps,
        *(sys.modules[m.__module__] for m in METHODS.values()),
    ]
    for module in modules:
        for cls in vars(module).values():
            if not (isinstance(cls, type) and is_dataclass(cls) and cls.__module__ == module.__name__):
                continue
            for field in fields(cls):
                if field.default is not MISSING and not issubclass(cls, Method):
                    yield f"{cls.__qualname__}.{field.name}", repr(field.default)


def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.parametrize("path", JOBS)
def test_the_runs_of_shipped_jobs_are_those_they_were(path: str) -> None:
    assert ids(path) == golden()["ids"][path]


def test_every_shipped_job_and_no_other_is_recorded() -> None:
    assert sorted(golden()["ids"]) == JOBS


def test_no_default_changes_without_another_semantics() -> None:
    """A new field is added here; a changed default would silently take old runs for the new work."""
    assert golden()["semantics"] == SEMANTICS
    assert golden()["defaults"] == defaults()


if __name__ == "__main__":
    found = {"semantics": SEMANTICS, "defaults": defaults(), "ids": {path: ids(path) for path in JOBS}}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
