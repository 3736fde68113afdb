"""A process that is killed, anywhere, and started again computes what it would have computed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from seal_ray.phases.schedule import Position, first_epochs
from tests.faults.child import COMMITTED, UNCOMMITTED, same_run, start, store_of
from tests.runs import case_id, tiny_recipe

METHODS: list[dict[str, Any]] = [
    {"name": "seal", "ascent_rate": {"rise": 0.5, "start": 0.1}, "ascent_share": 0.5},
    {"name": "llf"},
    {"name": "ban"},
    {"name": "dsd"},
]


def to_the_end(process: Any) -> None:
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.faults
@pytest.mark.parametrize("method", METHODS, ids=case_id)
def test_kills_from_outside_at_random_moments_change_nothing(method: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny_recipe(method)
    to_the_end(start(recipe, tmp_path / "whole"))
    rows = store_of(recipe, tmp_path / "whole").rows()
    epoch = sum(row["seconds_compute"] + row["seconds_eval"] for row in rows) / len(rows)
    chance = random.Random(case_id(method))
    store, kills = store_of(recipe, tmp_path / "killed"), 0
    for _ in range(8):
        goal = len(store.rows()) + chance.choice([0, 1])
        process = start(recipe, store.folder)
        while len(store.rows()) < goal and process.is_alive():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 2 * epoch))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    to_the_end(start(recipe, store.folder))
    assert kills >= 6
    same_run(recipe, tmp_path / "whole", store.folder)


def die_everywhere(method: dict[str, Any], epochs: list[int], folder: Path) -> int:
    """Kill at each point of some epochs of generation 1 and of the first of 2; returns how often."""
    recipe = tiny_recipe(method)
    to_the_end(start(recipe, folder / "whole"))
    starts = first_epochs(recipe.method.phases(1, recipe.budget))
    positions = [*(Position(1, epoch) for epoch in epochs), Position(2, 0)]
    where = [
        (position, point)
        for i, position in enumerate(positions)
        for point in (*UNCOMMITTED, COMMITTED[i % 2])
        if point != "edit" or position.epoch in starts
    ]
    for position, point in where:
        process = start(recipe, folder / "killed", position, point)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{point} of {position} was not reached"
    to_the_end(start(recipe, folder / "killed"))
    same_run(recipe, folder / "whole", folder / "killed")
    return len(where)


@pytest.mark.faults
@pytest.mark.parametrize("method", METHODS, ids=case_id)
def test_kills_at_every_delicate_point_change_nothing(method: dict[str, Any], tmp_path: Path) -> None:
    # With half a generation of ascent: its first epoch, its last, the first of relearning, a border.
    assert die_everywhere(method, [0, 1, 2, 3], tmp_path) >= 27


def test_kills_around_a_generation_border_and_an_edit_change_nothing(tmp_path: Path) -> None:
    method = {"name": "seal", "forget": "llf", "ascent_share": 0.5, "ascent_rate": 0.3}
    assert die_everywhere(method, [3], tmp_path) == 11
