"""Alignment against kernels, movement and barriers against hand arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seal_ray.analysis.similarity import interpolate, linear_cka, loss_barrier, movement, weight_norms
from seal_ray.errors import ConfigError
from seal_ray.networks import build, stages
from seal_ray.streams import stream


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The biased estimate from Gram matrices."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return float(np.trace(k @ h @ m @ h)) / (n - 1) ** 2


def cka_by_grams(x: Tensor, y: Tensor) -> float:
    k, m = (np.asarray(t.double() @ t.double().T) for t in (x, y))
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=50)
def test_alignment_is_normalised_hsic(seed: int, n: int, f: int, g: int) -> None:
    x, y = 3 + normal(n, f, seed=seed), normal(n, g, seed=seed + 1)
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y) == pytest.approx(cka_by_grams(x, y), rel=1e-9)


def test_alignment_ignores_rotation_scale_and_shift_but_not_stretching() -> None:
    x = normal(50, 8)
    rotation = torch.linalg.qr(normal(8, 8, seed=1).double()).Q
    assert linear_cka(x, 7 * x.double() @ rotation + 3) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, x * torch.tensor([100.0] + [1.0] * 7)) < 0.8
    assert linear_cka(x, normal(50, 8, seed=2)) < 0.4


def test_alignment_with_something_constant_is_undefined() -> None:
    assert math.isnan(linear_cka(normal(50, 3), torch.full((50, 4), 0.1)))
    with pytest.raises(ConfigError, match="same images, not of 5 and 6"):
        linear_cka(normal(5, 2), normal(6, 2))


def network(seed: int) -> nn.Module:
    return build("resnet18", classes=3, stem="cifar", width=2, generator=stream(seed, "init"))


def test_movement_by_stage() -> None:
    net, before, after = network(0), network(0).state_dict(), network(1).state_dict()
    moved = movement(net, before, after)
    assert tuple(moved) == stages(net) == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
    names = dict(net.named_parameters())
    for stage, found in moved.items():
        chosen = [name for name in names if name.startswith(f"{stage}.")]
        a, b = (np.concatenate([s[n].numpy().ravel() for n in chosen]).astype(float) for s in (before, after))
        assert found.distance == pytest.approx(np.sqrt(((a - b) ** 2).sum()), abs=1e-12)
        assert found.relative == pytest.approx(found.distance / np.linalg.norm(a))
        assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert (found.norm_before, found.norm_after) == pytest.approx((np.linalg.norm(a), np.linalg.norm(b)))
        assert weight_norms(net, after)[stage] == found.norm_after
    assert moved["bn1"].distance == 0  # the initial weights of norms are not drawn
    assert moved["conv1"].distance > 0


def test_running_statistics_are_not_weights_and_zero_has_no_direction() -> None:
    net = network(0)
    before = net.state_dict()
    after = {name: tensor + 5 if "running" in name else tensor.clone() for name, tensor in before.items()}
    assert all(
        m.distance == 0 and m.cosine == pytest.approx(1) for m in movement(net, before, after).values()
    )
    zero = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    from_zero, to_zero = movement(net, zero, before)["fc"], movement(net, before, zero)["fc"]
    assert math.isnan(from_zero.cosine)
    assert math.isnan(to_zero.cosine)
    assert (from_zero.relative, to_zero.relative) == (math.inf, 1)


def test_the_barrier_of_a_double_well() -> None:
    # loss (w^2 - 1)^2 + w / 10 from -1 to 1: the straight line between the ends is w / 10, the rise 1 at 0.
    barrier = loss_barrier(
        lambda state: float((state["w"] ** 2 - 1) ** 2 + state["w"] / 10),
        {"w": torch.tensor(-1.0, dtype=torch.float64)},
        {"w": torch.tensor(1.0, dtype=torch.float64)},
        points=5,
    )
    assert barrier.positions == (0, 0.25, 0.5, 0.75, 1)
    assert barrier.losses == pytest.approx((-0.1, 0.5625 - 0.05, 1, 0.5625 + 0.05, 0.1))
    assert barrier.height == pytest.approx(1)


def test_a_bowl_has_no_barrier() -> None:
    ends = {"w": torch.tensor([-1.0, 2.0])}, {"w": torch.tensor([3.0, 1.0])}
    assert loss_barrier(lambda state: float(state["w"].square().sum()), *ends).height == 0
    with pytest.raises(ConfigError, match="points: 2 leave nothing between"):
        loss_barrier(lambda state: 0.0, *ends, points=2)


def test_the_ends_of_an_interpolation_are_exact() -> None:
    start, end = network(0).state_dict(), network(1).state_dict()
    end["bn1.num_batches_tracked"] += 7
    for at, expected in ((0.0, start), (1.0, end)):
        state = interpolate(start, end, at)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        network(2).load_state_dict(state)
    middle = interpolate(start, end, 0.25)
    mixed = 0.75 * start["fc.weight"] + 0.25 * end["fc.weight"]
    torch.testing.assert_close(middle["fc.weight"], mixed)
    assert middle["bn1.num_batches_tracked"] == 0
    middle["fc.weight"].zero_()
    assert start["fc.weight"].any()
