"""Sums over shards: one order for any number of workers, against a recursion that is written down here."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from seal_ray.testing import on_ranks
from seal_ray.training.shard_sums import Partial, WorkersSum, add_partial, places
from seal_ray.training.world import World

Sum = int | tuple["Sum", "Sum"]


def tree(values: list[Sum]) -> Sum:
    """Neighbours in pairs, level by level; the last one of an odd number goes up as it is."""
    if len(values) == 1:
        return values[0]
    pairs: list[Sum] = [(values[i], values[i + 1]) for i in range(0, len(values) - 1, 2)]
    return tree(pairs + values[len(pairs) * 2 :])


def held(shards: int, workers: int, rank: int) -> list[Partial[Sum]]:
    own, partials = shards // workers, list[Partial[Sum]]()
    for shard in range(rank * own, (rank + 1) * own):
        add_partial(partials, Partial(0, shard, shard), shards, lambda left, right: (left, right))
    return partials


def test_six_shards_are_added_as_documented() -> None:
    assert tree(list(range(6))) == (((0, 1), (2, 3)), (4, 5))


@pytest.mark.parametrize("shards", range(1, 65))
def test_the_order_is_that_of_the_tree_for_every_divisor_as_workers(shards: int) -> None:
    for workers in (n for n in range(1, shards + 1) if shards % n == 0):
        total: list[Partial[Sum]] = []
        for rank in range(workers):
            partials = held(shards, workers, rank)
            assert tuple((partial.level, partial.index) for partial in partials) == places(
                shards, workers, rank
            )
            for partial in partials:
                add_partial(total, partial, shards, lambda left, right: (left, right))
        assert [partial.value for partial in total] == [tree(list(range(shards)))]


def test_equal_parts_of_a_power_of_two_are_one_partial_sum() -> None:
    assert [len(places(24, 3, rank)) for rank in range(3)] == [1, 1, 1]
    assert [len(places(6, 2, rank)) for rank in range(2)] == [2, 2]  # {0 1} {2} and {3} {4 5}


def numbers(shard: int, size: int) -> torch.Tensor:
    """Numbers of very different size, whose sum depends on the order."""
    generator = torch.Generator().manual_seed(shard)
    return torch.randn(size, generator=generator) * 10.0 ** torch.randint(-6, 7, (size,), generator=generator)


def totals(shards: int, sizes: tuple[int, ...]) -> list[bytes]:
    world = World.current()
    own, sums = shards // world.workers, []
    for size in sizes:
        partials: list[Partial[torch.Tensor]] = []
        for shard in range(world.rank * own, (world.rank + 1) * own):
            add_partial(partials, Partial(0, shard, numbers(shard, size)), shards, torch.add)
        sums.append(WorkersSum([partial.value for partial in partials], shards, world))
    for total in sums:  # several at once, as the buckets of a network
        total.add()
    return [total.result().numpy().tobytes() for total in sums]


SIZES = (1, 3, 1000)


@pytest.mark.parametrize(
    ("workers", "shards"), [(2, 2), (2, 6), (2, 8), (2, 10), (3, 3), (3, 12), (4, 4), (4, 12), (6, 6)]
)
def test_workers_add_to_the_bits_of_one(workers: int, shards: int) -> None:
    def added(value: Sum, size: int) -> torch.Tensor:
        if isinstance(value, int):
            return numbers(value, size)
        return added(value[0], size) + added(value[1], size)

    order = tree(list(range(shards)))
    for found in on_ranks(workers, totals, shards, SIZES):
        for size, total in zip(SIZES, found, strict=True):
            assert total == added(order, size).numpy().tobytes()
    if shards > 3:
        one_by_one = reduce(torch.add, (numbers(shard, 1000) for shard in range(shards)))
        assert not torch.equal(one_by_one, added(order, 1000)), "the numbers do not tell orders apart"
