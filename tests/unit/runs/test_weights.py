"""Weights from elsewhere: the names that wrappers leave behind, and values that nothing can begin with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from seal_ray.errors import CheckpointError
from seal_ray.runs.weights import read_weights, weights_digest


def network() -> nn.Sequential:
    """With a batch norm, whose counter is an integer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))


class Wrapper(nn.Module):
    """Names what it wraps as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def inner_compiled() -> nn.Module:
    outer = network()
    outer[2] = torch.compile(outer[2])
    return outer


WRAPPED = {
    "compiled": lambda: torch.compile(network()),
    "parallel": lambda: nn.DataParallel(network()),
    "compiled, then parallel": lambda: Wrapper(torch.compile(network())),
    "parallel, then compiled": lambda: torch.compile(Wrapper(network())),
    "parallel twice": lambda: Wrapper(Wrapper(network())),
    "both, twice": lambda: torch.compile(Wrapper(torch.compile(Wrapper(network())))),
    "a part compiled": inner_compiled,
    "a part compiled, then parallel": lambda: Wrapper(inner_compiled()),
}


def saved(state: dict[str, Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_weights_have_the_names_of_the_plain_network(tmp_path: Path, wrapped: str, suffix: str) -> None:
    state = WRAPPED[wrapped]().state_dict()
    plain = network().state_dict()
    assert state.keys() != plain.keys()
    file = saved(state, tmp_path / f"wrapped{suffix}")
    found = read_weights(file)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert weights_digest(file) == weights_digest(saved(plain, tmp_path / f"plain{suffix}"))


def test_a_module_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    state = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 1)}).state_dict()
    assert read_weights(saved(state, tmp_path / "a.pth")).keys() == state.keys()


def test_a_name_that_two_tensors_would_have_is_refused(tmp_path: Path) -> None:
    state = {"w": torch.zeros(1), "_orig_mod.w": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"a.pth: holds w twice"):
        read_weights(saved(state, tmp_path / "a.pth"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_with_tensor_and_file(
    tmp_path: Path, suffix: str, value: float, dtype: torch.dtype
) -> None:
    state = nn.DataParallel(network().to(dtype)).state_dict()
    state["module.2.0.weight"][1, 2:] = value
    file = saved(state, tmp_path / f"broken{suffix}")
    with pytest.raises(CheckpointError) as caught:
        read_weights(file)
    assert str(caught.value).startswith(f"{file}: 2 of the 8 values of 2.0.weight are NaN or infinite")


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    file = saved({"w": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 of the 1 values of w are NaN or infinite"):
        read_weights(file)
