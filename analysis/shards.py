"""The Hessian of one moment's loss over several processes, each of which has a share of the images."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from seal_ray.analysis.hessian import Batches, HessianOperator, Objective, average, hessian_operator

Shares = Sequence[list[tuple[Tensor, Tensor]]]


MakeOperator = Callable[..., HessianOperator]
"""`hessian_operator`, or one that is called like it."""


@contextlib.contextmanager
def sharding(count: int) -> Iterator[MakeOperator]:
    """A `hessian_operator` over `count` processes for the length of the block: this one and Ray actors.

    Without Ray the shares are computed here one after the other. Either way the numbers are those of one
    operator up to rounding. A share is whole batches, so there are never more of them than batches.
    """
    actors: list[Any] = []

    def make(
        network: nn.Module,
        batches: Batches,
        loss: Objective,
        parameters: Sequence[nn.Parameter],
        *,
        graph_bytes: int = 2 << 30,
    ) -> HessianOperator:
        shares = _shares(list(batches), count)

        def here(share: Batches) -> HessianOperator:
            return hessian_operator(network, share, loss, parameters, graph_bytes=graph_bytes // len(shares))

        if not _on_ray():
            operators = [here(share) for share in shares]
            return average(operators, [operator.images for operator in operators])
        first = len(actors)
        actors.extend(_start_actor((network, share, loss, parameters, graph_bytes)) for share in shares[1:])
        return _spread(here(shares[0]), actors[first:])

    try:
        yield make if count > 1 else hessian_operator
    finally:
        for actor in actors:
            import ray

            ray.kill(actor)


class Share:
    """What runs in an actor: the operator of a share of the images."""

    def __init__(self, problem: tuple[Any, ...]) -> None:
        network, share, loss, parameters, graph_bytes = problem
        self._operator = hessian_operator(network, share, loss, parameters, graph_bytes=graph_bytes)

    def facts(self) -> tuple[int, Tensor, float]:
        """Number of images, gradient and loss."""
        return self._operator.images, self._operator.gradient, self._operator.loss

    def products(self, vectors: Tensor) -> Tensor:
        """The share's Hessian times each row."""
        return self._operator.products(vectors)


def _shares(batches: list[tuple[Tensor, Tensor]], count: int) -> Shares:
    """The batches in `count` runs of nearly equal length, none empty."""
    count = min(count, len(batches))
    ends = [len(batches) * i // count for i in range(count + 1)]
    return [batches[start:end] for start, end in pairwise(ends)]


def _spread(first: HessianOperator, actors: Sequence[Any]) -> HessianOperator:
    """The mean over this process's share and those of the actors, which work at the same time."""
    import ray

    facts = [(first.images, first.gradient, first.loss), *ray.get([a.facts.remote() for a in actors])]
    images = sum(count for count, _, _ in facts)
    weights = [count / images for count, _, _ in facts]

    def products(vectors: Tensor) -> Tensor:
        theirs = [actor.products.remote(vectors) for actor in actors]
        found: Tensor = weights[0] * first.products(vectors)
        for weight, answer in zip(weights[1:], theirs, strict=True):
            found.add_(ray.get(answer).to(found), alpha=weight)
        return found

    gradient = torch.zeros_like(first.gradient)
    for weight, (_, share, _) in zip(weights, facts, strict=True):
        gradient.add_(share.to(gradient), alpha=weight)
    loss = sum(weight * share for weight, (_, _, share) in zip(weights, facts, strict=True))
    return HessianOperator(first.dim, gradient, loss, images, products)


def _on_ray() -> bool:
    """Whether this process may start actors."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _start_actor(problem: tuple[Any, ...]) -> Any:
    """An actor with as much of a GPU as this process has."""
    import ray

    context = ray.get_runtime_context()
    gpus = context.get_assigned_resources().get("GPU", 0.0) if context.get_actor_id() else 0.0
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    return ray.remote(Share).options(num_cpus=1, num_gpus=gpus, runtime_env=environment).remote(problem)
