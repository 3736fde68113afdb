"""One moment's images over several processes: the same curvature."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seal_ray.analysis.curvature import Spectrum, measure_curvature
from seal_ray.analysis.shards import sharding
from seal_ray.networks import Parts, build, stages
from seal_ray.streams import stream


def measured(shards: int, images: int = 23, batch: int = 4) -> Spectrum:
    network = build("resnet18", classes=3, stem="cifar", width=2, generator=stream(0, "init"))
    for module in network.modules():  # statistics as after training, so that nothing explodes
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(4.0)  # type: ignore[union-attr]
    network.double().eval()
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.randint(3, (images,), generator=draws)
    with sharding(shards) as make:
        return measure_curvature(
            network,
            pixels,
            labels,
            parts=Parts(stages(network), "layer3"),
            label_smoothing=0.1,
            steps=8,
            top=2,
            batch=batch,
            make=make,
        )


def agree(one: Spectrum, other: Spectrum, rel: float = 1e-5) -> None:
    assert other.loss == pytest.approx(one.loss, rel=rel)
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=rel)
    torch.testing.assert_close(other.pairs.values, one.pairs.values, rtol=rel, atol=rel)
    torch.testing.assert_close(other.pairs.residuals, one.pairs.residuals, rtol=rel, atol=rel)
    assert other.trace.value == pytest.approx(one.trace.value, rel=rel)
    assert other.sharpness.value == pytest.approx(one.sharpness.value, rel=rel)
    assert other.gradient_overlap == pytest.approx(one.gradient_overlap, rel=rel, abs=1e-9)
    assert other.settings == one.settings


@pytest.mark.parametrize("shards", [2, 3, 99])
def test_shares_of_unequal_size_give_the_numbers_of_one_operator(
    shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test of this process may have started a Ray with fewer CPUs than there are shares.
    monkeypatch.setattr("seal_ray.analysis.shards._on_ray", lambda: False)
    agree(measured(1), measured(shards))  # 23 images in batches of 4: shares differ, the last batch too
