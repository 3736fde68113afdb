"""Hosts on one machine: network namespaces on a bridge, in each of which a Ray node can be started and ended.

They share the file system, as if it were mounted on all of them, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.conftest import MARK, processes_marked

BIN = Path(sys.executable).parent
PATIENCE = 120.0
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",  # the name of each of them resolves to 127.0.0.1
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Lost hosts and preemptions are noticed within a second or two.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(int(PATIENCE)),  # a busy machine may need it for an epoch
}


@dataclass(frozen=True)
class Host:
    """A host. Number 0 is for the head, whose Jobs API this process reaches as a laptop would."""

    network: str
    subnet: str
    number: int
    token: str
    scratch: Path

    @property
    def name(self) -> str:
        """Its namespace, and the mark of all that runs on it."""
        return f"{self.network}-{self.number}"

    @property
    def address(self) -> str:
        """Its IP address."""
        return f"{self.subnet}.{self.number + 2}"

    def start(self, *before: str) -> None:
        """Start its Ray node, of one CPU, and wait until it has joined. before: a command to start it by."""
        scratch = tempfile.mkdtemp(dir=self.scratch)
        place = ["--head", "--port", "6379", "--dashboard-host", self.address]
        if self.number > 0:
            place = ["--address", f"{self.subnet}.2:6379"]
        options = ["--node-ip-address", self.address, "--num-cpus", "1", "--temp-dir", scratch, "--block"]
        options += ["--object-store-memory", str(100 * 2**20)]
        said = Path(scratch) / "out"
        with said.open("w") as file:
            node = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *before, BIN / "ray", "start", *place, *options],
                env=self._environment(scratch),
                cwd=scratch,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        until(lambda: "Ray runtime started" in said.read_text() or node.poll() is not None)
        assert node.poll() is None, said.read_text()

    def processes(self) -> list[psutil.Process]:
        """All that runs on it."""
        return processes_marked(self.name)

    def workers(self) -> list[psutil.Process]:
        """The processes on it that train."""
        return [one for one in self.processes() if "RayTrainWorker" in _command(one)]

    def kill(self) -> None:
        """End all that runs on it at once."""
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def preempt(self) -> None:
        """Tell it that it will be taken away, as a spot host is told."""
        [node] = [one for one in self.processes() if "--block" in _command(one)]
        node.send_signal(signal.SIGTERM)

    def link(self, state: str) -> None:
        """Cut it off from the others, "down", or let it be reached again, "up"."""
        _ip("link", "set", f"{self.network}v{self.number}", state)

    def _environment(self, scratch: str) -> dict[str, str]:
        return {
            MARK: self.name,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": scratch,
            "RAY_AUTH_TOKEN": self.token,
            **SETTINGS,
        }


def refusal() -> str | None:
    """Why this machine cannot have such hosts; None when it can."""
    if shutil.which("ip") is None:
        return "no `ip` command: install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with network(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """Hosts without Ray nodes, for the length of the block; whatever then still runs on them is killed."""
    name, token = f"sr{secrets.token_hex(3)}", secrets.token_hex(16)
    subnet = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets want short names
    hosts = [Host(name, subnet, number, token, scratch) for number in range(count)]
    try:
        _ip("link", "add", name, "type", "bridge")
        _ip("addr", "add", f"{subnet}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        for host in hosts:
            end = f"{name}v{host.number}"
            _ip("netns", "add", host.name)
            _ip("link", "add", end, "master", name, "type", "veth", "peer", "eth0", "netns", host.name)
            _ip("link", "set", end, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            for what in (("link", "del", f"{name}v{host.number}"), ("netns", "del", host.name)):
                subprocess.run(["ip", *what], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        shutil.rmtree(scratch, ignore_errors=True)


def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _command(process: psutil.Process) -> str:
    """What a process runs; nothing once it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
