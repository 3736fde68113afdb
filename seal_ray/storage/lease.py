"""Who trains a run: one launch at a time holds its lease, and only its workers may commit.

`<run folder>/lease.json` names the owner (host, boot, process) and a token; a heartbeat renews it. The
process of an owner on this host is looked up, so its death is known at once; an owner elsewhere is dead
when its heartbeat has not changed for `TIME_TO_LIVE` seconds of our own clock.

Who reads and then writes leases in a folder has its lock. In an object store hosts have none in common: a
lease is put there only if it is still the one that was read, so that of all who find a run free one gets it,
and no heartbeat brings back an owner that was replaced. A lease is given up by putting one of nobody, with
the last token, and not by deleting it: services delete whatever is there, which may be the next owner's. Each
lease differs from all before (token, time of the heartbeat), hence so does its e_tag.
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
from seal_ray.storage.files import make_folder, read_version, saving, write_durably
from seal_ray.storage.paths import AnyPath, ObjectPath, Version

HEARTBEAT = 5.0
TIME_TO_LIVE = 30.0


@contextlib.contextmanager
def hold_lease(folder: AnyPath) -> Iterator[str]:
    """Own the run in `folder` for the length of the block; yields the token that workers present.

    ClusterError, saying where, when another launch that is alive owns it. An owner on another host is
    given TIME_TO_LIVE seconds to show a heartbeat. CheckpointError when the lease cannot be written.
    """
    token = secrets.token_hex(8)
    with saving(folder):
        _acquire(folder, token)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, token, done), daemon=True)
    beating.start()
    try:
        yield token
    finally:
        done.set()
        beating.join()
        _release(folder, token)


def owns(folder: AnyPath, token: str) -> bool:
    """Whether `token` is still that of the run's owner."""
    return _lease(folder)[0].get("token") == token


def take_lead(folder: AnyPath, token: str) -> Callable[[], bool]:
    """Write for the owner from now on; returns whether this process still may.

    A host that is cut off may go on training, with the owner's token, beside the workers that are started in
    place of its own. CheckpointError when the folder cannot be written to.
    """
    leader, file = secrets.token_hex(8).encode(), folder / "leader"

    def leads() -> bool:
        return owns(folder, token) and read_version(file)[0] == leader

    with saving(folder):
        _, version = read_version(file)  # first: who takes the run over after that leads
        if owns(folder, token):
            _put(file, leader, version)
    return leads


def lease_holder(folder: AnyPath) -> str | None:
    """Where the run's owner is, as "process 12 on host", or None when nobody alive holds the lease.

    Of an owner on another host it can only be said that it held the lease; it counts as alive.
    """
    lease, _ = _lease(folder)
    if not lease or (_is_here(lease) and not _runs_here(lease)):
        return None
    return f"process {lease['pid']} on {lease['host']}"


@contextlib.contextmanager
def alone(folder: AnyPath) -> Iterator[Callable[[], bool]]:
    """Decide alone of all who share a folder or a place in an object store; yields whether it still is so.

    In an object store it may end meanwhile, for one that was silent for TIME_TO_LIVE seconds. Write what was
    decided, ask, and take it back if it has ended: the next to decide either saw it, or it is taken back.
    ClusterError where somebody else decides now.
    """
    if isinstance(folder, Path):
        with locked(folder):
            yield lambda: True
    else:
        with hold_lease(folder) as token:
            yield lambda: owns(folder, token)


class Pulse:
    """Whether the owners of runs are alive, judged by looking at their leases again and again.

    An owner elsewhere counts as alive until its heartbeat has been the same for TIME_TO_LIVE seconds.
    """

    def __init__(self) -> None:
        self._seen: dict[AnyPath, tuple[dict[str, Any], float]] = {}

    def alive(self, folder: AnyPath) -> bool:
        """Whether somebody alive trains the run in `folder`."""
        lease, _ = _lease(folder)
        if not lease or _is_here(lease):
            return bool(lease) and _runs_here(lease)
        if self._seen.get(folder, ({}, 0.0))[0] != lease:
            self._seen[folder] = (lease, time.monotonic())
        return time.monotonic() - self._seen[folder][1] < TIME_TO_LIVE


