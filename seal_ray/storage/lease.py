"""Who trains a run: one launch at a time holds its lease, and only its workers may commit.

`<run folder>/lease.json` names the owner (host, boot, process) and a token; a heartbeat renews it. The
process of an owner on this host is looked up, so its death is known at once; an owner elsewhere is dead
when its heartbeat has not changed for `TIME_TO_LIVE` seconds of our own clock.

In an object store hosts have no lock in common: of those that find a run free at the same time, the one that
writes its lease last owns it, which all see after `SETTLE` seconds. A slower one would own it from then on,
and the other, which no longer does, commit nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from seal_ray.errors import ClusterError, StorageError
from seal_ray.storage.files import make_folder, saving, write_durably
from seal_ray.storage.paths import AnyPath, ObjectPath, on_this_host

HEARTBEAT = 5.0
TIME_TO_LIVE = 30.0
SETTLE = 1.0


@contextlib.contextmanager
def hold_lease(folder: AnyPath) -> Iterator[str]:
    """Own the run in `folder` for the length of the block; yields the token that workers present.

    ClusterError, saying where, when another launch that is alive owns it. An owner on another host is
    given TIME_TO_LIVE seconds to show a heartbeat. CheckpointError when the lease cannot be written.
    """
    with saving(folder):
        token = _acquire(folder)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, token, done), daemon=True)
    beating.start()
    try:
        yield token
    finally:
        done.set()
        beating.join()
        # One that stays because S3 does not answer is that of a process that is gone.
        with contextlib.suppress(StorageError), locked(folder):
            if owns(folder, token):
                (folder / "lease.json").unlink()


def owns(folder: AnyPath, token: str) -> bool:
    """Whether `token` is still that of the run's owner."""
    return _read(folder).get("token") == token


def take_lead(folder: AnyPath, token: str) -> Callable[[], bool]:
    """Write for the owner from now on; returns whether this process still may.

    A host that is cut off may go on training, with the owner's token, beside the workers that are started in
    place of its own. CheckpointError when the folder cannot be written to.
    """
    leader, file = secrets.token_hex(8).encode(), folder / "leader"

    def leads() -> bool:
        try:
            return owns(folder, token) and file.read_bytes() == leader
        except FileNotFoundError:
            return False

    if owns(folder, token):
        with saving(folder):
            write_durably(file, leader)
    return leads


def owner(folder: AnyPath) -> str | None:
    """Where the run's owner is, as "process 12 on host", or None when nobody alive holds the lease.

    Of an owner on another host it can only be said that it held the lease; it counts as alive.
    """
    lease = _read(folder)
    if not lease or (_is_here(lease) and not _runs_here(lease)):
        return None
    return f"process {lease['pid']} on {lease['host']}"


@contextlib.contextmanager
def unowned(folder: AnyPath) -> Iterator[bool]:
    """Whether nobody alive owns the run in `folder`, which then stays so for the length of the block."""
    with locked(folder):
        yield owner(folder) is None


class Pulse:
    """Whether the owners of runs are alive, judged by looking at their leases again and again.

    An owner elsewhere counts as alive until its heartbeat has been the same for TIME_TO_LIVE seconds.
    """

    def __init__(self) -> None:
        self._seen: dict[AnyPath, tuple[dict[str, Any], float]] = {}

    def alive(self, folder: AnyPath) -> bool:
        """Whether somebody alive trains the run in `folder`."""
        lease = _read(folder)
        if not lease or _is_here(lease):
            return bool(lease) and _runs_here(lease)
        if self._seen.get(folder, ({}, 0.0))[0] != lease:
            self._seen[folder] = (lease, time.monotonic())
        return time.monotonic() - self._seen[folder][1] < TIME_TO_LIVE


def _acquire(folder: AnyPath) -> str:
    make_folder(folder)
    seen = _read(folder)
    if seen and not _is_here(seen):
        _wait_for_silence(folder, seen)
    with locked(folder):
        lease = _read(folder)
        alive = _runs_here(lease) if _is_here(lease) else lease != seen
        if lease and alive:
            raise _taken(folder, lease)
        process = psutil.Process()
        token = secrets.token_hex(8)
        _write(folder, token, process.pid, process.create_time())
    if isinstance(folder, ObjectPath):
        time.sleep(SETTLE)
        lease = _read(folder)
        if lease.get("token") != token:
            raise _taken(folder, lease)
    return token


def _taken(folder: AnyPath, lease: dict[str, Any]) -> ClusterError:
    where = f"process {lease['pid']} on {lease['host']}" if lease else "elsewhere"
    stop = folder / "stop"
    how = f"`touch {stop}`" if isinstance(stop, Path) else f"an empty object {stop}"
    return ClusterError(
        f"run {folder.name} is already running: {where}; wait for it, or ask it to stop with {how}"
    )


def _wait_for_silence(folder: AnyPath, seen: dict[str, Any]) -> None:
    """Return once TIME_TO_LIVE has passed without a heartbeat, or as soon as there is one."""
    deadline = time.monotonic() + TIME_TO_LIVE
    while time.monotonic() < deadline and _read(folder) == seen:
        time.sleep(min(1.0, HEARTBEAT))


def _beat(folder: AnyPath, token: str, done: threading.Event) -> None:
    """Renew the lease until done; a launch that was taken over leaves the new owner's alone."""
    process = psutil.Process()
    while not done.wait(HEARTBEAT):
        # A full disk must not end the run: the lease is then merely not renewed.
        with contextlib.suppress(OSError, StorageError), locked(folder):
            if not owns(folder, token):
                return
            _write(folder, token, process.pid, process.create_time())


def _write(folder: AnyPath, token: str, pid: int, started: float) -> None:
    lease = {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "started": started,
        "token": token,
        "beat": time.time(),
    }
    write_durably(folder / "lease.json", json.dumps(lease).encode())


def _read(folder: AnyPath) -> dict[str, Any]:
    """The lease, or an empty dict when there is none that could be anyone's."""
    try:
        lease = json.loads((folder / "lease.json").read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    known = isinstance(lease, dict) and {"host", "boot", "pid", "started", "token"} <= lease.keys()
    return dict(lease) if known else {}


def _is_here(lease: dict[str, Any]) -> bool:
    return bool(lease) and lease["host"] == socket.gethostname() and lease["boot"] == _boot()


def _runs_here(lease: dict[str, Any]) -> bool:
    """Whether the owner's process runs on this host: the same number, started at the same time.

    One that was killed stays a zombie until its parent asks, which in a container may be never.
    """
    try:
        process = psutil.Process(int(lease["pid"]))
        same = abs(process.create_time() - float(lease["started"])) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, TypeError, OverflowError):
        return False


def _boot() -> str:
    """This boot of this host, and here this container: process numbers of others count for nothing."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if not path.exists():
        return str(psutil.boot_time())
    return f"{path.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """One process of this host at a time, or of all that share the folder, reads and writes leases here."""
    here = on_this_host(folder)
    if here is not folder:
        here.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(here / "lease.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
