"""Exported weights: others load them as they are; what others saved is read, and nothing is unpickled."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import seal_ray.runs.export as export_module
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import Dataset
from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.networks import build
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Job, dump_job
from seal_ray.runs.checkpoint import Snapshot, weights_sha256
from seal_ray.runs.export import ONNX_PACKAGES, export, load_weights
from seal_ray.runs.folder import Store, run_id
from seal_ray.streams import stream
from tests.runs import tiny_recipe
from tests.unit.conftest import make_source

IMAGES = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
CLASSES = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(make_source(), tmp_path_factory.mktemp("data") / "memory")


def state_of(arch: str, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Weights whose norms are not as they were at first."""
    kind = {"classes": CLASSES, "stem": "imagenet", "width": 64, **changes}
    network = build(arch, **kind, generator=stream(seed, "init"))
    network.train()
    with torch.no_grad():
        network(IMAGES)
    return network.state_dict()


ALL = ((0, "relearned"), (1, "relearned"), (2, "forgotten"), (10, "ascended"))


def make_run(storage: Path, dataset: Dataset, moments: Any = ((1, "relearned"),), **model: Any) -> Path:
    """A run that keeps these moments; its state at each is drawn anew by generation, not trained."""
    model = {"arch": "resnet18", "width": 64, **model}
    recipe = tiny_recipe({"name": "seal"}, data={"path": str(dataset.folder)}, model=model)
    name = run_id(recipe, dataset.training_identity)
    store = Store(storage / name, name)
    store.folder.mkdir(parents=True)
    (store.folder / "job.yaml").write_text(dump_job(Job(name="trial", recipe=recipe)))
    rows: tuple[dict[str, Any], ...] = ()
    arch, kind = model.pop("arch"), {key: value for key, value in model.items() if key != "dropout"}
    for generation, moment in moments:
        weights = state_of(arch, generation, **kind)
        if moment != "forgotten":
            score = {"val_top1": 50.0 + generation, "weights_sha256": weights_sha256(weights)}
            rows = (*rows, {"generation": generation, **score})
        snapshot = Snapshot(name, Position(generation, 3), weights, rows=rows)
        store.keep_moment(moment, generation, snapshot)
    return store.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), dataset, ALL, width=4)


def network_of(state: dict[str, Tensor], arch: str = "resnet18", **model: Any) -> nn.Module:
    """Our own network with these weights."""
    kind = {"classes": CLASSES, "stem": "imagenet", "width": 64, **model}
    network = build(arch, **kind, generator=stream(9, "init"))
    network.load_state_dict(state)
    return network.eval()


def read_torch(path: Path) -> dict[str, Tensor]:
    return dict(torch.load(path, weights_only=True))


READERS: list[Any] = [("safetensors", load_file), ("torch", read_torch)]


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    return network.eval()(IMAGES)  # type: ignore[no-any-return]


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_torchvision_and_timm_load_a_state_dict_strictly_and_give_our_logits(
    tmp_path: Path, dataset: Dataset, arch: str
) -> None:
    folder = make_run(tmp_path, dataset, arch=arch)
    ours = logits(network_of(state_of(arch, 1), arch))
    for file_format, read in READERS:
        exported = export(folder, tmp_path / file_format, file_format=file_format)
        for make in (torchvision.models.get_model, timm.create_model):
            with torch.device("meta"):  # it has no weights of its own
                theirs = make(arch, num_classes=CLASSES)
            theirs.to_empty(device="cpu").load_state_dict(read(exported.path), strict=True)
            assert torch.equal(logits(theirs), ours)


@pytest.mark.parametrize(
    ("moment", "generation", "top1"),
    [
        (None, 1, 51.0),
        ("g000-relearned", 0, 50.0),
        ("g002-forgotten", 2, None),  # the last epoch measured the weights before the edit
        ("g010-ascended", 10, 60.0),
    ],
)
def test_the_last_relearned_moment_is_exported_unless_another_is_named(
    run: Path, tmp_path: Path, moment: str | None, generation: int, top1: float | None
) -> None:
    exported = export(run, tmp_path / "new folder" / "w.safetensors", moment=moment)
    expected = state_of("resnet18", generation, width=4)
    assert exported.moment == (moment or "g001-relearned")
    assert (exported.weights_sha256, exported.top1) == (weights_sha256(expected), top1)
    assert weights_sha256(load_file(exported.path)) == weights_sha256(expected)
    card = exported.card.read_text()
    assert exported.card.name == "w.safetensors.md"
    assert (f"| {top1:.2f} % |" if top1 else "| not measured |") in card


