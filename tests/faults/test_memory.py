"""A worker that trains for long needs no more memory than one that trains for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from seal_ray.recipe import Job
from tests.faults.conftest import make_job
from tests.faults.test_wandb import train, warned

MIB = 2**20


@pytest.mark.faults
def test_a_hundred_epochs_do_not_grow_the_memory_of_a_worker(digits: Path, tmp_path: Path) -> None:
    tracked = {"wandb": "offline"}
    job = make_job(digits, tmp_path, "ban", workers=1, loader="ffcv", tracking=tracked)
    smaller = {
        "data": {"path": str(digits), "per_class": 16},  # two steps an epoch
        "budget": {"epochs": 100, "generation_length": 5},
        "model": {"arch": "resnet18", "width": 4},
    }
    recipe = job.recipe.model_dump(mode="json") | smaller
    job = Job.model_validate(job.model_dump(mode="json") | {"recipe": recipe})
    said = train(job, tmp_path / "child")
    assert warned(said) == []
    memory = [epoch["memory"] / MIB for epoch in said]
    assert len(memory) == 100
    assert max(memory[20:]) - memory[20] < 20, memory[::10]
