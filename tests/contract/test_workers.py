"""The number of workers changes nothing: ranks agree, and accumulation equals parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.run import Run
from seal_ray.snapshot import weights_sha256
from seal_ray.train import evaluate
from seal_ray.world import World
from tests.ranks import on_ranks
from tests.runs import (
    CASES,
    MAIN_CASES,
    Execution,
    case_id,
    checkpoint,
    open_store,
    same_state,
    tiny_images,
    tiny_recipe,
    train_run,
)


def digests(method: dict[str, Any], shards: int) -> list[str]:
    recipe = tiny_recipe(method, shards=shards, budget={"epochs": 8, "generation_length": 4})
    return [result.row["weights_sha256"] for result in train_run(recipe, None)]


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("method", MAIN_CASES, ids=case_id)
def test_after_each_epoch_every_rank_holds_the_same_bits(method: dict[str, Any], workers: int) -> None:
    ranks = on_ranks(workers, digests, method, workers)
    assert all(rank == ranks[0] for rank in ranks)
    assert len(set(ranks[0])) == 8


@pytest.mark.parametrize("method", CASES, ids=case_id)
def test_two_shards_in_one_process_give_the_bits_of_two_ranks(method: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny_recipe(method, shards=2)
    on_ranks(1, train_run, recipe, str(tmp_path / "one"))
    on_ranks(2, train_run, recipe, str(tmp_path / "two"))
    run_id = open_store(recipe, tmp_path).run_id
    for generation in range(3):
        for epoch in range(4):
            one = checkpoint(tmp_path / "one", run_id, generation, epoch)
            two = checkpoint(tmp_path / "two", run_id, generation, epoch)
            for snapshot in (one, two):
                for row in snapshot.rows:
                    row.pop("workers")  # type: ignore[attr-defined]
            same_state(one, two)


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    recipe = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, shards=2)
    on_ranks(1, train_run, recipe, str(tmp_path / "one"))
    on_ranks(2, train_run, recipe, str(tmp_path / "changing"), 5, 99)
    on_ranks(1, train_run, recipe, str(tmp_path / "changing"), 2, 99)
    on_ranks(2, train_run, recipe, str(tmp_path / "changing"))
    ends = [open_store(recipe, tmp_path / name).rows()[-1] for name in ("one", "changing")]
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["val_loss"] == ends[1]["val_loss"]


def test_workers_that_do_not_divide_the_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"placement\.workers: 3 workers cannot share 2 shards"):
        Run(tiny_recipe(), tiny_images(), None, World(0, 3), Execution())


def scores(val: int) -> dict[str, Any]:
    run = Run(tiny_recipe(shards=6), tiny_images(val=val), None, World.current(), Execution())
    return {key: value for key, value in evaluate(run).items() if key != "seconds_eval"}


@pytest.mark.parametrize("val", [1, 17, 257, 600])
def test_each_validation_image_counts_once_at_any_number_of_ranks(val: int) -> None:
    run = Run(tiny_recipe(shards=6), tiny_images(val=val), None, World(), Execution())
    run.network.eval()
    pixels = torch.cat(list(run.validation.batches(torch.arange(val).numpy())))
    x = (pixels.double() / 255 - torch.tensor(run.images.mean)) / torch.tensor(run.images.std)
    labels = torch.from_numpy(run.validation.labels)
    with torch.no_grad():
        logits = run.network(x.permute(0, 3, 1, 2).float())
    expected = 100 * int((logits.argmax(1) == labels).sum()) / val
    one, two, three = (on_ranks(n, scores, val)[0] for n in (1, 2, 3))
    assert one == two == three
    assert one["val_top1"] == pytest.approx(expected)
    assert one["val_loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4
    )
    assert one["val_top5"] == pytest.approx(100)  # three classes


def test_the_digest_covers_buffers_and_names() -> None:
    state = {"a": torch.zeros(2), "b.running_mean": torch.zeros(2)}
    changed = {"a": torch.zeros(2), "b.running_mean": torch.tensor([0.0, 1e-30])}
    renamed = {"a": torch.zeros(2), "c.running_mean": torch.zeros(2)}
    assert len({weights_sha256(s) for s in (state, changed, renamed)}) == 3
    strided = {"a": torch.zeros(2), "b.running_mean": torch.zeros(2, 2)[:, 0]}
    assert weights_sha256(strided) == weights_sha256(state)


def resumed_with_own_storage(folder: str) -> str:
    world = World.current()
    store = open_store(tiny_recipe(), f"{folder}/rank{world.rank}")
    try:
        Run(tiny_recipe(), tiny_images(), store, world, Execution())
    except CheckpointError as error:
        return str(error)
    return "resumed"


def test_a_worker_that_cannot_read_the_checkpoint_ends_them_all(tmp_path: Path) -> None:
    on_ranks(1, train_run, tiny_recipe(), str(tmp_path / "rank0"), 1)  # rank 1 sees another folder
    messages = on_ranks(2, resumed_with_own_storage, str(tmp_path))
    assert messages[0] == messages[1]
    assert "rank1" in messages[0]