def _acquire(folder: AnyPath, token: str) -> None:
    make_folder(folder)
    seen: dict[str, Any] = {}
    while True:
        with locked(folder):
            lease, version = _lease(folder)
            alive = _runs_here(lease) if _is_here(lease) else lease not in ({}, seen)
            if not alive:
                return _claim(folder, token, version)
            if seen or _is_here(lease):
                raise _taken(folder, lease)
        seen, deadline = lease, time.monotonic() + TIME_TO_LIVE  # or until there is a heartbeat
        while time.monotonic() < deadline and _lease(folder)[0] == seen:
            time.sleep(min(1.0, HEARTBEAT))


def _claim(folder: AnyPath, token: str, version: Version | None) -> None:
    """Put our lease in the place of that version, which is nobody's."""
    try:
        written = _write(folder, token, version)
    except StorageError:
        _release_later(folder, token)  # it may have been written all the same
        raise
    # When the answer is lost a lease is put once more, and its own first copy is in the way.
    if not written and not owns(folder, token):
        raise _taken(folder, _lease(folder)[0])


def _release(folder: AnyPath, token: str) -> None:
    """Give the lease up, if it is ours."""
    file = folder / "lease.json"
    try:
        with locked(folder):
            lease, version = _lease(folder)
            if lease.get("token") == token and isinstance(file, Path):
                file.unlink()
            elif lease.get("token") == token:
                _put(file, json.dumps({"released": token}).encode(), version)
    except StorageError:
        _release_later(folder, token)


def _release_later(folder: AnyPath, token: str) -> None:
    """Again until the store answers: a lease that stayed would count as held while this process lives."""
    timer = threading.Timer(HEARTBEAT, _release, (folder, token))
    timer.daemon = True
    timer.start()


def _taken(folder: AnyPath, lease: dict[str, Any]) -> ClusterError:
    where = f"process {lease['pid']} on {lease['host']}" if lease else "elsewhere"
    stop = folder / "stop"
    how = f"`touch {stop}`" if isinstance(stop, Path) else f"an empty object {stop}"
    return ClusterError(
        f"run {folder.name} is already running: {where}; wait for it, or ask it to stop with {how}"
    )


def _beat(folder: AnyPath, token: str, done: threading.Event) -> None:
    """Renew the lease until done; a launch that was taken over leaves the new owner's alone."""
    while not done.wait(HEARTBEAT):
        # A full disk must not end the run: the lease is then merely not renewed.
        with contextlib.suppress(OSError, StorageError), locked(folder):
            lease, version = _lease(folder)
            if lease.get("token") != token:
                return
            _write(folder, token, version)


def _write(folder: AnyPath, token: str, version: Version | None) -> bool:
    process = psutil.Process()
    lease = {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": process.pid,
        "started": process.create_time(),
        "token": token,
        "beat": time.time(),
    }
    return _put(folder / "lease.json", json.dumps(lease).encode(), version)


def _put(file: AnyPath, data: bytes, version: Version | None) -> bool:
    """Write a file, or put an object if it is that version still; whether it was."""
    if isinstance(file, ObjectPath):
        return file.put_if(data, version)
    write_durably(file, data)
    return True


def _lease(folder: AnyPath) -> tuple[dict[str, Any], Version | None]:
    """The lease, or an empty dict when there is none that could be anyone's; and its version."""
    data, version = read_version(folder / "lease.json")
    try:
        lease = json.loads(data)
    except (ValueError, RecursionError):
        return {}, version
    known = isinstance(lease, dict) and {"host", "boot", "pid", "started", "token"} <= lease.keys()
    return (dict(lease) if known else {}), version


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
    """One at a time, of all that share the folder, reads and writes leases in it; objects have no lock."""
    if isinstance(folder, ObjectPath):
        yield
        return
    descriptor = os.open(folder / "lease.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
