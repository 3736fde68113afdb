"""Reach the head of a Ray cluster: its Jobs API, with the token it wants, and errors that say what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from seal_ray.errors import ClusterError, ConfigError

PATIENCE = 10.0
"""Seconds until an address where nobody answers is given up; Ray's own client waits for minutes."""
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell of each upload and each closed connection."""


def connect(address: str) -> Any:
    """A client of the Jobs API at `address`, the http address of a cluster's dashboard.

    ClusterError when nobody answers there, or when the cluster wants another token than the one we have.
    """
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address: {address!r} is not the address of a Ray dashboard, such as http://HEAD:8265"
        )
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    _knock(address, headers)
    from ray.job_submission import JobSubmissionClient

    for talkative in TALKATIVE:
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with asking(address), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        return JobSubmissionClient(address, headers=headers)


@contextlib.contextmanager
def asking(address: str) -> Iterator[None]:
    """What goes wrong between us and the cluster becomes a ClusterError."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise _refused(address) from None
    except (OSError, RuntimeError) as error:
        said = (str(error).strip(" .\n") or type(error).__name__).splitlines()[-1]
        raise ClusterError(f"{address}: {said}; jobs that run are not affected") from error


def _token() -> str | None:
    """The token where Ray looks for it; None when there is none, or RAY_AUTH_MODE names another mode."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    token, named = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token:
        path = Path(named or "~/.ray/auth_token").expanduser()
        try:
            token = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            if named:
                raise ClusterError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read: {error}") from None
    token = token.strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ClusterError("the Ray token holds characters that cannot be sent; it must be one line of ASCII")
    return token or None


def _knock(address: str, headers: dict[str, str]) -> None:
    """Ask for the version, to see that somebody answers."""
    # `connect` has seen to it that this is http or https.
    request = urllib.request.Request(f"{address}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):  # nosec B310
            pass
    except HTTPError as error:
        if error.code in (401, 403):
            raise _refused(address) from None
        raise ClusterError(
            f"{address}: answers {error.code}, it is no Ray dashboard; see --address"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        raise ClusterError(
            f"{address}: no Ray dashboard answers ({error}); see that the head runs, with --dashboard-host, "
            "and that its port is reachable from here: on Kubernetes by `kubectl port-forward`, elsewhere "
            "through an SSH tunnel"
        ) from None


def _refused(address: str) -> ClusterError:
    return ClusterError(
        f"{address}: the cluster refuses: no token, or not its own; nothing was done. Set RAY_AUTH_TOKEN, or "
        "RAY_AUTH_TOKEN_PATH to a file, to what the head was started with"
    )


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide environment variables: Ray lets them win over the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
