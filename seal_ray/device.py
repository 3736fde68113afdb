"""The process and the device a worker computes on: threads, determinism, precision."""

from __future__ import annotations

import os

import torch

from seal_ray.errors import ConfigError


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def auto_threads(shards: int, runs: int = 1) -> int:
    """Intra-op threads of a worker: the cores divided by the shards of the runs side by side, at least 1.

    By shards and not by workers, so that a run computes the same bits when it goes on with another number
    of workers; and never more threads than cores, which would slow two workers to a tenth.
    """
    return max(1, usable_cores() // (shards * runs))


def prepare_process(threads: int, device: torch.device, *, deterministic: bool, precision: str) -> None:
    """Set what torch keeps per process. Call it before the first computation.

    On a GPU `deterministic` refuses nondeterministic algorithms and cudnn's benchmarking, and only
    precision `tf32` lets matrix products and convolutions use TF32. A CPU is deterministic as it is.
    """
    torch.set_num_threads(threads)
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def check_precision(precision: str, device: torch.device) -> None:
    """ConfigError when the device does not compute in this precision at full speed."""
    if precision == "fp32":
        return
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = torch.cpu.get_capabilities()
        fast = precision == "bf16" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    if not fast:
        raise ConfigError(
            f"recipe.precision: this {device.type} has no fast {precision}; use fp32, or another device"
        )
