"""A run whose numbers become infinite says where and why, and keeps its last good state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from seal_ray.errors import Diverged, SealRayError
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement
from seal_ray.testing import on_ranks
from tests.runs import open_store, tiny_recipe, train_run, without_speeds

LATER: dict[str, Any] = {"method": {"name": "seal", "ascent_rate": 1e30}}
"""Generation 0 goes well; the first ascent explodes."""


def test_a_learning_rate_that_is_too_high_is_said_with_place_and_remedy(tmp_path: Path) -> None:
    recipe = tiny_recipe(optimizer={"lr": 1e6})
    with pytest.raises(Diverged) as raised:
        train_run(recipe, tmp_path)
    store = open_store(recipe, tmp_path)
    status = store.status()
    message = str(raised.value)
    assert isinstance(raised.value, SealRayError)
    assert message.startswith(f"run {store.run_id}: {status['metric']} is not finite in generation 0, epoch ")
    for text in (
        f"epoch {status['epoch']}",
        "phase learn",
        "lr_early 1e+06",
        "lower optimizer.lr",
        "clip_norm",
    ):
        assert text in message
    assert status["status"] == "diverged"
    assert (status["generation"], status["phase"]) == (0, "learn")
    assert status["lr_early"] == status["lr_late"] == pytest.approx(1e6)
    assert status["reason"] in message


def test_the_checkpoint_before_stays_and_is_usable(tmp_path: Path) -> None:
    recipe = tiny_recipe(**LATER)
    with pytest.raises(Diverged, match=r"in generation 1, epoch 0, phase ascend, at lr_early -1e\+29"):
        train_run(recipe, tmp_path)
    store = open_store(recipe, tmp_path)
    latest = store.latest()
    assert latest is not None
    assert latest.position == Position(0, 3)
    assert all(tensor.isfinite().all() for tensor in latest.weights.values())
    assert [row["global_epoch"] for row in store.rows()] == [0, 1, 2, 3]
    assert store.rows() == list(latest.rows)
    status = store.status()
    assert (status["status"], status["generation"], status["epoch"], status["phase"]) == (
        "diverged",
        1,
        0,
        "ascend",
    )
    assert (status["lr_early"], status["lr_late"]) == pytest.approx((-1e29, 0.1))
    assert {path.name for path in (tmp_path / "moments").iterdir()} == {"g000-init", "g000-relearned"}


def test_no_number_that_is_not_finite_is_ever_written(tmp_path: Path) -> None:
    for name, changes in (
        ("a", LATER),
        ("b", {"optimizer": {"lr": 1e6}}),
        ("c", {"optimizer": {"lr": 1e38}}),
    ):
        with pytest.raises(Diverged):
            train_run(tiny_recipe(**changes), tmp_path / name)
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl")]
    assert len(written) > 5

    def refuse(text: str) -> None:
        pytest.fail(f"{text} was written")

    for path in written:
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)


def test_trying_again_ends_the_same_way(tmp_path: Path) -> None:
    messages = []
    for _ in range(2):
        with pytest.raises(Diverged) as raised:
            train_run(tiny_recipe(**LATER), tmp_path)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert open_store(tiny_recipe(**LATER), tmp_path).status()["status"] == "diverged"


@pytest.mark.parametrize("eval_every", [1, 99])
def test_weights_that_explode_in_the_last_step_are_noticed_in_the_same_epoch(
    tmp_path: Path, eval_every: int
) -> None:
    # One step: its loss is finite, what it does to the weights is not.
    recipe = tiny_recipe(
        batch_size=30,
        budget={"epochs": 2, "generation_length": 2},
        optimizer={"lr": 3e38, "warmup_share": 0.0},
    )
    with pytest.raises(Diverged, match="generation 0, epoch 0"):
        train_run(recipe, tmp_path, placement=Placement(eval_every=eval_every))
    status = open_store(recipe, tmp_path).status()
    assert status["metric"] != "train_loss"
    assert open_store(recipe, tmp_path).latest() is None


def diverges(changes: dict[str, Any], folder: str) -> tuple[str, str]:
    try:
        train_run(tiny_recipe(**changes), folder)
    except Diverged as error:
        return "diverged", str(error)
    return "went on", ""


def test_on_two_ranks_both_end_with_the_same_error(tmp_path: Path) -> None:
    one, two = on_ranks(2, diverges, LATER, str(tmp_path / "two"))
    assert one == two == diverges(LATER, str(tmp_path / "one"))
    assert one[0] == "diverged"
    stores = [open_store(tiny_recipe(**LATER), tmp_path / name) for name in ("one", "two")]
    assert stores[0].status() == stores[1].status()
    assert without_speeds(stores[0].rows(), "workers") == without_speeds(stores[1].rows(), "workers")


def test_a_run_that_only_gets_worse_is_not_diverged(tmp_path: Path) -> None:
    rows = [result.row for result in train_run(tiny_recipe(optimizer={"lr": 3.0}), tmp_path)]
    assert len(rows) == 12
    assert all(math.isfinite(row["train_loss"]) for row in rows)
