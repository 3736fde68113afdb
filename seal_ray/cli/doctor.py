"""Whether this machine can run seal_ray: what is right, what is missing, how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seal_ray.device import check_precision, usable_cores
from seal_ray.distributed.obstacles import SHARED_MEMORY, obstacles, shared_memory
from seal_ray.errors import ConfigError
from seal_ray.tracking.environment import has_key, wandb_mode


@dataclass(frozen=True)
class Check:
    """One thing looked at; `remedy` says what to do when it is not right."""

    name: str
    right: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at everything; takes a few seconds, because FFCV and Ray are really imported."""
    return [check() for check in (_python, _torch, _gpu, _ffcv, _ray, _start, _memory, _wandb, _disk)]


def _python() -> Check:
    version = platform.python_version()
    return Check("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _torch() -> Check:
    return _imports(
        "torch",
        lambda: f"{_version('torch')} with torchvision {_version('torchvision')}, {usable_cores()} cores",
        "pip install -c constraints.txt torch torchvision",
    )


def _gpu() -> Check:
    import torch

    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return Check("gpu", True, names or f"none; training runs on the CPU{_fast_bf16()}")


def _fast_bf16() -> str:
    """What `precision: bf16` brings on this CPU, measured on ResNet-18 of width 16 and 64 at 64 px."""
    import torch

    try:
        check_precision("bf16", torch.device("cpu"))
    except ConfigError:
        return ""
    return ", with recipe.precision bf16 1.3 to 1.65 times as fast"


def _ffcv() -> Check:
    def find() -> str:
        from seal_ray.data.beton import import_ffcv

        import_ffcv()
        return _version("ffcv")

    return _imports(
        "ffcv",
        find,
        "apt-get install libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv, "
        "or set placement.loader to torch",
    )


def _ray() -> Check:
    def find() -> str:
        import ray.train.torch

        return str(ray.__version__)

    return _imports("ray", find, "pip install 'ray[default,train,tune]'")


def _start() -> Check:
    """Whether Ray can start here, and the cluster answers that the environment names."""
    found = obstacles(None, os.environ)
    if "RAY_ADDRESS" in os.environ:
        found += obstacles("auto", os.environ)
    said = "Ray cannot be started, or not be reached" if found else "nothing keeps Ray from starting here"
    return Check("start", not found, said, "; ".join(found))


def _memory() -> Check:
    """Whether the memory that processes share has room."""
    free, problem = shared_memory()
    return Check("memory", not problem, f"{free / 2**30:.1f} GiB free in {SHARED_MEMORY}", problem)


def _wandb() -> Check:
    def find() -> str:
        import wandb

        mode = wandb_mode("auto")
        key = "a key is there" if has_key() else "no key; `wandb login` adds one"
        return f"{wandb.__version__}, {'logs nothing' if mode == 'off' else f'logs {mode}'} ({key})"

    return _imports("wandb", find, "pip install wandb, or set placement.tracking.wandb to off")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    shared = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    enough = free > 1 and shared > 1
    found = f"{free:.0f} GiB free here, {shared:.0f} GiB in {tempfile.gettempdir()}"
    return Check("disk", enough, found, "make room: Ray spills to the temporary folder")


def _imports(name: str, find: Callable[[], str], remedy: str) -> Check:
    """Right when `find` can import what it needs and say which version."""
    try:
        return Check(name, True, find())
    except Exception as error:  # a broken installation raises nearly anything when it is imported
        return Check(name, False, (str(error) or type(error).__name__).splitlines()[0], remedy)


def _version(package: str) -> str:
    return importlib.metadata.version(package)
