"""One launch at a time owns a run: between processes, hosts, containers and after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from seal_ray.errors import ClusterError
from seal_ray.storage import lease
from seal_ray.storage.lease import Pulse, hold_lease, lease_holder, owns

HOLDER = """
import socket, sys, time
from pathlib import Path
from seal_ray.storage import lease
lease.HEARTBEAT = 0.05
if sys.argv[2]:
    socket.gethostname = lambda: sys.argv[2]
with lease.hold_lease(Path(sys.argv[1])) as token:
    print(token, flush=True)
    sys.stdin.readline()
    print(lease.owns(Path(sys.argv[1]), token), flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that holds a lease, on this host or on one of another name."""

    def __init__(self, folder: Path, host: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.token = self.read()

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def holder(folder: Path, host: str = "") -> Iterator[Holder]:
    held = Holder(folder, host)
    try:
        yield held
    finally:
        held.process.kill()
        held.process.communicate()


class Clock(SimpleNamespace):
    """The lease's clock in a test: sleeping takes no time and is added up."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    return clock


def write(folder: Path, **changes: Any) -> dict[str, Any]:
    """A lease as another launch left it; by default one of this very process."""
    with hold_lease(folder):
        fields = json.loads((folder / "lease.json").read_bytes())
    fields |= {"token": "theirs", **changes}
    (folder / "lease.json").write_text(json.dumps(fields))
    return dict(fields)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_held_for_the_length_of_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "storage" / "run"
    with hold_lease(folder) as token:
        assert owns(folder, token)
        assert not owns(folder, "another")
        assert lease_holder(folder) == f"process {os.getpid()} on {socket.gethostname()}"
    assert not owns(folder, token)
    assert lease_holder(folder) is None
    with hold_lease(folder) as again:
        assert again != token
    with pytest.raises(ZeroDivisionError), hold_lease(folder):
        raise ZeroDivisionError
    assert lease_holder(folder) is None


def test_a_second_holder_is_refused_with_pid_and_host(tmp_path: Path) -> None:
    folder = tmp_path / "normal-s0-0123456789"
    with holder(folder) as other:
        where = f"process {other.pid} on {socket.gethostname()}"
        with (
            pytest.raises(ClusterError, match=f"run {folder.name} is already running: {where}.*touch .*stop"),
            hold_lease(folder),
        ):
            pytest.fail("two launches own the run")
        assert lease_holder(folder) == where
        assert owns(folder, other.token)


def test_one_process_does_not_own_a_run_twice(tmp_path: Path) -> None:
    with hold_lease(tmp_path) as token:
        with pytest.raises(ClusterError, match=f"process {os.getpid()}"), hold_lease(tmp_path):
            pytest.fail("two launches own the run")
        assert owns(tmp_path, token)


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path, clock: Clock) -> None:
    with holder(tmp_path) as other:
        other.process.kill()
        other.process.wait()
        assert json.loads((tmp_path / "lease.json").read_bytes())["token"] == other.token
        assert lease_holder(tmp_path) is None
        with hold_lease(tmp_path) as token:
            assert owns(tmp_path, token)
            assert not owns(tmp_path, other.token)
    assert clock.now == Clock.now


def test_a_stopped_process_of_this_host_still_owns_its_run(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ClusterError, match=f"process {other.pid}"), hold_lease(tmp_path):
            pytest.fail("two launches own the run")


def test_a_process_that_has_the_same_number_is_not_the_owner(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path, started=psutil.Process().create_time() - 100)
    assert lease_holder(tmp_path) is None
    with hold_lease(tmp_path) as token:
        assert owns(tmp_path, token)
    assert clock.now == Clock.now


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot": "an earlier one"}])
def test_a_silent_owner_elsewhere_is_waited_for(
    tmp_path: Path, clock: Clock, changes: dict[str, str]
) -> None:
    write(tmp_path, pid=1, **changes)
    assert lease_holder(tmp_path) is not None
    with hold_lease(tmp_path) as token:
        assert owns(tmp_path, token)
    assert clock.now - Clock.now >= lease.TIME_TO_LIVE


def test_an_owner_elsewhere_that_beats_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    with holder(tmp_path, host="elsewhere") as other:
        with (
            pytest.raises(ClusterError, match=f"process {other.pid} on elsewhere"),
            hold_lease(tmp_path),
        ):
            pytest.fail("two launches own the run")
        assert owns(tmp_path, other.token)
        assert lease_holder(tmp_path) == f"process {other.pid} on elsewhere"


def test_an_owner_elsewhere_that_ends_meanwhile_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, host="elsewhere")
    clock = Clock()
    clock.sleep = lambda seconds: (tmp_path / "lease.json").unlink(missing_ok=True)
    monkeypatch.setattr(lease, "time", clock)
    with hold_lease(tmp_path) as token:
        assert owns(tmp_path, token)


