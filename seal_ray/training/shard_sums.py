"""Sums over the shards of a batch, added in the same order however many workers hold them.

Floating-point addition depends on its order, so the order is part of what is computed: a balanced binary tree
over the shard indices. Neighbours are added in pairs, then pairs of pairs, and so on; what has no right
neighbour goes up as it is. Six shards are ((0 + 1) + (2 + 3)) + (4 + 5). A worker holds consecutive shards
and adds what the tree adds among them; what the workers are left with is added by the same tree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from seal_ray.training.world import World

Sum = TypeVar("Sum")


@dataclass(frozen=True)
class Partial(Generic[Sum]):
    """The sum of the shards `index * 2**level` up to, but without, `(index + 1) * 2**level`."""

    level: int
    index: int
    value: Sum


def add_partial(
    partials: list[Partial[Sum]], new: Partial[Sum], shards: int, add: Callable[[Sum, Sum], Sum]
) -> None:
    """Append `new` to the partial sums of the shards before it, and add whatever has become a pair.

    partials: in the order of their shards, changed in place. shards: how many the batch has. add(left,
    right): the sum of two neighbours. Once all shards are in, one partial sum is left: the total.
    """
    level, index, value = new.level, new.index, new.value
    while (width := -(-shards // 2**level)) > 1:
        if index % 2:
            if not partials or (partials[-1].level, partials[-1].index) != (level, index - 1):
                break  # the left neighbour is another worker's
            value = add(partials.pop().value, value)
        elif index + 1 < width:
            break
        level, index = level + 1, index // 2
    partials.append(Partial(level, index, value))


@functools.cache
def places(shards: int, workers: int, rank: int) -> tuple[tuple[int, int], ...]:
    """Level and index of the partial sums that a worker is left with when it has added its own shards."""
    held: list[Partial[None]] = []
    own = shards // workers
    for shard in range(rank * own, (rank + 1) * own):
        add_partial(held, Partial(0, shard, None), shards, lambda left, right: None)
    return tuple((partial.level, partial.index) for partial in held)


class WorkersSum:
    """The total of the partial sums of all workers, on its way while this process goes on computing.

    Every worker owns a piece of the result: it receives that piece of everybody's partial sums, adds them in
    the order of the tree, and sends the sum to all. Each worker makes the same calls in the same order.
    """

    def __init__(self, partials: Sequence[Tensor], shards: int, world: World) -> None:
        """Begin to exchange. partials: this worker's, flat tensors of one size, at its `places`; they are
        overwritten.
        """
        workers, size = world.workers, partials[0].numel()
        self._shards = shards
        self._places = [places(shards, workers, rank) for rank in range(workers)]
        self._received: Tensor | None = None
        self._work: dist.Work | None
        if workers == 2 and all(len(held) == 1 for held in self._places):
            # Two numbers have one sum, whoever adds them, so a plain reduction does, which waits once.
            self._total = partials[0]
            self._work = dist.all_reduce(self._total, async_op=True)
            return
        piece = -(-size // workers)
        sent = torch.stack(
            [F.pad(one, (0, workers * piece - size)).view(workers, piece) for one in partials], 1
        )
        self._received = sent.new_empty(sum(map(len, self._places)), piece)
        self._gathered = sent.new_empty(workers * piece)
        self._total = self._gathered[:size]
        pieces = [len(held) for held in self._places], [len(partials)] * workers  # received, sent
        self._work = dist.all_to_all_single(self._received, sent.flatten(0, 1), *pieces, async_op=True)

    def add(self) -> None:
        """Add this worker's piece and begin to send it to all."""
        if self._received is None:
            return
        _wait(self._work)
        total: list[Partial[Tensor]] = []
        everyone = (place for held in self._places for place in held)
        for (level, index), value in zip(everyone, self._received, strict=True):
            add_partial(total, Partial(level, index, value), self._shards, Tensor.add_)
        (whole,) = total
        self._work = dist.all_gather_single(self._gathered, whole.value, async_op=True)

    def result(self) -> Tensor:
        """The total, flat, the same on every worker."""
        _wait(self._work)
        return self._total


def _wait(work: dist.Work | None) -> None:
    assert work is not None, "asynchronous operations return one"
    work.wait()
