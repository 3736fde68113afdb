"""A step is a function of tensors on the device, which never waits, costs little and can be replayed.

No GPU is needed: torch's device `meta` computes nothing, but refuses to give a number to Python, and whatever
an operator does on the CPU or copies from it can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seal_ray.data.images import Batch
from seal_ray.data.loaders import ResidentLoader
from seal_ray.phases.schedule import Phase, Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.streams import stream
from seal_ray.training.averaging import AVERAGED, averaged_parameters
from seal_ray.training.optimizer import build_optimizer, optimizer_state, set_learning_rate
from seal_ray.training.run import Run
from seal_ray.training.step import is_captured, replayed, training_step, undone
from seal_ray.training.world import World
from tests.runs import MAIN_CASES, case_id, same_tensors, tiny_images, tiny_recipe

CPU, META, CUDA = (torch.device(name) for name in ("cpu", "meta", "cuda"))
CHANGES: dict[str, dict[str, Any]] = {
    **{case_id(method): {"method": method} for method in MAIN_CASES},
    "augmented": {
        "augment": {
            "crop_padding": 2,
            "then": ["cutmix", "mixup", "cutout", "colour_jitter", "randaugment"],
        }
    },
    "dropout": {"model": {"arch": "resnet18", "width": 4, "dropout": 0.3}},
    "clipped": {"optimizer": {"clip_norm": 1.0}},
    "one shard": {"shards": 1},
    "averaged": {"averaging": {"name": "ema", "decay": 0.5}},
}


class Log(TorchDispatchMode):
    """The operators that are called, and the kinds of device that their tensors are on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, set[str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Torch cannot say what this one would do without the GPU: it changes its arguments.
        out = None if func is torch.ops.aten._fused_sgd_.tensor_lr else func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        self.calls.append((func, {tensor.device.type for tensor in tensors}))
        return out

    @property
    def computing(self) -> int:
        """How many are no views."""
        return sum(not func.is_view for func, _ in self.calls if str(func).startswith("aten"))


def run_of(recipe: Recipe, device: torch.device) -> Run:
    run = Run(recipe, tiny_images(), None, World(device=device), Placement())
    run.carried["teacher"] = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    run.network.train()
    run.first = 0
    return run


def prepared(run: Run, phase: Phase, lr: float = 0.05) -> Callable[[Batch], Any]:
    """The step of the first epoch of a phase."""
    optimizer = run.optimizer_for(phase)
    set_learning_rate(optimizer, phase, lr, [{"train_loss": 1.0}], 0)
    return training_step(run, optimizer, phase)()


def phases_of(run: Run) -> list[Phase]:
    """The phases of a run whose steps differ."""
    phases = [p for g in range(2) for p in run.recipe.method.phases(g, run.recipe.budget)]
    return list({(phase.groups, phase.loss, phase.step): phase for phase in phases}.values())


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_nothing_of_the_cpu_is_in_a_step_nor_between_steps_of_resident_images(
    changes: dict[str, Any],
) -> None:
    run = run_of(tiny_recipe(**changes), META)
    resident = ResidentLoader.filled(run.train.loader, (16, 16), 12, META)
    run.train = replace(run.train, loader=resident)
    fed = bool(run.recipe.augment.then or run.mask)  # these draws are made on the CPU as the epoch goes on
    for phase in phases_of(run):
        step, batches = prepared(run, phase), run.batches(Position(0, 0))
        batch, first = next(batches), True
        for _ in range(2):
            with Log() as log:
                step(batch)
                if first and not fed:
                    batch = next(batches)
            first = False
            assert len(log.calls) > 100
            # lift_fresh: a tensor made of numbers of Python, which are copied from the CPU
            wrong = [str(f) for f, devices in log.calls if "cpu" in devices or "lift_fresh" in str(f)]
            assert wrong == []


def test_a_step_computes_at_most_fifteen_operators_more_than_a_bare_loop() -> None:
    run = run_of(tiny_recipe(shards=1), CPU)
    (phase, *_) = phases_of(run)
    step = prepared(run, phase)
    kept = [torch.zeros_like(tensor) for tensor in step(next(run.batches(Position(0, 0))))]
    batches = run.batches(Position(0, 1))
    step(next(batches))
    with Log() as ours:
        for place, tensor in zip(kept, step(next(batches)), strict=True):
            place.copy_(tensor)

    ((images, labels, _),) = next(run.training_epoch(Position(0, 0)))
    optimizer = torch.optim.SGD(run.network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):  # the first step makes momentum
        with Log() as bare:
            optimizer.zero_grad()
            F.cross_entropy(run.network(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
    assert bare.computing > 300
    assert ours.computing <= bare.computing + 15


@pytest.mark.parametrize("index", [0, 3])
def test_controls_move_the_ascending_part_as_far_as_the_ascent_and_the_others_alike(index: int) -> None:
    moved: dict[str, tuple[Tensor, Tensor]] = {}
    for direction in ("gradient", "random", {"noise": 0.5}):
        method = {"name": "seal", "ascent_rate": 0.3, "direction": direction}
        run = run_of(tiny_recipe(method, optimizer={"momentum": 0.0}), CPU)
        run.next, run.step = Position(1, 0), index
        parts = [run.parts.parameters(run.network, part) for part in ("early", "late")]
        before = [torch.cat([p.detach().flatten() for p in part]) for part in parts]
        prepared(run, phases_of(run)[1])(next(run.batches(Position(1, 0))))
        after = [torch.cat([p.detach().flatten() for p in part]) for part in parts]
        early, late = (now - then for now, then in zip(after, before, strict=True))
        moved[str(direction)] = early.double(), late
    (climbed, late), (drawn, other), (noisy, another) = moved.values()
    assert torch.equal(late, other)
    assert torch.equal(late, another)
    z = torch.randn(len(drawn), generator=stream(0, "direction of early", 1, 0, index)).double()
    assert drawn.norm().item() == pytest.approx(climbed.norm().item(), rel=1e-3)
    assert F.cosine_similarity(drawn, z, dim=0).item() == pytest.approx(1, abs=1e-4)
    noise = noisy + climbed  # it descends where the ascent climbs
    assert noise.norm().item() == pytest.approx(0.5 * climbed.norm().item(), rel=1e-3)
    assert F.cosine_similarity(noise, -z, dim=0).item() == pytest.approx(1, abs=1e-4)


class Tape(TorchDispatchMode):
    """A stand-in for a CUDA graph: the operators of a function, done again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            if not func.is_view:
                for place, tensor in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(place, Tensor):
                        place.copy_(tensor)


def recorder(changed: Iterable[Tensor]) -> Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]:
    """What records as `cuda_graph` does, whose capture computes nothing."""

    def record(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with undone(changed), Tape() as tape:
            result = function()
        return result, tape.replay

    return record


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_step_replayed_without_python_follows_batches_weights_and_learning_rates(
    changes: dict[str, Any],
) -> None:
    recipe = tiny_recipe(**changes)
    for index in range(len(phases_of(run_of(recipe, CPU)))):
        found = []
        for replays in (False, True):
            run = run_of(recipe, CPU)
            phase = phases_of(run)[index]
            optimizer = build_optimizer(run.network, run.parts, phase, recipe.optimizer, fused=True)
            step = training_step(run, optimizer, phase)()
            if replays:
                state = optimizer_state(optimizer, run.network)
                assert state, "momentum is there before the first step"
                changed = [*run.network.state_dict().values(), *state.values(), *averaged_parameters(run)]
                step = replayed(step, recorder(changed))
            measured = []
            for epoch, rate in enumerate((0.05, 0.2)):
                set_learning_rate(optimizer, phase, rate, [{"train_loss": 1.0}], 0)
                for batch in run.batches(Position(0, epoch)):
                    measured += [tensor.clone() for tensor in step(batch)]
            carried = run.carried.get(AVERAGED, {})
            found.append(
                (measured, run.network.state_dict(), optimizer_state(optimizer, run.network), carried)
            )
        (plain, weights, momentum, average), (again, same_weights, same_momentum, same_average) = found
        assert bool(average) == ("averaging" in changes)
        same_tensors(average, same_average, "average")
        assert all(map(torch.equal, plain, again))
        same_tensors(weights, same_weights, "weights")
        same_tensors(momentum, same_momentum, "momentum")


def test_the_fused_optimizer_is_one_operator_of_the_gpu() -> None:
    run = run_of(tiny_recipe({"name": "seal"}), CPU)
    phase = phases_of(run)[1]
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = run.network.to(CUDA)
        optimizer = build_optimizer(network, run.parts, phase, run.recipe.optimizer, fused=True)
        set_learning_rate(optimizer, phase, 0.1, [], 0)
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        with Log() as log:
            optimizer.step()
    assert len(optimizer.param_groups) == 2
    computing = [(str(func), devices) for func, devices in log.calls if str(func).startswith("aten")]
    assert computing == [("aten._fused_sgd_.tensor_lr", {"cuda"})] * 2


@pytest.mark.parametrize("direction", ["random", {"noise": 0.5}], ids=["random", "noisy"])
def test_what_is_drawn_in_each_step_is_not_replayed(direction: Any) -> None:
    run = run_of(tiny_recipe({"name": "seal", "direction": direction}), CPU)
    run.world = World(device=CUDA)
    assert {phase.ascends: is_captured(run, phase) for phase in phases_of(run)} == {False: True, True: False}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *[({"method": method}, True) for method in MAIN_CASES],
        ({"model": {"arch": "resnet50", "width": 4}}, True),
        ({"model": {"arch": "timm/resnet10t"}}, False),
        ({"optimizer": {"name": "adamw"}}, False),
        ({"precision": "fp64"}, False),
    ],
)
def test_what_a_gpu_replays_is_what_the_documentation_says(changes: dict[str, Any], expected: bool) -> None:
    run = run_of(tiny_recipe(**changes), CPU)
    assert not any(is_captured(run, phase) for phase in phases_of(run))
    run.world = World(device=CUDA)
    assert [is_captured(run, phase) for phase in phases_of(run)] == [expected] * len(phases_of(run))
    for world, graphs in ((World(workers=2, device=CUDA), "auto"), (World(device=CUDA), "off")):
        run.world, run.placement = world, Placement.model_validate({"cuda_graphs": graphs})
        assert not any(is_captured(run, phase) for phase in phases_of(run))
