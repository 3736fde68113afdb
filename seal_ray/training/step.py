"""One optimizer step as a function of a batch, which a GPU replays as one CUDA graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from seal_ray.networks.resnet_module import DRAWING_NOTHING
from seal_ray.phases.optimizers import Sgd
from seal_ray.phases.steps import Descend, Gsam, Masked, Sam
from seal_ray.streams import stream
from seal_ray.training.averaging import average_steps, averaged_parameters
from seal_ray.training.gradients import gradient_passes
from seal_ray.training.optimizer import optimizer_state

if TYPE_CHECKING:
    from seal_ray.data.images import Batch
    from seal_ray.phases.schedule import Phase
    from seal_ray.phases.steps import TakeStep
    from seal_ray.training.run import Run

WARM_UP = 3
"""Steps before a capture, in which libraries set themselves up and pick their kernels."""

Measured = tuple[Tensor, Tensor]
TrainStep: TypeAlias = "Callable[[Batch], Measured]"
Returned = TypeVar("Returned")
Recorder = Callable[[Callable[[], Returned]], tuple[Returned, Callable[[], None]]]


def training_step(run: Run, optimizer: torch.optim.Optimizer, phase: Phase) -> Callable[[], TrainStep]:
    """`begin()` for a phase, to be called at each epoch's start: the step of that epoch.

    The step takes a batch and returns what it measured, each time in the same two tensors: `outcomes` of this
    worker's shards (see gradient_passes), and the norm of the gradient of each of `measured` after reduction,
    before clipping. Nothing that Python decides in it changes from batch to batch, so that on a GPU it is
    captured once and replayed, where `is_captured` says so.
    """
    backward = gradient_passes(run, phase)
    update = _updates(run, optimizer, phase)
    average = average_steps(run)
    size = run.recipe.batch_size // run.recipe.shards
    zeros = functools.partial(torch.zeros, dtype=run.dtype, device=run.world.device)
    outcomes, norms = zeros(run.accumulation, 1 + size), zeros(sum(map(len, measured(run))))

    def program(take_step: TakeStep, batch: Batch) -> Measured:
        shards = run.train.augmented(batch)

        def gradients(*, first_pass: bool = True) -> None:
            backward(shards, outcomes if first_pass else None)

        take_step(gradients, lambda: update(norms))
        average()
        return outcomes, norms

    def record(function: Callable[[], Returned]) -> tuple[Returned, Callable[[], None]]:
        weights, state = run.network.state_dict(), optimizer_state(optimizer, run.network)
        return cuda_graph(function, [*weights.values(), *state.values(), *averaged_parameters(run)])

    captures: dict[TakeStep, TrainStep] = {}

    def begin() -> TrainStep:
        take_step = phase.step.begin(run.network, lambda part: run.parts.parameters(run.network, part))
        if not is_captured(run, phase):
            return lambda batch: program(take_step, batch)
        if take_step not in captures:  # another one may hold other tensors
            captures.clear()
            captures[take_step] = replayed(lambda batch: program(take_step, batch), record)
        return captures[take_step]

    return begin


def measured(run: Run) -> list[list[nn.Parameter]]:
    """The parameters of the early and of the late part that move in the phase at hand."""
    parts = (run.parts.parameters(run.network, part) for part in ("early", "late"))
    return [[p for p in parameters if p.requires_grad] for parameters in parts]


def _updates(run: Run, optimizer: torch.optim.Optimizer, phase: Phase) -> Callable[[Tensor], None]:
    """`update(norms)`: give parts their direction, record the gradients' norms, clip, apply.

    norms: of the gradient of each of `measured`.
    """
    parameters = [p for part in measured(run) for p in part]
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    owned = [(phase.groups[group["group"]], group["params"]) for group in optimizer.param_groups]
    limit = run.recipe.optimizer.clip_norm

    def update(norms: Tensor) -> None:
        for group, held in owned:
            if group.direction is not None:
                at = run.next.generation, run.next.epoch, run.step
                generator = stream(run.recipe.seed, f"direction of {group.part}", *at)
                group.direction([p.grad for p in held if p.grad is not None], generator)
        # One that a network does not use has no gradient.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        torch.stack(torch._foreach_norm(gradients), out=norms)
        if limit is not None:
            nn.utils.clip_grad_norm_(moved, limit)
        optimizer.step()

    return update


def is_captured(run: Run, phase: Phase) -> bool:
    """Whether a phase's steps are captured as a CUDA graph. What is not runs one operation after the other.

    Not captured are: several workers, whose gradients are exchanged by Python; networks that may draw from
    torch's generators, which are seeded in each step; optimizers that count their steps on the CPU; float64,
    since torch's fused SGD reads a float32 learning rate; steps that are not of this package, which may
    compute with numbers of Python; directions of a part's own, which are drawn on the CPU in each step.
    """
    recipe = run.recipe
    return (
        run.world.device.type == "cuda"
        and run.placement.cuda_graphs == "auto"
        and run.world.workers == 1
        and isinstance(run.network, DRAWING_NOTHING)
        and isinstance(recipe.optimizer, Sgd)
        and recipe.precision != "fp64"
        and isinstance(phase.step, Descend | Sam | Gsam | Masked)
        and all(group.direction is None for group in phase.groups)
    )


def replayed(program: TrainStep, record: Recorder[Measured]) -> TrainStep:
    """`program`, recorded with its first batch; every batch is copied to where that one lies and replayed."""
    recorded: list[tuple[Batch, Measured, Callable[[], None]]] = []

    def step(batch: Batch) -> Measured:
        if not recorded:
            fixed = tree_map_only(Tensor, torch.clone, batch)
            recorded.append((fixed, *record(lambda: program(fixed))))
        fixed, result, replay = recorded[0]
        for place, tensor in zip(tree_leaves(fixed), tree_leaves(batch), strict=True):
            if isinstance(place, Tensor):
                place.copy_(tensor)
        replay()
        return result

    return step


def cuda_graph(
    function: Callable[[], Returned], changed: Iterable[Tensor]
) -> tuple[Returned, Callable[[], None]]:
    """Capture `function`: what it returns, filled by each call of the second value, its replay.

    changed: the tensors that it changes and reads; they are left as they were.
    """
    with undone(changed):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Only this thread is held to what a capture allows: another one loads images.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return result, graph.replay


@contextlib.contextmanager
def undone(changed: Iterable[Tensor]) -> Iterator[None]:
    """Put the tensors back, in place, to what they were before."""
    kept = [(tensor, tensor.detach().clone()) for tensor in changed]
    yield
    with torch.no_grad():
        for tensor, before in kept:
            tensor.copy_(before)
