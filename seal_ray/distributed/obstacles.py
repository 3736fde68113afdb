"""What keeps Ray from starting on this machine, or a cluster from being reached; Ray itself hangs or raises.

Facts of Ray 2.60: it writes a token to ~/.ray where none is named; its sockets lie at
<temporary folder>/ray/session_<date>_<pid>/sockets, and their paths have 107 bytes at most; RAY_ADDRESS wins
over the address that it is given, and an address where nobody answers is asked for minutes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

SOCKET_BYTES = 107
"""Bytes of the path of a Unix socket (sun_path of unix(7) without its end)."""
RAYS_TEMPORARY = "/tmp"  # nosec B108 - where Ray puts its files, not we
SESSION = "ray/session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""Where below the temporary folder the socket with the longest name is."""
CLUSTER_TIMEOUT = 5.0
"""Seconds that a cluster's address gets to answer."""
SHARED_MEMORY = Path("/dev/shm")  # nosec B108 - only asked how much is free
ENOUGH_SHARED = 256 * 2**20
"""Bytes there below which little of Ray's objects fits; Docker gives 64 MiB unless told otherwise."""


def obstacles(address: str | None, environment: Mapping[str, str]) -> list[str]:
    """Why Ray cannot start on this machine (address None), or the cluster at `address` not be reached.

    Each says what, where it is set, and what to set. environment: as in os.environ. Nothing is left behind.
    """
    found = [_unwritable_home(environment), *_temporary_folder(environment)]
    if address is not None:
        found = [_silent_address(address, environment)]
    return [one for one in found if one]


def shared_memory(folder: Path = SHARED_MEMORY) -> tuple[int, str]:
    """Bytes that are free where Ray keeps objects, and what is wrong with that: "" where it is enough.

    Ray starts with less, and then keeps them on disk.
    """
    held = os.statvfs(folder)
    free = held.f_bavail * held.f_frsize
    if free >= ENOUGH_SHARED:
        return free, ""
    return free, (
        f"{folder} has {free / 2**20:.0f} MiB left, so that Ray keeps its objects on disk, which is slow: "
        "delete files there that nobody uses; in Docker start the container with --shm-size=2g"
    )


def _unwritable_home(environment: Mapping[str, str]) -> str:
    """A home in which Ray cannot leave its token, where it has none yet and wants one."""
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ""
    home = Path(environment["HOME"]) if "HOME" in environment else Path.home()
    token = home / ".ray" / "auth_token"
    named = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    if named or os.access(token, os.R_OK):
        return ""
    if why := _why_unwritable(token.parent):
        return (
            f"HOME: Ray keeps its token in {token.parent}, which cannot be written to ({why}); set HOME to a "
            "folder of yours, or RAY_AUTH_TOKEN to a word of your own"
        )
    return ""


def _temporary_folder(environment: Mapping[str, str]) -> list[str]:
    """A temporary folder that Ray cannot write to, or whose sockets would have too long names."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in environment else "TMPDIR"
    folder = environment.get(name, RAYS_TEMPORARY)
    found = []
    if why := _why_unwritable(Path(folder) / "ray"):
        found.append(f"{name}: {folder} cannot be written to ({why}); set RAY_TMPDIR to a folder that can")
    excess = len(os.fsencode(f"{folder}/{SESSION.format(pid=os.getpid())}")) - SOCKET_BYTES
    if excess > 0:
        found.append(
            f"{name}: {folder} is {excess} bytes too long: the names of Ray's sockets in it would have more "
            f"than {SOCKET_BYTES}; set RAY_TMPDIR to a shorter folder, such as /tmp"
        )
    return found


def _silent_address(address: str, environment: Mapping[str, str]) -> str:
    """An address of a cluster where nobody answers, named as who has set it would look for it."""
    name, given = "RAY_ADDRESS", environment.get("RAY_ADDRESS", "")
    if not given:
        name, given = "--address", address
    if given == "auto":
        name, given = _last_started(environment)
    if given.startswith(("http://", "https://")):
        return f"{name}: {given} is a dashboard, for `seal-ray submit`; unset it, or give HOST:PORT"
    host, _, port = given.rpartition(":")
    if "://" in given or not (host and port.isdecimal()):
        return ""  # Ray says what it makes of it
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CLUSTER_TIMEOUT):
            return ""
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
    mend = "unset RAY_ADDRESS, or set it to" if name == "RAY_ADDRESS" else "give"
    return f"{name}: no Ray answers at {given} ({why}); {mend} the HOST:PORT of a cluster that runs"


def _last_started(environment: Mapping[str, str]) -> tuple[str, str]:
    """The file in which the last `ray start` of this host has left the cluster's address, and what it says.

    Ray reads it for `auto` where no head runs on this host.
    """
    temporary = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or RAYS_TEMPORARY
    file = Path(temporary) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        if not any(one.info["name"] == "gcs_server" for one in psutil.process_iter(["name"])):
            return str(file), file.read_text().strip()
    return "--address", "auto"


def _why_unwritable(folder: Path) -> str:
    """Why a folder cannot be made, or nothing written in it; "" when it can."""
    there = next(one for one in (folder, *folder.parents) if os.access(one, os.F_OK) or one == one.parent)
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return error.strerror or str(error)
