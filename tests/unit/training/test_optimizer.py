"""Optimizers of phases: rates, groups, state by parameter name, clipping."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from seal_ray.networks import Parts, build, stages
from seal_ray.phases.optimizers import OPTIMIZERS, Sgd
from seal_ray.phases.schedule import Group, Phase, Rise, owner
from seal_ray.streams import stream
from seal_ray.training.optimizer import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
    signed_rate,
    state_copies,
)
from tests.runs import keeping, open_store, tiny_images, tiny_recipe, train_run

PARTS = Parts(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"), "layer3")
SEAL = (Group("early", lr=0.01, weight_decay=0.0, ascend=True), Group("late"))


def network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    net = build("resnet18", classes=3, stem="imagenet", width=2, generator=stream(0, "init"))
    assert stages(net) == PARTS.stages
    return net.to(memory_format=memory_format)


def optimizer(
    net: nn.Module, groups: tuple[Group, ...], **settings: float
) -> tuple[torch.optim.Optimizer, Phase]:
    phase = Phase("x", 4, groups)
    return build_optimizer(net, PARTS, phase, Sgd(**settings)), phase


def step(net: nn.Module, sgd: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    sgd.step()


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (SEAL, {"conv1": -0.002, "bn1": -0.002, "layer2": -0.002, "layer3": 0.2, "fc": 0.2}),
        ((Group("late", lr=0.5),), {"conv1": 0.0, "layer2": 0.0, "layer3": 0.1, "fc": 0.1}),
        ((Group("early", lr=0.0), Group("late")), {"conv1": 0.0, "layer3": 0.2}),
        (
            (Group("early"), Group("late", ascend=True), Group("head")),
            {"layer2": 0.2, "layer4": -0.2, "fc": 0.2},
        ),
        ((Group("all"), Group("layer1", ascend=True, lr=0.3)), {"conv1": 0.2, "layer1": -0.06, "fc": 0.2}),
        ((Group("all", ascend=True), Group("head", lr=0.0)), {"conv1": -0.2, "layer4": -0.2, "fc": 0.0}),
    ],
)
def test_signed_rates_of_stages_by_hand(groups: tuple[Group, ...], expected: dict[str, float]) -> None:
    sgd, phase = optimizer(network(), groups)
    set_learning_rate(sgd, phase, 0.2, [], 0)
    assert {s: signed_rate(sgd, phase, PARTS, s) for s in expected} == pytest.approx(expected)


@pytest.mark.parametrize("groups", [SEAL, (Group("late"),), (Group("all"), Group("head", lr=0.0))])
def test_a_stage_moves_by_its_signed_rate_or_is_frozen(groups: tuple[Group, ...]) -> None:
    net = network()
    sgd, phase = optimizer(net, groups, momentum=0.0, weight_decay=0.0)
    set_learning_rate(sgd, phase, 0.2, [], 0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step(net, sgd, seed=1)
    for name, p in net.named_parameters():
        rate = signed_rate(sgd, phase, PARTS, name.split(".")[0])
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), before[name] - rate * p.grad)
        assert p.requires_grad == (rate != 0)


def test_weight_decay_of_a_group_is_a_multiple_of_the_configured_one() -> None:
    groups = (Group("early", weight_decay=0.0), Group("late", weight_decay=-1.0), Group("head"))
    net = network()
    sgd, phase = optimizer(net, groups, momentum=0.0, weight_decay=0.1)
    set_learning_rate(sgd, phase, 0.5, [], 0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    sgd.step()
    factors = {"early": 1.0, "late": 1.05, "head": 0.95}  # norms and biases too
    for name, p in net.named_parameters():
        part = "head" if name.startswith("fc") else "early" if PARTS.holds("early", name) else "late"
        torch.testing.assert_close(p.detach(), factors[part] * before[name])


def test_the_rate_follows_the_measured_loss_of_a_rise() -> None:
    rise = Rise(0.5, start=0.1, factor=2)
    sgd, phase = optimizer(network(), (Group("early", lr=rise, ascend=True), Group("late")))
    rows = [{"train_loss": loss} for loss in (9.0, 1.0, 1.2, 1.6)]
    seen = []
    for epoch in range(3):
        set_learning_rate(sgd, phase, 0.2, rows[: 2 + epoch], epoch)
        seen.append([signed_rate(sgd, phase, PARTS, stage) for stage in ("conv1", "fc")])
    assert seen == [pytest.approx(s) for s in ([-0.02, 0.2], [-0.04, 0.2], [-0.02, 0.2])]


def test_a_group_that_owns_nothing_is_left_out() -> None:
    sgd, phase = optimizer(network(), (Group("late"), Group("layer3"), Group("layer4"), Group("head")))
    assert [entry["group"] for entry in sgd.param_groups] == [1, 2, 3]
    assert owner(phase.groups, PARTS, "layer1") is None
    set_learning_rate(sgd, phase, 0.3, [], 0)
    assert signed_rate(sgd, phase, PARTS, "layer4") == 0.3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "groups",
    [(Group("all"),), (Group("late"), Group("early")), tuple(Group(s) for s in PARTS.stages)],
    ids=["one", "two", "seven"],
)
def test_state_moves_to_another_layout_of_groups(
    groups: tuple[Group, ...], memory_format: torch.memory_format
) -> None:
    one, two = network(), network(memory_format)
    sgd, phase = optimizer(one, (Group("early"), Group("late")))
    set_learning_rate(sgd, phase, 0.1, [], 0)
    for seed in (1, 2):
        step(one, sgd, seed)
    state = {name: tensor.clone() for name, tensor in optimizer_state(sgd, one).items()}
    assert state.keys() == {f"{name}:momentum_buffer" for name, _ in one.named_parameters()}

    two.load_state_dict(one.state_dict())
    other, phase = optimizer(two, groups)
    set_learning_rate(other, phase, 0.1, [], 0)
    load_optimizer_state(other, two, state)
    back = optimizer_state(other, two)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(back[f"{name}:momentum_buffer"].stride() == p.stride() for name, p in two.named_parameters())
    step(one, sgd, 3)
    step(two, other, 3)
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_state_of_parameters_that_no_longer_move_is_left_out() -> None:
    net = network()
    sgd, phase = optimizer(net, (Group("all"),))
    set_learning_rate(sgd, phase, 0.1, [], 0)
    step(net, sgd, 1)
    state = optimizer_state(sgd, net)
    late, _ = optimizer(net, (Group("late"),))
    assert optimizer_state(late, net) == {}  # a new phase starts without momentum
    load_optimizer_state(late, net, state)
    assert {name.split(".")[0] for name in optimizer_state(late, net)} == {"layer3", "layer4", "fc"}


def test_without_momentum_there_is_no_state() -> None:
    net = network()
    sgd, phase = optimizer(net, (Group("all"),), momentum=0.0)
    set_learning_rate(sgd, phase, 0.1, [], 0)
    step(net, sgd, 1)
    assert optimizer_state(sgd, net) == {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_class_of_torch_moves_as_by_itself_and_its_state_is_put_back_whole(name: str) -> None:
    """An ascent of the early part, whose state is saved and loaded after each step, against torch alone."""
    ours, alone = network(), network()
    decay = [0.0, 0.05]
    kind = next(cls for key, cls in vars(torch.optim).items() if key.lower() == name)
    own = {"momentum": 0.9} if name == "sgd" else {}
    halves: list[list[nn.Parameter]] = [[], []]
    for key, parameter in alone.named_parameters():
        halves[PARTS.holds("late", key)].append(parameter)
    groups = [
        {"params": half, "maximize": not late, "weight_decay": decay[late], "lr": [0.002, 0.2][late]}
        for late, half in enumerate(halves)
    ]
    reference = kind(groups, lr=0.0, **own)
    state: dict[str, torch.Tensor] = {}
    for seed in range(4):
        phase = Phase("x", 4, SEAL)
        resumed = build_optimizer(ours, PARTS, phase, OPTIMIZERS[name](weight_decay=0.05))
        load_optimizer_state(resumed, ours, state)
        set_learning_rate(resumed, phase, 0.2, [], 0)
        step(ours, resumed, seed)
        step(alone, reference, seed)
        state = {key: tensor.clone() for key, tensor in optimizer_state(resumed, ours).items()}
    for (key, p), q in zip(ours.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), key
    kept = {key for held in reference.state.values() for key in held}
    assert {key.split(":")[1] for key in state} == kept


def test_nesterov_by_hand() -> None:
    net = network()
    sgd, phase = optimizer(net, (Group("all"),), momentum=0.5, weight_decay=0.0, nesterov=True)
    set_learning_rate(sgd, phase, 0.1, [], 0)
    weight = net.get_parameter("fc.bias")
    before = weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    sgd.step()  # v = 1: moves by 1 + 0.5 * 1
    sgd.step()  # v = 1.5: moves by 1 + 0.5 * 1.5
    torch.testing.assert_close(weight.detach(), before - 0.1 * (1.5 + 1.75))


@pytest.mark.parametrize(
    ("name", "copies"), [("sgd", 1), ("adamw", 2), ("adadelta", 2), ("adafactor", 0), ("rmsprop", 1)]
)
def test_how_many_tensors_of_a_parameters_size_are_kept(name: str, copies: int) -> None:
    assert state_copies(OPTIMIZERS[name]()) == copies


def first_update(folder: Path, clip_norm: float | None) -> tuple[float, float, float]:
    """Recorded gradient norm, size of the update, and learning rate of a run's one step."""
    recipe = tiny_recipe(
        batch_size=30,
        budget={"epochs": 1, "generation_length": 1},
        optimizer={"momentum": 0.0, "weight_decay": 0.0, "clip_norm": clip_norm, "warmup_share": 0.0},
    )
    row = train_run(recipe, folder, placement=keeping(("init", "relearned")))[0].row
    from seal_ray.runs.checkpoint import read_snapshot

    run_id = open_store(recipe, folder).run_id
    names = [name for name, _ in network().named_parameters()]
    start, end = (
        read_snapshot(folder / "moments" / f"g000-{name}", run_id).weights for name in ("init", "relearned")
    )
    size = math.sqrt(sum(float((end[n].double() - start[n].double()).square().sum()) for n in names))
    return math.hypot(row["grad_norm_early"], row["grad_norm_late"]), size, row["lr_late"]


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
def test_clipping_bounds_the_update_and_not_the_recorded_norm(tmp_path: Path, clip_norm: float) -> None:
    assert tiny_images().classes == 3
    free, size, lr = first_update(tmp_path / "free", None)
    assert lr == 0.1
    assert size == pytest.approx(lr * free, rel=1e-4)
    norm, clipped, _ = first_update(tmp_path / "clipped", clip_norm)
    assert norm == free
    assert clipped == pytest.approx(lr * min(clip_norm, free), rel=1e-3)
