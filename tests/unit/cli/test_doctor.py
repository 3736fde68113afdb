"""What doctor says of this machine, and of one where something is missing."""

from __future__ import annotations

import builtins
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seal_ray.cli import doctor
from seal_ray.cli.doctor import Check, examine
from seal_ray.distributed import obstacles

NAMES = ["python", "torch", "gpu", "ffcv", "ray", "start", "memory", "wandb", "disk"]


def by_name() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def test_everything_is_looked_at_and_right_where_the_tests_run() -> None:
    checks = by_name()
    assert list(checks) == NAMES
    assert all(check.right for check in checks.values())
    assert checks["python"].found == platform.python_version()
    assert checks["torch"].found.startswith(importlib.metadata.version("torch"))
    assert checks["ray"].found == importlib.metadata.version("ray")
    assert checks["wandb"].found.startswith(importlib.metadata.version("wandb"))
    assert checks["ffcv"].found == importlib.metadata.version("ffcv")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libopencv_core.so.406: cannot open shared object file\nsecond line"),
        ImportError(),
        OSError(2, "No such file or directory"),
        AttributeError("module 'numpy' has no attribute 'bool'"),
        RuntimeError("built against another ABI"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("module", ["ffcv", "ray", "wandb"])
def test_what_cannot_be_imported_is_missing_and_the_rest_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch, module: str, error: Exception
) -> None:
    real = builtins.__import__

    def imports(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == module:
            raise error
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", imports)
    checks = by_name()
    assert [name for name in NAMES if not checks[name].right] == [module]
    assert "pip install" in checks[module].remedy
    assert checks[module].found.strip()
    assert "\n" not in checks[module].found


def test_a_package_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "torchvision":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = by_name()["torch"]
    assert not check.right
    assert "torchvision" in check.remedy


@pytest.mark.parametrize(("free", "right"), [(2**29, False), (2**34, True)])
def test_a_full_disk_is_not_right(monkeypatch: pytest.MonkeyPatch, free: int, right: bool) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    check = by_name()["disk"]
    assert check.right == right
    assert "make room" in check.remedy


@pytest.mark.parametrize(("version", "right"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 14, 1), True)])
def test_an_old_python_is_not_right(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], right: bool
) -> None:
    look: Callable[[], Check] = doctor._python
    monkeypatch.setattr(sys, "version_info", version)
    assert look().right == right


@pytest.mark.parametrize("able", [True, False])
def test_a_cpu_that_is_fast_in_bf16_is_said(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able, "amx_bf16": False})
    said = doctor._gpu().found
    assert said.startswith("none; training runs on the CPU")
    assert ("bf16 1.3 to 1.65 times as fast" in said) == able


def test_what_keeps_ray_from_starting_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 90}")
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    check = doctor._start()
    assert not check.right
    assert "RAY_TMPDIR: /tmp/xxx" in check.remedy
    assert "RAY_ADDRESS: http://head:8265 is a dashboard" in check.remedy


def test_too_little_shared_memory_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB free in /dev/shm" in doctor._memory().found
    monkeypatch.setattr(
        doctor, "shared_memory", lambda: obstacles.shared_memory(Path("/proc"))
    )  # holds nothing
    check = doctor._memory()
    assert not check.right
    assert "/proc has 0 MiB left" in check.remedy
    assert "--shm-size=2g" in check.remedy


def test_a_wandb_account_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "logs offline" in by_name()["wandb"].found
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert "logs online" in by_name()["wandb"].found
