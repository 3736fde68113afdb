"""Every method, at every epoch boundary, on 1 to 4 ranks: going on equals never having stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import on_ranks
from tests.runs import (
    CASES,
    MAIN_CASES,
    case_id,
    checkpoint,
    open_store,
    same_state,
    tiny_recipe,
    train_run,
    without_speeds,
)


def undisturbed_and_interrupted(method: dict[str, Any], shards: int, folder: str) -> None:
    recipe = tiny_recipe(method, shards=shards)
    train_run(recipe, f"{folder}/undisturbed")
    for _ in range(recipe.budget.epochs):
        train_run(recipe, f"{folder}/interrupted", epochs=1)  # builds everything anew, from the checkpoint


@pytest.mark.parametrize(
    ("workers", "method"),
    [(1, method) for method in CASES] + [(n, method) for n in (2, 3, 4) for method in MAIN_CASES],
    ids=lambda value: case_id(value) if isinstance(value, dict) else str(value),
)
def test_a_run_resumed_at_every_epoch_boundary_is_bit_identical(
    workers: int, method: dict[str, Any], tmp_path: Path
) -> None:
    shards = {1: 2, 2: 4, 3: 3, 4: 4}[workers]
    on_ranks(workers, undisturbed_and_interrupted, method, shards, str(tmp_path))
    recipe = tiny_recipe(method, shards=shards)
    run_id = open_store(recipe, tmp_path).run_id
    for generation in range(3):
        for epoch in range(4):
            same_state(
                checkpoint(tmp_path / "undisturbed", run_id, generation, epoch),
                checkpoint(tmp_path / "interrupted", run_id, generation, epoch),
            )
    rows = [open_store(recipe, tmp_path / name).rows() for name in ("undisturbed", "interrupted")]
    assert without_speeds(rows[0]) == without_speeds(rows[1])
    assert [row["global_epoch"] for row in rows[1]] == list(range(12))
    moments = [
        {p.name: (p / "weights.safetensors").read_bytes() for p in (tmp_path / name / "moments").iterdir()}
        for name in ("undisturbed", "interrupted")
    ]
    assert moments[0] == moments[1]
