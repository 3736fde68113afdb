"""An edit touches exactly what it promises: checked on the whole state_dict, buffers included."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seal_ray.methods.ban import Succeed
from seal_ray.networks import Parts, build, stages
from seal_ray.phases.edits import (
    Edit,
    EditContext,
    MaskedReinit,
    Prune,
    Reinit,
    Renew,
    RenewAbove,
    ShrinkAndPerturb,
)
from seal_ray.streams import stream

State = dict[str, Tensor]


def trained_network(arch: str = "resnet18") -> nn.Module:
    """A network none of whose tensors is at its initial value."""
    network = build(arch, classes=5, stem="imagenet", width=10, generator=stream(3, "init"))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=rng) + 0.5)
            else:
                tensor.add_(7)
    return network


def context(network: nn.Module, seed: int = 0, generation: int = 1, split_at: str = "layer3") -> EditContext:
    def fresh(generator: torch.Generator) -> State:
        arch = "resnet50" if hasattr(network.layer1[0], "conv3") else "resnet18"
        return build(arch, classes=5, stem="imagenet", width=10, generator=generator).state_dict()

    return EditContext(
        parts=Parts(stages(network), split_at),
        rng=lambda purpose: stream(seed, purpose, generation),
        fixed_rng=lambda purpose: stream(seed, purpose),
        fresh=fresh,
        carried={},
        losses=lambda batches: iter(()),
    )


def apply(edit: Edit, network: nn.Module, **where: Any) -> tuple[State, State]:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    edit(network, context(network, **where))
    return before, network.state_dict()


def fresh_state(purpose: str, *, fixed: bool = False) -> State:
    """What a ResNet-18 draws of the stream of generation 1, or of the one of all generations."""
    rng = stream(0, purpose) if fixed else stream(0, purpose, 1)
    return build("resnet18", classes=5, stem="imagenet", width=10, generator=rng).state_dict()


def changed(before: State, after: State) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def weights_in(state: State, *stage_names: str) -> set[str]:
    """Conv and linear weights of stages, told apart from norms by having more than one dimension."""
    return {n for n, t in state.items() if n.split(".")[0] in stage_names and t.dim() > 1}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("init", ["reference", "model"])
def test_llf_changes_conv_and_fc_weights_of_the_late_part_only(arch: str, init: Any) -> None:
    before, after = apply(Reinit("late", init), trained_network(arch))
    assert changed(before, after) == weights_in(before, "layer3", "layer4", "fc")
    assert "layer3.0.downsample.0.weight" in changed(before, after)
    for name in changed(before, after):
        fan_in = before[name][0].numel()
        bound = math.sqrt(6 / ((1 + 5) * fan_in))
        if init == "reference":
            assert after[name].abs().max() <= bound
            assert after[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.25)
        else:
            assert after[name].std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.35)


def test_each_generation_and_each_seed_draws_anew() -> None:
    draws = [
        apply(Reinit("late"), trained_network(), seed=seed, generation=generation)[1]["fc.weight"]
        for seed, generation in [(0, 1), (0, 2), (1, 1), (0, 1)]
    ]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_draw_of_a_layer_does_not_depend_on_the_part() -> None:
    late = apply(Reinit("late"), trained_network())[1]
    head = apply(Reinit("head"), trained_network())[1]
    assert torch.equal(late["fc.weight"], head["fc.weight"])


@pytest.mark.parametrize("keep", [0.8, 0.5])
def test_kels_keeps_leading_filters_and_channels(keep: float) -> None:
    before, after = apply(MaskedReinit(keep, "kels"), trained_network())
    assert changed(before, after) == weights_in(before, *stages(trained_network()))
    for name in changed(before, after):
        out, channels = before[name].shape[:2]
        kept_out = out if name == "fc.weight" else math.ceil(keep * out)
        kept_in = math.ceil(keep * channels)
        same = before[name] == after[name]
        assert same[:kept_out, :kept_in].all()
        assert not same[kept_out:].any()
        assert not same[:, kept_in:].any()


def test_wels_keeps_the_same_random_fraction_in_every_generation() -> None:
    network = trained_network()
    masks = []
    for generation in (1, 2):
        before, after = apply(MaskedReinit(0.8, "wels"), network, generation=generation)
        masks.append({name: before[name] == after[name] for name in changed(before, after)})
    assert masks[0].keys() == masks[1].keys() == weights_in(before, *stages(network))
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])
        assert int(mask.sum()) == round(0.8 * mask.numel())


def test_ke_draws_fresh_weights_each_generation() -> None:
    one = apply(MaskedReinit(), trained_network(), generation=1)[1]["layer4.1.conv2.weight"]
    two = apply(MaskedReinit(), trained_network(), generation=2)[1]["layer4.1.conv2.weight"]
    assert not torch.equal(one[-1], two[-1])
    assert torch.equal(one[0, 0], two[0, 0])


@pytest.mark.parametrize("mask", ["kels", "wels"])
def test_ke_of_a_part_draws_there_what_it_draws_of_all(mask: Any) -> None:
    before, whole = apply(MaskedReinit(0.5, mask), trained_network())
    _, early = apply(MaskedReinit(0.5, mask, part="early"), trained_network())
    assert changed(before, early) == weights_in(before, "conv1", "layer1", "layer2")
    assert all(torch.equal(early[name], whole[name]) for name in changed(before, early))


@pytest.mark.parametrize(("part", "stage_names"), [("head", ["fc"]), ("all", None), ("layer2", ["layer2"])])
def test_what_is_renewed_is_new_down_to_its_buffers(part: str, stage_names: list[str] | None) -> None:
    before, after = apply(Renew(part), trained_network())
    fresh = fresh_state("edit")
    new = {name for name in before if stage_names is None or name.split(".")[0] in stage_names}
    assert changed(before, after) == new
    assert all(torch.equal(after[name], fresh[name]) for name in new)


def test_each_draw_of_a_generation_is_another() -> None:
    heads = [apply(Renew("head", draw), trained_network())[1]["fc.weight"] for draw in (0, 1, 2)]
    assert not any((one == other).any() for one, other in combinations(heads, 2))


def test_shrink_and_perturb_is_its_formula() -> None:
    before, after = apply(ShrinkAndPerturb(0.5, 0.2), trained_network())
    fresh = fresh_state("edit")
    trained = {name for name, _ in trained_network().named_parameters()}
    assert changed(before, after) == trained
    for name in trained:
        expected = 0.5 * before[name].double() + 0.2 * fresh[name].double()
        assert (after[name].double() - expected).abs().max() < 1e-6, name


BLOCKS = [*(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)), "fc"]


@pytest.mark.parametrize(("generation", "generations"), [(1, 2), (1, 10), (2, 3), (9, 10), (19, 20)])
def test_layerwise_keeps_the_norms_below_and_draws_the_rest(generation: int, generations: int) -> None:
    before, after = apply(RenewAbove(generation, generations), trained_network())
    fresh, initial = fresh_state("edit"), fresh_state("init", fixed=True)
    kept = ["conv1", "bn1", *BLOCKS[: generation * 9 // generations]]
    learned = {name for name, _ in trained_network().named_parameters()}
    for name in before:
        if not any(name.startswith(f"{block}.") for block in kept):
            assert torch.equal(after[name], fresh[name]), name
        elif name not in learned:
            assert torch.equal(after[name], before[name]), name
        else:
            norms = [float(state[name].double().square().sum().sqrt()) for state in (initial, before)]
            expected = before[name].double() * norms[0] / norms[1]
            assert (after[name].double() - expected).abs().max() < 1e-6, name


def test_layerwise_of_a_network_without_blocks_goes_by_its_stages() -> None:
    def made(generator: torch.Generator) -> nn.Module:
        return build(
            lambda classes: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, classes)),
            classes=5,
            generator=generator,
        )

    network = made(stream(3, "init"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    where = replace(context(trained_network()), fresh=lambda generator: made(generator).state_dict())
    RenewAbove(1, 2)(network, where)
    after, fresh = network.state_dict(), made(stream(0, "edit", 1)).state_dict()
    initial = made(stream(0, "init")).state_dict()
    ratio = initial["0.weight"].norm() / before["0.weight"].norm()
    assert torch.allclose(after["0.weight"], before["0.weight"] * ratio)
    assert torch.equal(after["2.weight"], fresh["2.weight"])
    assert torch.equal(after["2.bias"], fresh["2.bias"])


def test_prune_zeroes_the_smallest_share_of_each_layer() -> None:
    before, after = apply(Prune(0.3), trained_network())
    assert changed(before, after) == weights_in(before, *stages(trained_network()))
    for name in changed(before, after):
        zero = after[name] == 0
        assert int(zero.sum()) == int(0.3 * zero.numel())
        assert before[name][zero].abs().max() <= before[name][~zero].abs().min()
        assert torch.equal(before[name][~zero], after[name][~zero])


def test_prune_does_not_depend_on_the_memory_format() -> None:
    plain, last = trained_network(), trained_network().to(memory_format=torch.channels_last)
    for network in (plain, last):
        with torch.no_grad():
            network.layer1[0].conv1.weight.fill_(1.0)  # all tied
    one, two = apply(Prune(), plain)[1], apply(Prune(), last)[1]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ban_carries_the_teacher_and_starts_over() -> None:
    network = trained_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    where = context(network)
    Succeed()(network, where)
    teacher = where.carried["teacher"]
    assert teacher.keys() == before.keys()
    assert all(torch.equal(teacher[name], before[name]) for name in before)
    fresh = build(
        "resnet18", classes=5, stem="imagenet", width=10, generator=stream(0, "edit", 1)
    ).state_dict()
    assert all(torch.equal(network.state_dict()[name], fresh[name]) for name in fresh)
    assert changed(before, network.state_dict()) == set(before)
