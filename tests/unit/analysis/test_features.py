"""Embeddings against forward passes by hand, and what is left of an extraction afterwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
import torchvision
from torch import Tensor, nn

from seal_ray.analysis.features import extract, pool, probes
from seal_ray.errors import ConfigError, DataError
from seal_ray.networks import build
from seal_ray.streams import stream

BLOCKS = tuple(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=6)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_forward_pass_by_hand(resnet: nn.Module, images: Tensor) -> None:
    names = (*probes(resnet), "penultimate")
    found = extract(resnet, images.split(2), names, max_features=100_000)
    resnet.eval()
    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
        expected = {"input": images, "stem": x}
        for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            for block in layer:
                x = block(x)
                expected[BLOCKS[len(expected) - 2]] = x
        logits = resnet.fc(x.mean(dim=(2, 3)))
        expected |= {
            "softmax": logits.exp() / logits.exp().sum(1, keepdim=True),
            "penultimate": x.mean((2, 3)),
        }
    assert names == ("input", "stem", *BLOCKS, "softmax", "penultimate")
    assert list(found.layers) == list(names)
    for name, activation in expected.items():
        assert found.shapes[name] == activation.shape[1:]
        torch.testing.assert_close(found.layers[name], activation.flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("limit", "shapes"),
    [
        (512, {"input": (3, 13, 13), "stem": (64, 2, 2), "layer2.1": (128, 2, 2), "layer4.1": (512, 1, 1)}),
        (2048, {"input": (3, 26, 26), "stem": (64, 5, 5), "layer2.1": (128, 4, 4), "layer4.1": (512, 2, 2)}),
    ],
)
def test_maps_are_averaged_over_a_grid(
    resnet: nn.Module, images: Tensor, limit: int, shapes: dict[str, tuple[int, int, int]]
) -> None:
    whole = extract(resnet, [images], tuple(shapes), max_features=10**6)
    found = extract(resnet, [images], tuple(shapes), max_features=limit)
    assert found.shapes == shapes
    assert found.max_features == limit
    for name, (_, h, w) in shapes.items():
        maps = whole.layers[name].view(5, *whole.shapes[name])
        assert torch.equal(found.layers[name], F.adaptive_avg_pool2d(maps, (h, w)).flatten(1))


@pytest.mark.parametrize(
    ("shape", "limit", "pooled"),
    [
        ((4, 20, 10), 200, (4, 10, 5)),
        ((4, 10, 20), 200, (4, 5, 10)),
        ((4, 1, 30), 40, (4, 1, 10)),
        ((4, 30, 1), 40, (4, 10, 1)),
        ((4, 3, 3), 36, (4, 3, 3)),
        ((4, 3, 3), 35, (4, 2, 2)),
        ((4, 3, 3), 4, (4, 1, 1)),
        ((12, 4), 20, (5, 4)),
        ((12, 4), 1000, (12, 4)),
        ((7,), 7, (7,)),
    ],
)
def test_pooling_keeps_to_the_limit_and_the_aspect(
    shape: tuple[int, ...], limit: int, pooled: tuple[int, ...]
) -> None:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found = pool("layer", x, limit)
    assert found.shape == (2, *pooled)
    if shape == pooled:
        assert torch.equal(found, x)
    if len(shape) == 3 and all(full % kept == 0 for full, kept in zip(shape, pooled, strict=True)):
        assert found.flatten(2).mean(dim=2).sub(x.flatten(2).mean(dim=2)).abs().max() < 1e-6


def test_tokens_are_averaged_with_their_neighbours() -> None:
    x = torch.arange(24.0).view(1, 6, 4)
    assert torch.equal(pool("layer", x, 12), x.view(1, 3, 2, 4).mean(dim=2))


def test_too_many_channels_are_refused(resnet: nn.Module, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"max_features: 511, but layer 'layer4\.0' has 512 channels"):
        extract(resnet, [images], ("layer4.0",), max_features=511)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(resnet: nn.Module, images: Tensor, fails: bool) -> None:
    resnet.train()
    resnet.layer2.eval()  # a part may be in another mode than the rest
    modes = [module.training for module in resnet.modules()]
    state = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="to have 3 channels"):
            extract(resnet, [images, images[:, :2]], probes(resnet), max_features=2048)
    else:
        extract(resnet, [images], probes(resnet), max_features=2048)
    assert [module.training for module in resnet.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in resnet.state_dict().items())
    for module in resnet.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None for p in resnet.parameters())


def test_embeddings_are_copies_and_always_the_same(resnet: nn.Module, images: Tensor) -> None:
    mine = images.clone()
    one, two = (
        extract(resnet, [mine], (*probes(resnet), "penultimate"), max_features=10**6) for _ in range(2)
    )
    assert all(torch.equal(one.layers[name], two.layers[name]) for name in one.layers)
    one.layers["input"].zero_()  # neither the caller's tensor nor one that only inference may change
    assert torch.equal(mine, images)


class Preactivated(nn.Module):
    """A block that overwrites its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.relu(x, inplace=True))
        return out


