"""The workers that train one run together, and the few things they say to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from seal_ray.errors import SealRayError

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class World:
    """This process among the workers of a run. With more than one, torch.distributed is initialised."""

    rank: int = 0
    workers: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> World:
        """The world of the default process group, or of this process alone when there is none."""
        if not dist.is_initialized():
            return cls(device=torch.device(device))
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes: rank 0."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over workers, in place. Exact where at most one worker's entry is not 0."""
        if self.workers > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors`, in place, by those of rank 0: one broadcast for each type of number."""
        if self.workers == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_type.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.broadcast(flat, src=0)
            for tensor, leaders in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(leaders.view(tensor.shape))

    def lead(self, action: Callable[[], Answer]) -> Answer:
        """Rank 0 runs `action`; every worker gets its value, or raises the SealRayError that it raised.

        The value is a small plain object. No worker is left waiting for one that failed.
        """
        if self.workers == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.leads:
            outcome = list(_attempt(action))
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return cast("Answer", outcome[0])

    def together(self, action: Callable[[], Answer]) -> Answer:
        """Every worker runs `action`; when it raises a SealRayError on any, all raise the first of them."""
        if self.workers == 1:
            return action()
        value, error = _attempt(action)
        errors: list[SealRayError | None] = [None] * self.workers
        dist.all_gather_object(errors, error)
        for first in errors:
            if first is not None:
                raise first
        return cast("Answer", value)


def _attempt(action: Callable[[], Answer]) -> tuple[Answer | None, SealRayError | None]:
    try:
        return action(), None
    except SealRayError as error:
        return None, error