@pytest.mark.parametrize(("file_format", "suffix"), [("safetensors", ".safetensors"), ("torch", ".pth")])
@pytest.mark.parametrize("model", [{}, {"stem": "cifar", "width": 5}, {"arch": "resnet50", "width": 3}])
def test_what_is_exported_is_read_back_with_its_digest(
    tmp_path: Path, dataset: Dataset, file_format: Any, suffix: str, model: dict[str, Any]
) -> None:
    folder = make_run(tmp_path, dataset, **model)
    arch, kind = model.get("arch", "resnet18"), {k: v for k, v in model.items() if k != "arch"}
    exported = export(folder, tmp_path / f"w{suffix}", file_format=file_format)
    loaded = load_weights(exported.path, arch)
    ours = network_of(state_of(arch, 1, **kind), arch, **kind)
    assert (loaded.arch, loaded.classes, loaded.weights_sha256) == (arch, CLASSES, exported.weights_sha256)
    assert not loaded.network.training
    assert torch.equal(logits(loaded.network), logits(ours))


def python_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("file_format", ["safetensors", "torch"])
@pytest.mark.parametrize("model", [{}, {"stem": "cifar", "width": 4}])
def test_the_card_says_how_to_load_and_its_code_runs(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, file_format: Any, model: dict[str, Any]
) -> None:
    folder = make_run(tmp_path, dataset, **model)
    exported = export(folder, tmp_path / "w.pth", file_format=file_format)
    if file_format == "safetensors":
        exported = export(folder, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(python_of(exported.card.read_text()), scope)
    ours = network_of(state_of("resnet18", 1, **model), **model)
    assert torch.equal(logits(scope["network"]), logits(ours))


def test_the_card_says_what_the_weights_are(tmp_path: Path, dataset: Dataset) -> None:
    run = make_run(tmp_path, dataset, ALL[:2])
    exported = export(run, tmp_path / "w.safetensors")
    card = exported.card.read_text()
    parameters = sum(p.numel() for p in torchvision.models.resnet18(num_classes=CLASSES).parameters())
    for text in (
        f"| {run.name} (trial) |",
        "| g001-relearned, after 2 epochs |",
        "| resnet18 with stem imagenet, width 64, 3 classes |",
        f"| {parameters:,} |",
        exported.weights_sha256,
        dataset.identity,
        "made by a test",
        "class 0, class 1, class 2",
        "(N, 3, 16, 16), RGB in 0..1",
        "ascent_rate:",
    ):
        assert text in card


def test_a_card_says_that_the_data_set_is_gone_or_another_one(tmp_path: Path) -> None:
    data = prepare(make_source(), tmp_path / "data")
    folder = make_run(tmp_path / "runs", data, width=2)
    shutil.rmtree(data.folder)
    gone = export(folder, tmp_path / "gone.pth").card.read_text()
    prepare(make_source(seed=1), tmp_path / "data")
    other = export(folder, tmp_path / "other.pth").card.read_text()
    for card in (gone, other):
        assert "is not there any more" in card
        assert "Not known any more" in card
        assert "made by a test" not in card


@pytest.mark.parametrize("existing", ["w.pth", "w.pth.md"])
def test_a_file_that_exists_is_kept_unless_forced(run: Path, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{existing} exists; give another -o, or --force"):
        export(run, tmp_path / "w.pth", file_format="torch")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"
    export(run, tmp_path / "w.pth", file_format="torch", force=True)
    assert weights_sha256(read_torch(tmp_path / "w.pth")) == weights_sha256(state_of("resnet18", 1, width=4))


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no moment g007-init; it keeps g000-relearned, g001-relearned"):
        export(run, tmp_path / "w", moment="g007-init")
    with pytest.raises(CheckpointError, match=r"is no run's folder, it has no job.yaml"):
        export(tmp_path, tmp_path / "w")
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    weights = copy / "moments" / "g001-relearned" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: truncated or altered"):
        export(copy, tmp_path / "w")
    shutil.rmtree(copy / "moments")
    with pytest.raises(ConfigError, match=r"has no moment relearned; it keeps none; see placement.keep"):
        export(copy, tmp_path / "w")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written .*give another -o"):
        export(run, tmp_path / "file" / "w")
    assert not (tmp_path / "w").exists()


class Hostile:
    """Runs a command when it is unpickled by a reader that allows it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    for held in (
        Hostile(tmp_path / "ran"),
        {**state_of("resnet18", width=2), "x": Hostile(tmp_path / "ran")},
    ):
        torch.save(held, tmp_path / "hostile.pth")
        with pytest.raises(CheckpointError, match=r"hostile.pth: holds more than tensors.*never loaded"):
            load_weights(tmp_path / "hostile.pth", "resnet18")
    assert not (tmp_path / "ran").exists()
    # The same file does run where pickles are trusted, so the refusal is what kept it from running.
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"a pickled module is never loaded. Save its state_dict\(\)"):
        load_weights(tmp_path / "module.pt", "resnet18")


@pytest.mark.parametrize("arch", ["resnet101", "wide_resnet50_2", "resnext50_32x4d"])
def test_weights_of_torchvisions_other_networks_are_read(tmp_path: Path, arch: str) -> None:
    theirs = torchvision.models.get_model(arch, num_classes=5)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors", arch)
    assert loaded.classes == 5
    assert torch.equal(logits(loaded.network), logits(theirs))


def test_what_trainers_wrap_around_a_state_dict_is_taken_off(tmp_path: Path) -> None:
    plain = state_of("resnet18", width=4)
    prefixed = OrderedDict((f"module.{name}", tensor) for name, tensor in plain.items())
    counterless = {name: t for name, t in plain.items() if not name.endswith("num_batches_tracked")}
    for held in ({"state_dict": prefixed, "epoch": 3}, {"model": plain, "lr": 0.1}, prefixed, plain):
        torch.save(held, tmp_path / "w.pth")
        assert load_weights(tmp_path / "w.pth", "resnet18").weights_sha256 == weights_sha256(plain)
    torch.save(counterless, tmp_path / "old.pth")
    old = load_weights(tmp_path / "old.pth", "resnet18").network.state_dict()
    assert all(torch.equal(old[name], tensor) for name, tensor in counterless.items())
    assert old["bn1.num_batches_tracked"] == 0
    torch.save({k: t.half() if t.is_floating_point() else t for k, t in plain.items()}, tmp_path / "half.pt")
    half = load_weights(tmp_path / "half.pt", "resnet18").network
    assert half.get_parameter("fc.weight").dtype == torch.float32
    torch.testing.assert_close(half.get_parameter("fc.weight"), plain["fc.weight"], rtol=1e-3, atol=1e-3)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("downsample", "shortcut"): tensor for name, tensor in state.items()}


def reshaped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "layer4.1.bn2.weight": torch.zeros(7)}


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "other names": (renamed, "is not a state dict of resnet18: it lacks layer2.0.downsample.0.weight.*more"),
    "another shape": (reshaped, r"it has layer4.1.bn2.weight of shape \(7,\), not \(32,\)"),
    "a deeper network": (lambda _: state_of("resnet34", width=4), "it has layer1.2.conv1.weight"),
    "no classifier": (lambda s: {k: t for k, t in s.items() if k[:2] != "fc"}, "lacks conv1.weight or fc"),
    "a tensor alone": (lambda s: s["fc.weight"], "is no state dict, names with a tensor each"),
    "numbers": (lambda s: {**s, "epoch": 3}, "is no state dict, names with a tensor each"),
    "nothing": (lambda _: {}, "lacks conv1.weight or fc.weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_state_dict_of_the_network_is_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    torch.save(change(state_of("resnet18", width=4)), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "w.pth", "resnet18")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"PK\x03\x04" + bytes(60), b"\x80\x02}q"]
)
def test_a_file_that_is_damaged_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_weights(tmp_path / name, "resnet18")


def test_files_and_networks_that_are_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"w.h5: weights are read from .safetensors"):
        load_weights(tmp_path / "w.h5", "resnet18")
    with pytest.raises(CheckpointError, match=r"w.pth: no such file"):
        load_weights(tmp_path / "w.pth", "resnet18")
    torch.save(state_of("resnet18", width=2), tmp_path / "w.pth")
    with pytest.raises(
        ConfigError, match=r"'vgg16' is no network whose weights can be read; use one of .*resnet18"
    ):
        load_weights(tmp_path / "w.pth", "vgg16")


def test_onnx_without_its_packages_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "ONNX_PACKAGES", ("torch", "onnx_of_nobody"))
    with pytest.raises(ConfigError, match=r"needs onnx_of_nobody; pip install seal-ray\[onnx\]"):
        export(run, tmp_path / "w.onnx", file_format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    any(find_spec(package) is None for package in ONNX_PACKAGES),
    reason=f"needs {', '.join(ONNX_PACKAGES)}: pip install seal-ray[onnx]",
)
@pytest.mark.parametrize("model", [{}, {"stem": "cifar", "width": 4}])
def test_onnx_runtime_gives_torchs_logits_for_any_number_of_images(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    import onnx
    import onnxruntime

    exported = export(make_run(tmp_path, dataset, **model), tmp_path / "w.onnx", file_format="onnx")
    assert exported.onnx_difference is not None
    assert exported.onnx_difference < 1e-4
    assert "logits differ by at most" in exported.card.read_text()
    onnx.checker.check_model(onnx.load(exported.path), full_check=True)
    ours = network_of(state_of("resnet18", 1, **model), **model)
    monkeypatch.chdir(tmp_path)
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        scope = {"images": images.numpy(), "onnxruntime": onnxruntime}
        exec(python_of(exported.card.read_text()), scope)
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(scope["logits"]), ours.eval()(images), rtol=0, atol=1e-4
            )


def test_exports_are_the_same_bytes_each_time(run: Path, tmp_path: Path) -> None:
    one, two = (export(run, tmp_path / name / "w", moment="g000-relearned") for name in "ab")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.card.read_text() == two.card.read_text()
    assert replace(one, path=two.path, card=two.card) == two
