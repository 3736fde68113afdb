"""One step of SEAL and of SAM against arithmetic by hand, and the moves of parts in general."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seal_ray.methods import METHODS
from seal_ray.networks import Parts
from seal_ray.phases.optimizers import OPTIMIZERS, Optimizer, Sgd
from seal_ray.phases.schedule import Budget, Group, Phase
from seal_ray.phases.steps import (
    Descend,
    Direction,
    Gsam,
    Masked,
    NoisyGradient,
    RandomDirection,
    Sam,
    Step,
)
from seal_ray.training.optimizer import build_optimizer, set_learning_rate


class Line(nn.Module):
    """y = late * early * x: two weights, one in each part, whose gradients are elementary."""

    def __init__(self, early: float, late: float) -> None:
        super().__init__()
        self.early = nn.Linear(1, 1, bias=False)
        self.late = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.early.weight.fill_(early)
            self.late.weight.fill_(late)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(self.early(x))


PARTS = Parts(("early", "late"), "late")
X, Y = 3.0, 1.0


def take(
    network: Line,
    phase: Phase,
    lr: float,
    *,
    steps: int = 1,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    settings: Optimizer | None = None,
) -> tuple[float, float]:
    """`steps` steps of the phase on the squared error of (X, Y); returns the two weights.

    settings: of another optimizer than SGD.
    """
    settings = settings or Sgd(momentum=momentum, weight_decay=weight_decay)
    optimizer = build_optimizer(network, PARTS, phase, settings)
    set_learning_rate(optimizer, phase, lr, [], 0)
    step = phase.step.begin(network, lambda part: PARTS.parameters(network, part))

    def gradients(*, first_pass: bool = True) -> None:
        network.zero_grad()
        (0.5 * (network(torch.tensor([[X]])) - Y) ** 2).sum().backward()

    for _ in range(steps):
        step(gradients, optimizer.step)
    return network.early.weight.item(), network.late.weight.item()


def slopes(early: float, late: float) -> tuple[float, float]:
    """d/d early and d/d late of 1/2 (late early X - Y)^2."""
    error = late * early * X - Y
    return error * late * X, error * early * X


def test_one_seal_step_by_hand() -> None:
    phase = METHODS["seal"](ascent_rate=0.5).phases(1, Budget(8, 4))[0]  # type: ignore[call-arg]
    early, late = take(Line(0.5, 2.0), phase, 0.1, weight_decay=0.01)
    g_early, g_late = slopes(0.5, 2.0)
    assert early == pytest.approx(0.5 + 0.1 * 0.5 * g_early)  # climbs, without weight decay
    assert late == pytest.approx(2.0 - 0.1 * (g_late + 0.01 * 2.0))


def test_one_sam_step_by_hand() -> None:
    phase = Phase("learn", 1, (Group("all"),), step=Sam(0.05))
    early, late = take(Line(0.5, 2.0), phase, 0.1)
    g_early, g_late = slopes(0.5, 2.0)
    norm = math.hypot(g_early, g_late)
    there = slopes(0.5 + 0.05 * g_early / norm, 2.0 + 0.05 * g_late / norm)
    assert early == pytest.approx(0.5 - 0.1 * there[0])
    assert late == pytest.approx(2.0 - 0.1 * there[1])


def test_sam_in_one_part_by_hand() -> None:
    phase = Phase("learn", 1, (Group("all"),), step=Sam(0.05, "early"))
    early, late = take(Line(0.5, 2.0), phase, 0.1)
    there = slopes(0.5 + math.copysign(0.05, slopes(0.5, 2.0)[0]), 2.0)
    assert early == pytest.approx(0.5 - 0.1 * there[0])
    assert late == pytest.approx(2.0 - 0.1 * there[1])


@pytest.mark.parametrize("part", ["all", "early"])
def test_one_asam_step_by_hand(part: str) -> None:
    phase = Phase("learn", 1, (Group("all"),), step=Sam(0.5, part, adaptive=True))
    early, late = take(Line(0.5, -2.0), phase, 0.1)
    sizes = (0.51, 2.01 if part == "all" else 0.0)
    stretched = [size * slope for size, slope in zip(sizes, slopes(0.5, -2.0), strict=True)]
    climb = [0.5 * size * one / math.hypot(*stretched) for size, one in zip(sizes, stretched, strict=True)]
    there = slopes(0.5 + climb[0], -2.0 + climb[1])
    assert early == pytest.approx(0.5 - 0.1 * there[0])
    assert late == pytest.approx(-2.0 - 0.1 * there[1])


def test_asam_leaves_biases_their_scale() -> None:
    """Of y = w x + b: T is |w| + 0.01 and 1."""
    network = nn.Linear(1, 1).double()
    weight, bias = (p.detach().clone() for p in network.parameters())
    at: list[float] = []

    def gradients(*, first_pass: bool = True) -> None:
        network.zero_grad()
        at.extend(p.item() for p in network.parameters())
        network(torch.tensor([[3.0]], dtype=torch.float64)).sum().backward()

    step = Sam(0.5, adaptive=True).begin(network, lambda _: list(network.parameters()))
    step(gradients, lambda: None)
    size = abs(weight.item()) + 0.01
    norm = math.hypot(3 * size, 1)
    assert at[2:] == pytest.approx([weight.item() + 0.5 * 3 * size**2 / norm, bias.item() + 0.5 / norm])


def test_one_gsam_step_by_hand() -> None:
    phase = Phase("learn", 1, (Group("all"),), step=Gsam(0.5, 0.4))
    early, late = take(Line(0.5, 2.0), phase, 0.1)
    here = np.array(slopes(0.5, 2.0))
    there = np.array(slopes(*(np.array([0.5, 2.0]) + 0.5 * here / np.linalg.norm(here))))
    across = np.array([-there[1], there[0]]) / np.linalg.norm(there)  # the one direction orthogonal to it
    moved = there - 0.4 * (here @ across) * across
    assert abs(here @ across) > 0.1
    assert (early, late) == pytest.approx(tuple(np.array([0.5, 2.0]) - 0.1 * moved), rel=1e-5)


@pytest.mark.parametrize("step", [Sam(0.05), Sam(0.5, adaptive=True), Gsam()], ids=["sam", "asam", "gsam"])
def test_what_climbs_in_a_step_returns_to_the_very_weights(step: Step) -> None:
    network = Line(1 / 3, 2 / 3)
    before = [p.detach().clone() for p in network.parameters()]
    take(network, Phase("learn", 1, (Group("all"),), step=step), 0.0)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("direction", "kept", "size"),
    [(RandomDirection(), 0, 1), (NoisyGradient(0.4), 1, 0.4)],
    ids=["random", "noisy"],
)
def test_noise_is_as_large_as_the_gradient_of_the_whole_part_by_hand(
    direction: Direction, kept: int, size: float
) -> None:
    gradient = np.array([3.0, 0.0, 0.0, 4.0])  # of norm 5, in two tensors, one of them not contiguous
    found = []
    for seed in range(3000):
        gradients = [torch.tensor([[3.0, 0.0], [0.0, 9.0]])[:, 0], torch.tensor([[0.0], [4.0]])]
        direction(gradients, torch.Generator().manual_seed(seed))
        found.append(torch.cat([g.flatten() for g in gradients]).double().numpy())
    z = torch.randn(4, generator=torch.Generator().manual_seed(0)).double().numpy()
    assert found[0] == pytest.approx(kept * gradient + size * 5 * z / np.linalg.norm(z), rel=1e-5)
    noise = np.array(found) - kept * gradient
    assert np.linalg.norm(noise, axis=1) == pytest.approx(np.full(3000, 5 * size), rel=1e-5)
    assert noise.mean(axis=0) == pytest.approx(np.zeros(4), abs=0.25 * size)  # 5 standard errors
    assert np.cov(noise.T) == pytest.approx(np.eye(4) * (5 * size) ** 2 / 4, abs=0.8 * size**2)


def test_masked_weights_stay_zero_through_momentum_and_decay() -> None:
    network = Line(0.0, 2.0)
    phase = Phase("sparse", 1, (Group("all"),), step=Masked())
    early, late = take(network, phase, 0.1, steps=5, weight_decay=0.01, momentum=0.9)
    assert early == 0.0
    assert late != 2.0
    free = take(Line(0.0, 2.0), Phase("x", 1, (Group("all"),)), 0.1)
    assert free[0] != 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_maximize_is_a_negative_rate_without_weight_decay(momentum: float) -> None:
    def sgd(decay: float, maximize: bool, sign: float) -> torch.Tensor:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(50))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum, maximize=maximize)
        optimizer.param_groups[0]["lr"] = sign * 0.1
        optimizer.param_groups[0]["weight_decay"] = decay
        for _ in range(5):
            weight.grad = weight.detach().sin()
            optimizer.step()
        return weight.detach()

    assert torch.equal(sgd(0.0, True, 1), sgd(0.0, False, -1))
    assert not torch.equal(sgd(0.1, True, 1), sgd(0.1, False, -1))
    assert torch.equal(sgd(-0.1, True, 1), sgd(0.1, False, -1))  # what `growth` means


@pytest.mark.parametrize(
    ("mode", "sign"), [("none", 0.0), ("decay", -1.0), ("growth", 1.0)], ids=["none", "decay", "growth"]
)
def test_weight_decay_while_ascending_by_hand(mode: Any, sign: float) -> None:
    seal = METHODS["seal"](ascent_rate=0.5, ascent_weight_decay=mode)  # type: ignore[call-arg]
    early, _ = take(Line(0.5, 2.0), seal.phases(1, Budget(8, 4))[0], 0.1, weight_decay=0.01)
    assert early == pytest.approx(0.5 + 0.05 * (slopes(0.5, 2.0)[0] + sign * 0.01 * 0.5))


@pytest.mark.parametrize(
    ("mode", "decay"), [("none", 0.0), ("decay", 0.1), ("growth", -0.1)], ids=["none", "decay", "growth"]
)
def test_an_ascent_by_adamw_by_hand(mode: Any, decay: float) -> None:
    """Loshchilov and Hutter, ICLR 2019, algorithm 2, on the negative gradient; the decay is decoupled."""
    method = METHODS["seal"](ascent_rate=0.5, ascent_weight_decay=mode)  # type: ignore[call-arg]
    settings = OPTIMIZERS["adamw"](weight_decay=0.1, betas=(0.8, 0.9))  # type: ignore[call-arg]
    found = take(Line(0.5, 2.0), method.phases(1, Budget(8, 4))[0], 0.02, steps=4, settings=settings)
    weights, m, v = [0.5, 2.0], [0.0, 0.0], [0.0, 0.0]
    for t in range(1, 5):
        gradients = slopes(*weights)
        for i, (sign, rate, wd) in enumerate([(-1, 0.02 * 0.5, decay), (1, 0.02, 0.1)]):
            g = sign * gradients[i]
            m[i], v[i] = 0.8 * m[i] + 0.2 * g, 0.9 * v[i] + 0.1 * g * g
            step = m[i] / (1 - 0.8**t) / (math.sqrt(v[i] / (1 - 0.9**t)) + 1e-8)
            weights[i] = weights[i] * (1 - rate * wd) - rate * step
    assert found == pytest.approx(tuple(weights))


@pytest.mark.parametrize(
    "step", [Descend(), Sam(), Gsam(), Masked()], ids=["descend", "sam", "gsam", "masked"]
)
def test_a_frozen_part_has_no_gradient_and_does_not_move(step: Step) -> None:
    network = Line(0.5, 2.0)
    early, late = take(network, Phase("x", 1, (Group("late"),), step=step), 0.1, weight_decay=0.1)
    assert early == 0.5
    assert network.early.weight.grad is None
    assert late != 2.0


def test_the_most_specific_group_owns_a_parameter() -> None:
    network = Line(0.5, 2.0)
    groups = (Group("all", lr=0.0), Group("early", ascend=True))
    early, late = take(network, Phase("x", 1, groups), 0.1)
    assert early == pytest.approx(0.5 + 0.1 * slopes(0.5, 2.0)[0])
    assert late == 2.0
    early, late = take(
        Line(0.5, 2.0), Phase("x", 1, (Group("head", lr=0.0), Group("late"), Group("early"))), 0.1
    )
    assert late == 2.0


@pytest.mark.parametrize("name", METHODS)
def test_passes_are_how_often_a_step_asks_for_gradients(name: str) -> None:
    budget = Budget(12, 6)
    phases = [phase for generation in (0, 1) for phase in METHODS[name]().phases(generation, budget)]
    for phase in phases:
        network = Line(0.5, 2.0)
        asked = gradients_asked(phase.step, network)
        assert len(asked) == phase.step.passes
        assert asked == [True] + [False] * (len(asked) - 1)


def gradients_asked(step: Step, network: Line) -> list[bool]:
    """For each gradient that a step asks for, whether it is of the first pass."""
    asked = []

    def gradients(*, first_pass: bool = True) -> None:
        asked.append(first_pass)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)

    step.begin(network, lambda part: PARTS.parameters(network, part))(gradients, lambda: None)
    return asked
