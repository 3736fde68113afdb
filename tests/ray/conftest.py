"""A small prepared data set and one local Ray for the tests that need a real one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from seal_ray.distributed.launch import ray_session
from seal_ray.recipe import Job
from seal_ray.tracking.terminal import RunProgress

Screen = tuple[RunProgress, io.StringIO]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with a logical CPU a core."""
    with ray_session(None):
        yield


@pytest.fixture
def screen() -> tuple[RunProgress, io.StringIO]:
    """A console and what it printed."""
    text = io.StringIO()
    return RunProgress(Console(file=text, width=120)), text


def small_job(
    data: Path, storage: Path, method: object, recipe: dict[str, object] | None = None, **placement: object
) -> Job:
    """Three generations of two epochs of a tiny network on the digits, for two workers."""
    return Job.model_validate(
        {
            "name": "small",
            "recipe": {
                "data": {"path": str(data)},
                "model": {"arch": "resnet18", "width": 4},
                "method": method,
                "budget": {"epochs": 6, "generation_length": 2},
                "optimizer": {"warmup_share": 0.0},
                "batch_size": 32,
                "shards": 4,
                **(recipe or {}),
            },
            "placement": {"workers": 2, "storage": str(storage), **placement},
        }
    )
