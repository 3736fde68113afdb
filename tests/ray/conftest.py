"""A small prepared data set and one local Ray for the tests that need a real one."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from seal_ray.distributed.launch import ray_session
from seal_ray.jobs import connect
from seal_ray.recipe import Job
from seal_ray.tracking.terminal import RunProgress
from tests.faults.conftest import MARK, processes_marked

Screen = tuple[RunProgress, io.StringIO]
TOKEN = secrets.token_hex(16)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with a logical CPU a core."""
    with ray_session(None, lambda text: None):
        yield


@pytest.fixture
def screen() -> tuple[RunProgress, io.StringIO]:
    """A console and what it printed."""
    text = io.StringIO()
    return RunProgress(Console(file=text, width=120)), text


def small_job(
    data: Path, storage: Path, method: object, recipe: dict[str, object] | None = None, **placement: object
) -> Job:
    """Three generations of two epochs of a tiny network on the digits, for two workers."""
    return Job.model_validate(
        {
            "name": "small",
            "recipe": {
                "data": {"path": str(data)},
                "model": {"arch": "resnet18", "width": 4},
                "method": method,
                "budget": {"epochs": 6, "generation_length": 2},
                "optimizer": {"warmup_share": 0.0},
                "batch_size": 32,
                "shards": 4,
                **(recipe or {}),
            },
            "placement": {"workers": 2, "storage": str(storage), **placement},
        }
    )


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@contextlib.contextmanager
def head(programs: Path) -> Iterator[str]:
    """The address of a head of two CPUs with token authentication. programs: a folder, first in its PATH."""
    mark, temporary = (
        secrets.token_hex(8),
        tempfile.mkdtemp(prefix="ray-", dir="/tmp"),
    )  # sockets: short names
    port, bin_ = free_port(), Path(sys.executable).parent
    environment = {
        MARK: mark,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": temporary,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    ports = {"port": free_port(), "dashboard-agent-listen-port": free_port(), "dashboard-port": port}
    options = [word for option, value in ports.items() for word in (f"--{option}", value)]
    options += ["--ray-client-server-port", free_port(), "--dashboard-host", "127.0.0.1"]
    options += ["--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--temp-dir", temporary]
    try:
        started = subprocess.run(
            [bin_ / "ray", "start", "--head", *options],
            env=environment,
            cwd=temporary,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"http://127.0.0.1:{port}"
    finally:
        while left := processes_marked(mark):
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=1)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head that was started from an environment that is activated."""
    with head(Path(sys.executable).parent) as found:
        yield found


@pytest.fixture
def client(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client with the token, in a working directory of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # which Ray would prefer
    return connect(address)
