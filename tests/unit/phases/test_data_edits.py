"""Edits that look at data, against arithmetic on the same losses: what changes, to what, and what stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from seal_ray.errors import ConfigError
from seal_ray.networks import Parts, build
from seal_ray.phases.data_edits import RecycleDormant, RedrawLeast, ShrinkByDirection, mean_gradient
from seal_ray.phases.edits import Edit, EditContext
from seal_ray.streams import stream

State = dict[str, Tensor]
IMAGES, LABELS = torch.randn(6, 3, 16, 16, generator=stream(0, "images")), torch.arange(6) % 3


def resnet(generator: torch.Generator) -> nn.Module:
    return build("resnet18", classes=3, stem="imagenet", width=4, generator=generator)


def plain(generator: torch.Generator) -> nn.Module:
    """Two convolutions with norms, a hidden layer, none of whose units is dead, and a classifier."""

    def made(classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.GroupNorm(1, 5),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 6),
            nn.ReLU(),
            nn.Linear(6, classes),
        )

    network = build(made, classes=3, generator=generator)
    nn.init.ones_(network[8].bias)  # type: ignore[index]
    return network


@dataclass
class Trial:
    """A network none of whose tensors is as it was drawn, and what an edit is told."""

    network: nn.Module
    context: EditContext
    fresh: State

    @classmethod
    def of(cls, make: Callable[[torch.Generator], nn.Module]) -> Trial:
        """Losses are the cross entropies of three images each."""
        network, rng = make(stream(1, "init")), stream(1, "trained")
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.randn(tensor.shape, generator=rng))

        def losses(batches: int) -> Iterator[Tensor]:
            for part in torch.arange(6).split(3)[:batches]:
                yield F.cross_entropy(network(IMAGES[part]), LABELS[part])

        context = EditContext(
            parts=Parts.of(network, None),
            rng=lambda purpose: stream(0, purpose, 1),
            fixed_rng=lambda purpose: stream(0, purpose),
            fresh=lambda generator: make(generator).state_dict(),
            carried={},
            losses=losses,
        )
        # Batch norm by its running statistics, so that a pass moves nothing.
        return cls(network.eval(), context, make(stream(0, "edit", 1)).state_dict())

    def edited(self, edit: Edit) -> tuple[State, State]:
        before = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        edit(self.network, self.context)
        return before, self.network.state_dict()

    def gradient(self, batches: int) -> State:
        """By one backward pass of the mean."""
        self.network.zero_grad()
        torch.stack([*self.context.losses(batches)]).mean().backward()
        return {name: parameter.grad for name, parameter in self.network.named_parameters()}  # type: ignore[misc]


def weights(state: State) -> list[str]:
    return [name for name, tensor in state.items() if tensor.dim() > 1]


@pytest.mark.parametrize("batches", [1, 2])
def test_the_gradient_is_that_of_the_mean_loss(batches: int) -> None:
    trial = Trial.of(resnet)
    found, expected = mean_gradient(trial.network, trial.context, batches), trial.gradient(batches)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
        assert not gradient.requires_grad


@pytest.mark.parametrize("among", ["network", "layer"])
@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_least_useful_weights_are_new_and_no_others(
    among: Literal["network", "layer"], batches: int, share: float
) -> None:
    trial = Trial.of(resnet)
    gradient = mean_gradient(trial.network, trial.context, batches) if batches else {}
    before, after = trial.edited(RedrawLeast(share, among, batches))
    use = {
        name: np.abs(before[name].numpy() * (gradient[name].numpy() if batches else 1)).ravel()
        for name in weights(before)
    }
    changed = {name: (before[name] != after[name]).numpy().ravel() for name in before}
    assert not any(changed[name].any() for name in before.keys() - {*use})
    for names in [[*use]] if among == "network" else [[name] for name in use]:
        scores, new = (np.concatenate([of[name] for name in names]) for of in (use, changed))
        count = math.floor(round(share * 10) * len(scores) / 10)
        expected = np.zeros(len(scores), bool)
        expected[sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]] = True
        assert (new == expected).all()
    for name, new in changed.items():
        assert (after[name].numpy().ravel()[new] == trial.fresh[name].numpy().ravel()[new]).all()


def test_the_order_of_memory_does_not_decide_ties() -> None:
    found = []
    for format_ in (torch.contiguous_format, torch.channels_last):
        trial = Trial.of(resnet)
        trial.network.to(memory_format=format_)
        with torch.no_grad():
            trial.network.layer1[0].conv1.weight.fill_(1.0)  # type: ignore[index]
        found.append(trial.edited(RedrawLeast(0.3, "layer", 0))[1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_each_vector_shrinks_by_its_cosine_to_the_negative_gradient(floor: float) -> None:
    trial = Trial.of(plain)
    gradient = mean_gradient(trial.network, trial.context, 2)
    before, after = trial.edited(ShrinkByDirection(floor, 2))
    norms = {"1", "4"}
    kept = 0
    for name, old in before.items():
        if name.split(".")[0] in norms:
            assert torch.equal(after[name], old), name
            continue
        shape = old.shape
        rows = (shape[0] * shape[1] if old.dim() == 4 else shape[0] if old.dim() == 2 else 1, -1)
        w, g, found = (t.double().numpy().reshape(rows) for t in (old, gradient[name], after[name]))
        for vector, pull, new in zip(w, g, found, strict=True):
            cosine = -vector @ pull / math.sqrt((vector @ vector) * (pull @ pull))
            kept += cosine > floor
            assert new == pytest.approx(vector * min(max(cosine, floor), 1), rel=1e-4, abs=1e-6), name
    assert kept > 5  # the floor is not all that is seen


def silence(layer: Any, units: list[int]) -> None:
    """Scale or weights 0 and a negative shift: what a ReLU after it never passes on."""
    layer.weight[units], layer.bias[units] = 0, -1


@pytest.mark.parametrize(
    ("channels", "hidden"), [([0, 2], [3]), ([0, 1, 2, 3], [3]), ([1], [*range(6)])], ids=str
)
def test_dormant_units_start_anew_without_being_heard(channels: list[int], hidden: list[int]) -> None:
    """Also where they are the whole layer."""
    trial = Trial.of(plain)
    with torch.no_grad():
        silence(trial.network[1], channels)  # type: ignore[index]
        silence(trial.network[8], hidden)  # type: ignore[index]
        logits = trial.network(IMAGES)
        before, after = trial.edited(RecycleDormant(0.0, 2))
        assert torch.equal(trial.network(IMAGES), logits)
    units = {"0.weight": channels, "0.bias": channels, "8.weight": hidden, "8.bias": hidden}
    units |= {f"1.{name}": channels for name in ("weight", "bias", "running_mean", "running_var")}
    heard = {"3.weight": channels, "10.weight": hidden}
    for name, old in before.items():
        expected = old.clone()
        if name in units:
            expected[units[name]] = trial.fresh[name][units[name]]
            assert not torch.equal(expected, old)
        if name in heard:
            expected[:, heard[name]] = 0
        assert torch.equal(after[name], expected), name


def test_a_unit_is_dormant_below_the_threshold_of_its_layers_mean() -> None:
    trial = Trial.of(plain)
    with torch.no_grad():
        network = trial.network
        hidden = network[:10](IMAGES).abs().mean(dim=0)  # type: ignore[index]
    middle = float(hidden.sort().values[2:4].mean() / hidden.mean())
    before, after = trial.edited(RecycleDormant(middle, 2))
    assert int((hidden <= middle * hidden.mean()).sum()) == 3
    silent = (after["10.weight"] == 0).all(dim=0)
    assert torch.equal(silent, hidden <= middle * hidden.mean())
    assert torch.equal((before["8.weight"] != after["8.weight"]).all(dim=1), silent)


def test_units_of_a_resnet_are_those_within_blocks_and_the_last_features() -> None:
    trial = Trial.of(resnet)
    before, after = trial.edited(RecycleDormant(0.99, 1))
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    within = {f"{block}.{name}" for block in blocks for name in ("conv1", "bn1", "conv2")}
    assert changed == within | {"layer4.1.bn2", "fc"}
    assert torch.equal(after["fc.bias"], before["fc.bias"])


class Residual(nn.Module):
    """Three sums; the gate, beside the query, does not read it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.query, self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.first(images.mean(dim=(2, 3))))
        x = x + F.gelu(self.second(x))
        x = x + F.gelu(self.query(x)) * F.gelu(self.gate(x))
        logits: Tensor = self.head(x)
        return logits


def test_a_layer_that_is_not_read_by_the_next_alone_has_no_units() -> None:
    trial = Trial.of(lambda generator: build(Residual, classes=3, generator=generator))
    before, after = trial.edited(RecycleDormant(0.99, 1))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"gate.weight", "gate.bias", "head.weight"}


def test_a_network_without_units_is_refused() -> None:
    def made(classes: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, classes))

    trial = Trial.of(lambda generator: build(made, classes=3, generator=generator))
    with pytest.raises(ConfigError, match=r"method\.name: redo finds no units in Sequential"):
        trial.edited(RecycleDormant(0.1, 1))