def test_an_owner_that_was_taken_over_stops_beating_and_leaves_the_lease_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    monkeypatch.setattr(lease, "TIME_TO_LIVE", 0.3)
    with holder(tmp_path, host="elsewhere") as other:
        other.process.send_signal(signal.SIGSTOP)
        with hold_lease(tmp_path) as token:
            other.process.send_signal(signal.SIGCONT)
            other.go_on()
            assert other.read() == "False"  # owns() there
            beat = json.loads((tmp_path / "lease.json").read_bytes())["beat"]
            until(lambda: json.loads((tmp_path / "lease.json").read_bytes())["beat"] > beat)
            other.go_on()
            other.process.wait()
            assert owns(tmp_path, token)
    assert not (tmp_path / "lease.json").exists()


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    with hold_lease(tmp_path) as token:
        first = json.loads((tmp_path / "lease.json").read_bytes())
        until(lambda: json.loads((tmp_path / "lease.json").read_bytes())["beat"] > first["beat"] + 0.02)
        last = json.loads((tmp_path / "lease.json").read_bytes())
        assert {**last, "beat": 0} == {**first, "beat": 0}
        assert owns(tmp_path, token)


def test_no_heartbeat_follows_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.001)
    for _ in range(20):
        with hold_lease(tmp_path):
            pass
        assert not (tmp_path / "lease.json").exists()
    assert not [thread for thread in threading.enumerate() if "_beat" in thread.name]


@pytest.mark.parametrize(
    "left", [None, {"started": 0.0}, {"host": "elsewhere"}], ids=["new", "dead", "stale"]
)
def test_of_many_that_ask_at_once_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    monkeypatch.setattr(lease, "TIME_TO_LIVE", 3.0)  # far more than a busy machine delays a heartbeat
    if left is not None:
        write(tmp_path, **left)
    start, end = threading.Barrier(8), threading.Event()
    got: list[str] = []
    refused: list[ClusterError] = []

    def ask() -> None:
        start.wait()
        try:
            with hold_lease(tmp_path) as token:
                got.append(token)
                end.wait(60)
        except ClusterError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(got) + len(refused) == 8)
    assert len(got) == 1
    assert owns(tmp_path, got[0])
    end.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"5",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"host": "a", "boot": "b", "pid": 1, "started": 0}',  # no token: nobody's
    ],
)
def test_a_lease_that_is_none_is_nobodys(tmp_path: Path, clock: Clock, text: bytes) -> None:
    (tmp_path / "lease.json").write_bytes(text)
    assert lease_holder(tmp_path) is None
    assert not owns(tmp_path, "x")
    with hold_lease(tmp_path) as token:
        assert owns(tmp_path, token)
    assert clock.now == Clock.now


@pytest.mark.parametrize("pid", ["x", None, -1, 2**70, 1e999, [1]])
def test_a_process_that_cannot_be_is_dead(tmp_path: Path, pid: Any) -> None:
    write(tmp_path, pid=pid)
    assert lease_holder(tmp_path) is None
    with hold_lease(tmp_path) as token:
        assert owns(tmp_path, token)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a process namespace")
def test_a_process_in_another_container_of_this_host_is_an_owner_elsewhere(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from seal_ray.storage import lease
lease.HEARTBEAT, lease.TIME_TO_LIVE = 0.05, 60
with lease.hold_lease(Path({str(tmp_path)!r})):
    print("taken")
"""
    apart = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    with holder(tmp_path) as other:
        run = subprocess.run(apart, capture_output=True, text=True, check=False)
        if "unshare failed" in run.stderr or "Operation not permitted" in run.stderr:
            pytest.skip("process namespaces are not permitted here")
        assert f"ClusterError: run {tmp_path.name} is already running: process {other.pid}" in run.stderr
        assert run.stdout == ""


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    failed: list[int] = []
    real = lease.write_durably

    def write_durably(path: Path, data: bytes) -> None:
        if len(failed) < 3:
            failed.append(1)
            raise OSError(28, "No space left on device")
        real(path, data)

    with hold_lease(tmp_path) as token:
        beat = json.loads((tmp_path / "lease.json").read_bytes())["beat"]
        monkeypatch.setattr(lease, "write_durably", write_durably)
        until(lambda: json.loads((tmp_path / "lease.json").read_bytes())["beat"] > beat)
        assert len(failed) == 3
        assert owns(tmp_path, token)


def test_an_owner_elsewhere_is_alive_while_its_heartbeat_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = write(tmp_path, host="elsewhere")
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(lease, "time", clock)
    pulse = Pulse()
    assert not pulse.alive(tmp_path / "another")
    assert pulse.alive(tmp_path)
    for beat in (1.0, 2.0):
        clock.now += lease.TIME_TO_LIVE - 1
        (tmp_path / "lease.json").write_text(json.dumps({**fields, "beat": beat}))
        assert pulse.alive(tmp_path)
    clock.now += lease.TIME_TO_LIVE - 1
    assert pulse.alive(tmp_path)
    clock.now += 1
    assert not pulse.alive(tmp_path)
    (tmp_path / "lease.json").write_text(json.dumps({**fields, "beat": 3.0}))
    assert pulse.alive(tmp_path)


def test_an_owner_here_is_alive_while_its_process_is(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        assert Pulse().alive(tmp_path)
        os.kill(other.pid, signal.SIGKILL)
        until(lambda: not Pulse().alive(tmp_path))
