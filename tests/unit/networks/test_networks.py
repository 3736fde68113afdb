"""Networks against torchvision's, their initial weights, and parts by module."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from seal_ray.errors import ConfigError
from seal_ray.networks import RESNETS, Parts, build, resnet, stages, weighted_layers
from seal_ray.streams import stream


def network(arch: str = "resnet18", *, stem: str = "imagenet", width: int = 8, seed: int = 0) -> nn.Module:
    return build(arch, classes=7, stem=stem, width=width, generator=stream(seed, "init"))


@pytest.mark.parametrize("arch", RESNETS)
def test_stages_of_resnets_are_known_before_one_is_built(arch: str) -> None:
    parts = Parts.of(network(arch), None)
    assert (parts.stages, parts.split_at) == (resnet.STAGES, resnet.MIDDLE)


@pytest.mark.parametrize("arch", RESNETS)
def test_width_64_with_the_imagenet_stem_is_torchvisions_network(arch: str) -> None:
    ours = network(arch, width=64).eval()
    theirs = torchvision.models.get_model(arch, num_classes=7).eval()
    shapes = [{name: t.shape for name, t in net.state_dict().items()} for net in (ours, theirs)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        other = torchvision.models.get_model(arch, num_classes=7)
        ours.load_state_dict(other.state_dict(), strict=True)
        assert torch.equal(ours(x), other.eval()(x))


@pytest.mark.parametrize(
    ("arch", "stem", "side", "channels"),
    [
        ("resnet18", "imagenet", 2, 64),
        ("resnet18", "cifar", 8, 64),
        ("resnet50", "imagenet", 2, 256),
        ("resnet50", "cifar", 8, 256),
    ],
)
def test_the_cifar_stem_keeps_the_resolution(arch: str, stem: str, side: int, channels: int) -> None:
    net = network(arch, stem=stem).eval()
    seen: list[torch.Size] = []
    net.layer4.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert seen == [(2, channels, side, side)]
    assert net.conv1.weight.shape == (8, 3, *{"imagenet": (7, 7), "cifar": (3, 3)}[stem])


@pytest.mark.parametrize("width", [1, 5, 24])
@pytest.mark.parametrize("arch", RESNETS)
def test_any_width_trains(arch: str, width: int) -> None:
    net = network(arch, width=width)
    net(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("arch", "width"), [("resnet18", 32), ("resnet50", 16)])
def test_initial_weights_are_kaiming_normal_by_fan_in(arch: str, width: int) -> None:
    net = network(arch, width=width)
    weighted = {f"{name}.weight" for name, _ in weighted_layers(net)}
    scaled = []
    for name, tensor in net.state_dict().items():
        if name in weighted:
            fan_in = tensor[0].numel()
            scaled.append(tensor.flatten() * math.sqrt(fan_in / 2))
            tolerance = 4 / math.sqrt(2 * tensor.numel())  # four standard errors of a standard deviation
            assert scaled[-1].std().item() == pytest.approx(1, abs=tolerance), name
        elif name == "fc.bias":
            assert tensor.abs().max() <= 1 / math.sqrt(net.fc.in_features)
        elif name.endswith(("running_var", ".weight")):
            assert (tensor == 1).all(), name
        else:
            assert (tensor == 0).all(), name
    assert all("fc.bias" not in name for name in weighted)
    everything = torch.cat(scaled).double()
    error = 4 / math.sqrt(len(everything))
    assert everything.mean().item() == pytest.approx(0, abs=error)
    assert everything.pow(4).mean().item() == pytest.approx(
        3, abs=math.sqrt(96) * error
    )  # normal, not uniform


def test_initial_biases_are_torchs_own_draw_after_the_weights() -> None:
    net = build("resnet18", classes=1000, stem="cifar", width=4, generator=stream(3, "init"))
    bound = 1 / math.sqrt(32)
    error = 4 * bound / math.sqrt(3 * 1000)  # four standard errors of a mean
    assert net.fc.bias.mean().item() == pytest.approx(0, abs=error)
    assert net.fc.bias.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert net.fc.bias.square().mean().item() == pytest.approx(bound**2 / 3, rel=0.15)
    again = stream(3, "init")
    for _, layer in weighted_layers(net):
        nn.init.kaiming_normal_(torch.empty_like(layer.weight), nonlinearity="relu", generator=again)
    assert torch.equal(net.fc.bias, torch.empty(1000).uniform_(-bound, bound, generator=again))


def test_initial_weights_are_a_function_of_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = network(seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, other = network(seed=3).state_dict(), network(seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layer4.1.conv2.weight"], other["layer4.1.conv2.weight"])


def test_the_generator_goes_on_from_network_to_network() -> None:
    generator = stream(0, "init")
    one, two = (
        build("resnet18", classes=7, stem="imagenet", width=4, generator=generator).state_dict()
        for _ in range(2)
    )
    assert not torch.equal(one["fc.weight"], two["fc.weight"])


@pytest.mark.parametrize("arch", RESNETS)
def test_stages_come_in_depth_order(arch: str) -> None:
    assert stages(network(arch)) == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")


def test_the_early_part_is_about_six_per_cent_of_the_parameters() -> None:
    # Counted by hand: conv1 and bn1; then layer1 and layer2, block by block.
    stem = 3 * 64 * 49 + 2 * 64
    basic = 4 * (64 * 64 * 9 + 2 * 64) + (64 * 128 * 9 + 3 * 128 * 128 * 9 + 4 * 2 * 128 + 64 * 128 + 2 * 128)
    wide = 64 * 64 + 64 * 64 * 9 + 64 * 256 + 2 * (64 + 64 + 256)
    narrowing = 2 * (256 * 64 + 64 * 64 * 9 + 64 * 256 + 2 * (64 + 64 + 256))
    first = 256 * 128 + 128 * 128 * 9 + 128 * 512 + 2 * (128 + 128 + 512) + 256 * 512 + 2 * 512
    rest = 3 * (512 * 128 + 128 * 128 * 9 + 128 * 512 + 2 * (128 + 128 + 512))
    bottleneck = wide + 64 * 256 + 2 * 256 + narrowing + first + rest
    for arch, count in (("resnet18", stem + basic), ("resnet50", stem + bottleneck)):
        net = build(arch, classes=200, stem="imagenet", width=64, generator=stream(0, "init"))
        parts = Parts(stages(net), "layer3")
        early, whole = (sum(p.numel() for p in parts.parameters(net, part)) for part in ("early", "all"))
        assert early == count
        assert 100 * early / whole == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("split_at", ["bn1", "layer1", "layer2", "layer3", "layer4", "fc"])
def test_early_and_late_divide_every_module_by_its_stage(arch: str, split_at: str) -> None:
    net = network(arch, width=2)
    order = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    early = order[: order.index(split_at)]
    parts = Parts(stages(net), split_at)
    modules = dict(net.named_children())
    expected = {p for stage in early for p in modules[stage].parameters()}
    assert set(parts.parameters(net, "early")) == expected
    assert set(parts.parameters(net, "late")) == set(net.parameters()) - expected
    assert parts.parameters(net, "all") == list(net.parameters())
    assert parts.parameters(net, "head") == [net.fc.weight, net.fc.bias]
    downsampling = [name for name, _ in net.named_modules() if "downsample." in name]
    assert downsampling
    for name in downsampling:
        assert parts.holds("early", name) == (name.split(".")[0] in early)
        assert parts.holds("early", name) != parts.holds("late", name)


def test_a_stage_is_a_part_by_its_own_name() -> None:
    net = network(width=2)
    parts = Parts(stages(net), "layer3")
    assert parts.parameters(net, "layer2") == list(net.layer2.parameters())
    assert not parts.holds("layer2", "layer20.0.weight")


def test_a_part_or_split_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.split_at: 'layer5'.*choose one of bn1, layer1"):
        Parts(stages(network()), "layer5")
    with pytest.raises(ConfigError, match="'conv1' does not divide the network"):
        Parts(stages(network()), "conv1")
    with pytest.raises(ConfigError, match="part 'middle' is not one of all, early, late, head, conv1"):
        Parts(stages(network()), "layer3").stages_of("middle")
