"""The number of workers changes nothing: ranks agree, and accumulation equals parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seal_ray.errors import CheckpointError, ConfigError, SealRayWarning
from seal_ray.recipe import Placement, Recipe
from seal_ray.runs.checkpoint import weights_sha256
from seal_ray.training.loop import evaluate, fit
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import (
    on_ranks,
    open_store,
    tiny_images,
    tiny_recipe,
    train_run,
    without_speeds,
)

pytestmark = pytest.mark.usefixtures("onednn")
SHARDS = (1, 2, 3, 4, 6)
KINDS = [
    {"name": "seal", "ascent_rate": 0.3, "ascent_share": 0.5},
    {"name": "seal", "ascent_loss": "confident_error", "ascent_rate": 0.5, "ascent_share": 0.5},
    {"name": "sam"},
    {"name": "seal", "direction": "random", "ascent_rate": 0.3, "ascent_share": 0.5},
]
"""Methods that differ in how gradients come about: in one pass, of two losses, in two passes, drawn."""


def sharded(method: dict[str, Any], shards: int) -> Recipe:
    """Two generations of two epochs of two steps, each shard of four images or more."""
    budget = {"epochs": 4, "generation_length": 2}
    return tiny_recipe(method, shards=shards, batch_size=24, budget=budget, optimizer={"clip_norm": 2.0})


def digests() -> dict[str, list[tuple[str, str, str]]]:
    """What each epoch of each kind of method leaves behind, for all shards that these workers can share."""
    images, world = tiny_images(train=48), World.current()
    return {
        f"{i} {shards}": [
            (row["weights_sha256"], repr(row["train_loss"]), repr(row["grad_norm_early"]))
            for result in train_run(sharded(method, shards), None, images=images)
            for row in [result.row]
        ]
        for i, method in enumerate(KINDS)
        for shards in SHARDS
        if shards % world.workers == 0
    }


def test_one_digest_per_recipe_for_every_divisor_of_the_shards_as_workers() -> None:
    one = on_ranks(1, digests)[0]
    assert len(one) == len(KINDS) * len(SHARDS)
    assert len({epochs[-1] for epochs in one.values()}) == len(one), "the shards do not matter to the result"
    for workers in SHARDS[1:]:
        for rank in on_ranks(workers, digests):
            assert len(rank) == len(KINDS) * sum(shards % workers == 0 for shards in SHARDS)
            for case, epochs in rank.items():
                assert epochs == one[case], (workers, case)


EDITS = [{"name": "dnr"}, {"name": "swr"}, {"name": "dash"}, {"name": "redo", "threshold": 0.9}]
"""Methods whose edits look at data."""


def edited() -> list[list[tuple[str, str]]]:
    """What they leave behind after three of the epochs, one after the edit, of a network that drops features
    and images that are mixed.
    """
    recipes = [
        sharded(method, 4).model_copy(
            update={
                "model": tiny_recipe(model={"arch": "resnet18", "width": 4, "dropout": 0.2}).model,
                "augment": tiny_recipe(augment={"crop_padding": 2, "then": ["mixup"]}).augment,
            }
        )
        for method in EDITS
    ]
    return [
        [(row["weights_sha256"], repr(row["train_loss"])) for row in (result.row for result in results)]
        for results in (train_run(recipe, None, 3, images=tiny_images(train=48)) for recipe in recipes)
    ]


def test_edits_that_look_at_data_do_not_depend_on_the_number_of_workers() -> None:
    (one,) = on_ranks(1, edited)
    assert len({rows[1] for rows in one}) == 1, "before the edit they are alike"
    assert len({rows[2] for rows in one}) == len(EDITS)
    for workers in (2, 4):
        assert on_ranks(workers, edited) == [one] * workers


@pytest.mark.parametrize("shards", [4, 6])
def test_a_run_goes_on_with_other_workers_after_each_epoch(shards: int, tmp_path: Path) -> None:
    recipe = tiny_recipe(KINDS[0], shards=shards, budget={"epochs": 6, "generation_length": 3})
    on_ranks(1, train_run, recipe, str(tmp_path / "one"))
    divisors = [n for n in range(1, shards + 1) if shards % n == 0]
    for epoch in range(6):
        on_ranks(divisors[-epoch % len(divisors)], train_run, recipe, str(tmp_path / "changing"), 1, 99)
    rows = [open_store(recipe, tmp_path / name).rows() for name in ("one", "changing")]
    assert {row["workers"] for row in rows[1]} == set(divisors)
    assert without_speeds(rows[0], "workers") == without_speeds(rows[1], "workers")


def test_the_threads_of_the_process_change_nothing() -> None:
    def trained(threads: int) -> list[str]:
        torch.set_num_threads(threads)
        results = train_run(recipe, None, images=images, epochs=2)
        assert torch.get_num_threads() == threads
        return [result.row["weights_sha256"] for result in results]

    recipe = tiny_recipe(KINDS[0], model={"arch": "resnet18", "width": 16}, batch_size=64)
    images, before = tiny_images(train=128, size=32), torch.get_num_threads()
    try:
        assert trained(1) == trained(2) == trained(3)
    finally:
        torch.set_num_threads(before)


def test_runs_that_take_turns_leave_each_other_and_the_caller_their_threads() -> None:
    recipe, images, before = tiny_recipe(KINDS[0]), tiny_images(), torch.get_num_threads()
    alone = [result.row["weights_sha256"] for result in train_run(recipe, None, 3, images=images)]
    torch.set_num_threads(3)
    try:
        first, second = (fit(recipe, images, placement=Placement(threads=n)) for n in (1, 2))
        seen = []
        for _ in range(3):
            seen.append(next(first).row["weights_sha256"])
            next(second, None)
            assert torch.get_num_threads() == 3
        del second
        assert torch.get_num_threads() == 3
        assert seen == alone
    finally:
        torch.set_num_threads(before)


def test_going_on_with_threads_set_by_hand_is_warned_of(tmp_path: Path) -> None:
    train_run(tiny_recipe(), tmp_path, 1)
    with pytest.warns(SealRayWarning, match=r"another fingerprint \(threads 1 -> 2\)"):
        train_run(tiny_recipe(), tmp_path, 1, placement=Placement(threads=2))


def test_workers_that_do_not_divide_the_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"placement\.workers: 3 workers cannot share 2 shards"):
        Run(tiny_recipe(), tiny_images(), None, World(0, 3), Placement())


def scores(val: int) -> dict[str, Any]:
    run = Run(tiny_recipe(shards=6), tiny_images(val=val), None, World.current(), Placement())
    return {key: value for key, value in evaluate(run).items() if key != "seconds_eval"}


@pytest.mark.parametrize("val", [1, 17, 257, 600])
def test_each_validation_image_counts_once_at_any_number_of_ranks(val: int) -> None:
    run = Run(tiny_recipe(shards=6), tiny_images(val=val), None, World(), Placement())
    run.network.eval()
    pixels = torch.cat(list(run.validation.loader.batches(torch.arange(val).numpy())))
    x = (pixels.double() / 255 - torch.tensor(run.images.mean)) / torch.tensor(run.images.std)
    labels = run.validation.truth
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
        Run(tiny_recipe(), tiny_images(), store, world, Placement())
    except CheckpointError as error:
        return str(error)
    return "resumed"


def test_a_worker_that_cannot_read_the_checkpoint_ends_them_all(tmp_path: Path) -> None:
    on_ranks(1, train_run, tiny_recipe(), str(tmp_path / "rank0"), 1)  # rank 1 sees another folder
    messages = on_ranks(2, resumed_with_own_storage, str(tmp_path))
    assert messages[0] == messages[1]
    assert "rank1" in messages[0]
