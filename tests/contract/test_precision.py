"""Precision, compilation and memory format: refused where they cannot be had, and close to plain fp32."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from seal_ray.device import check_precision
from seal_ray.errors import ConfigError, SealRayWarning
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe, load_job
from seal_ray.runs.folder import Store, open_store
from seal_ray.testing import on_ranks
from seal_ray.training.loop import EpochResult, fit
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import same_state, tiny_images, tiny_recipe, train_run, without_speeds

pytestmark = pytest.mark.usefixtures("onednn")  # bf16 without it is coarser
CPU = torch.device("cpu")
ABLE = torch.cpu.get_capabilities()
BF16 = bool(ABLE.get("avx512_bf16") or ABLE.get("amx_bf16"))
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU computes bf16 in software only")
ONE_EPOCH: dict[str, Any] = {
    "budget": {"epochs": 1, "generation_length": 1},
    "optimizer": {"lr": 0.01, "warmup_share": 0.0},
}


# Of 16 pixels the last stage would see 1 x 1, where oneDNN's bf16 leaves parts of a gradient unwritten.
IMAGES = tiny_images(size=32)


def first_row(placement: Placement, **changes: Any) -> dict[str, Any]:
    """The metrics of one epoch."""
    recipe = tiny_recipe(**ONE_EPOCH, **changes)
    return dict(train_run(recipe, None, images=IMAGES, placement=placement)[0].row)


def train(recipe: Recipe, storage: Path, epochs: int | None = None, **placement: Any) -> Store:
    """Train in `storage`, for at most so many epochs."""
    store = open_store(storage, recipe, IMAGES, checkpoints=99)
    trained = fit(recipe, IMAGES, store=store, placement=Placement.model_validate(placement))
    for count, _ in enumerate(trained, start=1):
        if count == epochs:
            break
    return store


NUMBERS = ("train_loss", "val_loss", "grad_norm_early", "grad_norm_late", "weight_norm_late")


def close(one: dict[str, Any], other: dict[str, Any], rel: float, names: Sequence[str] = NUMBERS) -> None:
    for name in names:
        assert one[name] == pytest.approx(other[name], rel=rel), name


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}])
def test_bf16_in_software_is_refused_at_the_start_and_not_in_the_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capabilities: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    recipe = tiny_recipe(precision="bf16")
    with pytest.raises(ConfigError, match=r"recipe\.precision: this cpu has no fast bf16; use fp32"):
        Run(recipe, tiny_images(), None, World(), Placement())
    path = tmp_path / "job.yaml"
    path.write_text(
        "recipe:\n  data: {path: x}\n  method: seal\n  budget: {epochs: 8, generation_length: 4}\n"
        "  precision: bf16\n"
    )
    assert load_job(path).recipe.precision == "bf16"
    Run(tiny_recipe(), tiny_images(), None, World(), Placement())  # fp32 needs nothing


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16"])
def test_either_kind_of_bf16_hardware_will_do(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    check_precision("bf16", CPU)
    with pytest.raises(ConfigError, match="no fast tf32"):
        check_precision("tf32", CPU)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_before_ampere_has_neither(
    monkeypatch: pytest.MonkeyPatch, precision: str, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_precision("fp32", torch.device("cuda"))
    if fast:
        check_precision(precision, torch.device("cuda"))
    else:
        with pytest.raises(ConfigError, match=f"this cuda has no fast {precision}"):
            check_precision(precision, torch.device("cuda"))


def test_tf32_on_a_cpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.precision: this cpu has no fast tf32"):
        train_run(tiny_recipe(precision="tf32"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_bf16
def test_bf16_is_close_to_fp32_and_keeps_its_state_in_fp32(tmp_path: Path) -> None:
    store = train(tiny_recipe(precision="bf16", **ONE_EPOCH), tmp_path)
    (row,), plain = store.rows(), first_row(Placement())
    close(dict(row), plain, 0.05, ["train_loss", "weight_norm_early", "weight_norm_late"])
    assert row["train_loss"] != plain["train_loss"]
    saved = store.at(Position(0, 0))
    tensors = {**saved.weights, **saved.optimizer}
    assert {t.dtype for name, t in tensors.items() if "num_batches" not in name} == {torch.float32}


def test_fp64_keeps_and_resumes_its_state_in_fp64_and_is_close_to_fp32(tmp_path: Path) -> None:
    recipe = tiny_recipe({"name": "ban"}, precision="fp64", budget={"epochs": 4, "generation_length": 2})
    whole = train(recipe, tmp_path / "whole")
    for _ in range(4):
        pieces = train(recipe, tmp_path / "pieces", epochs=1)
    same_state(whole.at(Position(1, 1)), pieces.at(Position(1, 1)))
    saved = whole.at(Position(1, 1))
    tensors = {**saved.weights, **saved.optimizer, **saved.carried["teacher"]}
    assert {t.dtype for name, t in tensors.items() if "num_batches" not in name} == {torch.float64}
    one, plain = first_row(Placement(), precision="fp64"), first_row(Placement())
    close(one, plain, rel=1e-4)
    assert one["train_loss"] != float(np.float32(one["train_loss"]))


@needs_bf16
@pytest.mark.parametrize(
    "method", [{"name": "seal", "ascent_rate": 0.3}, {"name": "ban"}], ids=["seal", "ban"]
)
def test_a_bf16_run_resumed_at_every_epoch_is_bit_identical(tmp_path: Path, method: dict[str, Any]) -> None:
    recipe = tiny_recipe(method, precision="bf16", budget={"epochs": 6, "generation_length": 3})
    whole = train(recipe, tmp_path / "whole")
    for _ in range(6):
        pieces = train(recipe, tmp_path / "pieces", epochs=1)
    assert without_speeds(whole.rows()) == without_speeds(pieces.rows())
    for generation in range(2):
        for epoch in range(3):
            same_state(whole.at(Position(generation, epoch)), pieces.at(Position(generation, epoch)))


def test_the_memory_format_changes_last_bits_at_most() -> None:
    last, plain = (first_row(Placement(channels_last=flag)) for flag in (True, False))
    close(last, plain, rel=1e-4)


def test_checkpoints_do_not_depend_on_the_memory_format(tmp_path: Path) -> None:
    recipe = tiny_recipe({"name": "llf"}, budget={"epochs": 4, "generation_length": 2})
    stores = [train(recipe, tmp_path / str(flag), 1, channels_last=flag) for flag in (True, False)]
    last, plain = (store.at(Position(0, 0)) for store in stores)
    for ours, theirs in ((last.weights, plain.weights), (last.optimizer, plain.optimizer)):
        for name, tensor in ours.items():
            apart = (tensor.double() - theirs[name].double()).norm() / theirs[name].double().norm()
            assert apart < 0.02, name
    with pytest.warns(SealRayWarning, match=r"another fingerprint \(channels_last True -> False\)"):
        store = train(recipe, tmp_path / "True", channels_last=False)  # a run may go on in the other format
    assert [row["global_epoch"] for row in store.rows()] == [0, 1, 2, 3]


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile with a clean slate."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def captured(recipe_changes: dict[str, Any]) -> list[str]:
    """Digests of a run whose network is captured by torch.compile, and run without a C++ compiler."""
    real = torch.compile
    torch.compile = lambda network: real(network, backend="aot_eager")
    try:
        results = train_run(tiny_recipe(**recipe_changes), None, placement=Placement(compile=True))
    finally:
        torch.compile = real
    assert counters["stats"]["unique_graphs"] > 0
    return [_digest(result) for result in results]


def _digest(result: EpochResult) -> str:
    """Of the weights, and what the averaged ones do, if there are any."""
    return f"{result.row['weights_sha256']} {result.row.get('val_averaged_loss')}"


CAPTURED: dict[str, Any] = {
    "method": {"name": "seal", "ascent_rate": 0.3, "others": "freeze"},
    "budget": {"epochs": 4, "generation_length": 2},
    "averaging": "ema",
}


@pytest.mark.parametrize(
    "changes", [ONE_EPOCH, pytest.param(CAPTURED, marks=pytest.mark.faults)], ids=["normal", "seal"]
)
def test_a_captured_network_trains_like_the_plain_one(compiler: None, changes: dict[str, Any]) -> None:
    plain = train_run(tiny_recipe(**changes), None)
    assert captured(changes) == [_digest(result) for result in plain]


@pytest.mark.faults
def test_a_network_is_captured_anew_by_no_later_phase_nor_by_the_last_batch_of_an_evaluation(
    compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend="aot_eager"))
    recipe = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, budget={"epochs": 6, "generation_length": 2})
    graphs = []
    for result in fit(recipe, tiny_images(val=300), placement=Placement(compile=True)):
        graphs.append((result.row["phase"], counters["stats"]["unique_graphs"]))
    phases = ["learn", "learn", "ascend", "relearn", "ascend", "relearn"]
    assert graphs == [(phase, graphs[0][1]) for phase in phases]


@pytest.mark.faults
def test_a_captured_network_trains_alike_on_two_ranks(compiler: None) -> None:
    four = {**CAPTURED, "shards": 4}  # each of two ranks also has a shard that DDP does not see
    one, two = on_ranks(1, captured, four), on_ranks(2, captured, four)
    assert one[0] == two[0] == two[1]


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_close_to_the_plain_one(compiler: None) -> None:
    compiled, plain = (first_row(Placement(compile=flag)) for flag in (True, False))
    close(compiled, plain, rel=1e-2)
