"""The process and the device a worker computes on: threads, determinism, precision."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from seal_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, str | int | float | list[str]]:
    """This host's processor, the cores and GPUs that this process may use, and its memory in GiB."""
    import torch

    models = re.findall(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


@contextlib.contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads an operation, which decides the last bits of sums on a CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare_process(
    device: torch.device, *, deterministic: bool, precision: str, gpu_share: float = 1.0
) -> None:
    """Set what torch keeps per process. Call it before the first computation.

    One thread an operation on the CPU, since threads decide last bits; other cores are for other workers and
    runs. On a GPU `deterministic` refuses nondeterministic algorithms and cudnn's benchmarking, and only
    precision `tf32` lets matrix products and convolutions use TF32. A CPU is deterministic as it is.
    gpu_share: of the GPU's memory, what torch may take, or raises its OutOfMemoryError: here, and not in a
    process that shares the GPU.
    """
    import torch

    torch.set_num_threads(1)
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(gpu_share, device)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def dtype_of(precision: str) -> torch.dtype:
    """What weights, images and losses are kept in."""
    import torch

    return torch.float64 if precision == "fp64" else torch.float32


def check_precision(precision: str, device: torch.device) -> None:
    """ConfigError when the device has no fast tf32 or bf16 and the precision is that."""
    if precision in ("fp32", "fp64"):
        return
    import torch

    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = torch.cpu.get_capabilities()
        fast = precision == "bf16" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    if not fast:
        raise ConfigError(
            f"recipe.precision: this {device.type} has no fast {precision}; use fp32, or another device"
        )