def test_what_a_later_layer_overwrites_was_seen_before() -> None:
    net = nn.Sequential(nn.Sequential(Preactivated(), Preactivated()), nn.Flatten(), nn.Linear(48, 2))
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = extract(net, [x.clone()], ("stem", "0.0"), max_features=48)
    assert probes(net) == ("input", "stem", "0.0", "0.1", "softmax")
    assert torch.equal(found.layers["stem"], x.flatten(1))
    assert (found.layers["0.0"] < 0).any()
    rectified = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(inplace=True), nn.Linear(9, 2))
    assert (extract(rectified, [x], ("1",), max_features=9).layers["1"] < 0).any()


def test_probes_of_our_network() -> None:
    net = build("resnet50", classes=3, stem="cifar", width=2, generator=stream(0, "init"))
    blocks = [f"layer{s + 1}.{b}" for s, depth in enumerate((3, 4, 6, 3)) for b in range(depth)]
    assert probes(net) == ("input", "stem", *blocks, "softmax")


@pytest.mark.parametrize(
    ("arch", "count", "first", "last", "penultimate"),
    [
        ("resnet50", 16, "layer1.0", "layer4.2", 2048),
        ("convnext_tiny", 18, "features.1.0", "features.7.2", 768),
        ("vit_b_32", 12, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11", 768),
    ],
)
def test_probes_of_torchvisions_networks(
    arch: str, count: int, first: str, last: str, penultimate: int
) -> None:
    net = torchvision.models.get_model(arch, num_classes=3)
    names = probes(net)
    assert (len(names), names[2], names[-2]) == (count + 3, first, last)
    order: list[str] = []
    for name in names[2:-1]:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
    found = extract(net, [torch.zeros(1, 3, 224, 224)], (*names, "penultimate"), max_features=2048)
    assert order == list(names[2:-1])  # the order in which they run
    assert found.layers["penultimate"].shape == (1, penultimate)
    assert all(embedded.shape[1] <= 2048 for embedded in found.layers.values())


@pytest.mark.parametrize(
    ("arch", "count", "first"),
    [
        ("resnet18", 8, "layer1.0"),
        ("resnet26d", 8, "layer1.0"),
        ("convnext_atto", 12, "stages.0.blocks.0"),
        ("vit_tiny_patch16_224", 12, "blocks.0"),
    ],
)
def test_probes_of_timms_networks(arch: str, count: int, first: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(arch, num_classes=3)
    names = probes(net)
    assert (len(names), names[2]) == (count + 3, first)
    found = extract(net, [torch.zeros(1, 3, 224, 224)], names, max_features=2048)
    assert list(found.layers) == list(names)


def test_a_network_without_blocks_is_probed_at_its_stages_and_has_no_stem(images: Tensor) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert probes(plain) == ("input", "0", "softmax")
    with pytest.raises(ConfigError, match="Sequential has no residual blocks, so that it has no stem"):
        extract(plain, [images], ("stem",), max_features=64)
    found = extract(plain, [images], ("input", "0", "softmax"), max_features=64)
    assert found.shapes == {"input": (3, 4, 4), "0": (4, 4, 4), "softmax": (2,)}


def test_layers_that_cannot_be_embedded(resnet: nn.Module, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"'layer5' is not a module of ResNet; its stages are conv1, bn1"):
        extract(resnet, [images], ("layer5",), max_features=64)
    with pytest.raises(ConfigError, match=r"'layer1\.0\.relu' is called more than once"):
        extract(resnet, [images], ("layer1.0.relu",), max_features=64)
    resnet.unused = nn.Linear(2, 2)
    try:
        with pytest.raises(ConfigError, match="'unused' is not called in a forward pass"):
            extract(resnet, [images], ("unused",), max_features=64)
    finally:
        del resnet.unused
    last = nn.Sequential(ChannelsLast(), nn.Conv2d(64, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match="maps of 64 x 3 for images of 64 x 64: its channels come last"):
        extract(last, [images], ("0",), max_features=64)
    with pytest.raises(DataError, match="no images"):
        extract(resnet, [], ("input",), max_features=64)


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)
