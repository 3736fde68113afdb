"""What the environment says of W&B: W&B's settings files, over them its variables, over both a job's YAML."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import subprocess  # nosec B404 - of git alone
import threading
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from seal_ray.errors import ConfigError, SealRayWarning

if TYPE_CHECKING:
    from seal_ray.recipe import Tracking

PROJECT = "seal-ray"
MISSING = "`seal-ray sync` brings W&B what it lacks"
SERVER_TIMEOUT = 5.0
"""Seconds that W&B's server gets to answer before anything is trained."""
SILENT = threading.Event()
"""Set once this process has waited for W&B's server in vain, until training is launched anew."""
WANDB_MODES = {
    **{"online": "online", "run": "online", "shared": "online"},
    **{"offline": "offline", "dryrun": "offline", "disabled": "off"},
}
"""What W&B's modes are here; `shared` is for several processes of one run, of which here one logs."""
NO = ("", "0", "false", "no", "off")
SENT = ("MODE", "DISABLED", "PROJECT", "ENTITY", "RUN_GROUP", "TAGS", "NOTES", "BASE_URL", "DISABLE_GIT")
"""What other hosts are told of the environment: no secrets, and no paths."""


def wandb_mode(asked: str) -> str:
    """`online`, `offline` or `off`: what is asked for, and of `auto` what the environment says.

    Where it says nothing, `online` where W&B has an API key. ConfigError for a mode that W&B has not.
    """
    if asked != "auto":
        return asked
    said = _variables()
    if said.get("WANDB_DISABLED", "").lower() not in NO:
        return "off"
    if mode := said.get("WANDB_MODE"):
        if mode not in WANDB_MODES:
            raise ConfigError(f"WANDB_MODE={mode}: give online, offline or disabled")
        return WANDB_MODES[mode]
    return "online" if has_key() else "offline"


def mode_now(tracking: Tracking) -> str:
    """`wandb_mode` of what is tracked next; offline, with a warning, instead of waiting in vain once more."""
    mode = wandb_mode(tracking.wandb)
    if mode != "online" or not SILENT.is_set():
        return mode
    text = (
        "W&B is not waited for again, since it did not finish in time: what follows is kept offline. "
        f"{MISSING} of runs; of analyses and sweeps `wandb sync` with their folders does"
    )
    warnings.warn(text, SealRayWarning, stacklevel=3)
    return "offline"


def has_key() -> bool:
    """Whether W&B has an API key, or a token, for its server."""
    said = _variables()
    address = urlparse(server())
    held: object = said.get("WANDB_API_KEY") or said.get("WANDB_IDENTITY_TOKEN_FILE")
    with contextlib.suppress(OSError, netrc.NetrcParseError):  # where `wandb login` leaves it
        logins = netrc.netrc(os.environ.get("NETRC"))
        held = held or logins.authenticators(address.netloc) or logins.authenticators(address.hostname or "")
    return bool(held)


def falls_back(tracking: Tracking, note: Callable[[str], None]) -> bool:
    """Whether metrics are to be logged offline because W&B's server, to which `auto` would log, is silent.

    It is asked once, before training, instead of being waited for at the end of each run; a warning says so.
    note: is told where metrics go otherwise.
    """
    SILENT.clear()
    mode = wandb_mode(tracking.wandb)
    if tracking.wandb == "auto" and mode == "online" and (silence := unanswered()):
        text = f"W&B does not answer ({silence}); metrics are logged offline, and {MISSING}"
        warnings.warn(text, SealRayWarning, stacklevel=2)
        return True
    if mode == "online":
        note(f"W&B: online, {server()}, project {settled(tracking).project}")
    if mode == "offline":
        note(f"W&B: offline; {MISSING}")
    return False


def unanswered() -> str:
    """What keeps W&B's server from answering within SERVER_TIMEOUT; empty where it answers, whatever."""
    url = server()
    if not url.startswith(("http://", "https://")):
        return ""  # W&B says what is wrong with it
    try:
        with urlopen(Request(url, method="HEAD"), timeout=SERVER_TIMEOUT):  # nosec B310
            return ""
    except HTTPError:
        return ""
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        # Certificates W&B has settings of its own for.
        return "" if isinstance(reason, SSLError) else f"{url}: {reason or type(error).__name__}"


def server() -> str:
    """The address of W&B's server."""
    return _variables().get("WANDB_BASE_URL", "https://api.wandb.ai")


def settled(tracking: Tracking) -> Tracking:
    """The same with what the environment says where the YAML left a field open; as recorded with a run.

    `auto` that means online stays, so that a later command goes by its own environment.
    """
    mode, said = wandb_mode(tracking.wandb), _fields()
    fields = {name: getattr(tracking, name) or held for name, held in said.items()}
    fields["project"] = fields["project"] or PROJECT
    return tracking.model_copy(update={**fields, "wandb": tracking.wandb if mode == "online" else mode})


def overruled(tracking: Tracking) -> Iterator[str]:
    """What of the environment a YAML's own fields win over, a line each."""
    variables = {"project": "PROJECT", "entity": "ENTITY", "group": "RUN_GROUP", "tags": "TAGS"}
    for name, held in _fields().items():
        ours = getattr(tracking, name)
        if held and ours and held != ours:
            shown = ", ".join(ours) if isinstance(ours, tuple) else ours
            yield f"placement.tracking.{name}: {shown} wins over WANDB_{variables[name]}"
    meant = wandb_mode("auto")
    said = next((name for name in ("WANDB_DISABLED", "WANDB_MODE") if _variables().get(name)), None)
    if said and tracking.wandb not in ("auto", meant):
        yield f"placement.tracking.wandb: {tracking.wandb} wins over {said}={_variables()[said]}"


def sent_variables() -> dict[str, str]:
    """The variables that workers and jobs need, whose working directory is another one: see SENT."""
    said, commit = _variables(), git_commit()
    sent = {name: said[name] for name in (f"WANDB_{name}" for name in SENT) if name in said}
    return sent | ({"WANDB_GIT_COMMIT": commit} if commit else {})


def git_commit() -> str | None:
    """The commit that WANDB_GIT_COMMIT names, or that is checked out in the working directory."""
    said = _variables()
    if said.get("WANDB_DISABLE_GIT", "").lower() not in NO:
        return None
    if "WANDB_GIT_COMMIT" in said:
        return said["WANDB_GIT_COMMIT"]
    try:
        asked = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)  # nosec B603
    except OSError:  # there is no git
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _fields() -> dict[str, Any]:
    """Fields of `Tracking` by what the environment says of them; empty where it says nothing."""
    said = _variables()
    tags = (tag.strip() for tag in said.get("WANDB_TAGS", "").split(","))
    return {
        "project": said.get("WANDB_PROJECT"),
        "entity": said.get("WANDB_ENTITY"),
        "group": said.get("WANDB_RUN_GROUP"),
        "tags": tuple(filter(None, tags)),
    }


def _variables() -> dict[str, str]:
    """W&B's variables that are set, and what `wandb login` and `wandb offline` wrote, as variables."""
    held = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and value}
    own = Path(held.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser() / "settings"
    here = Path(held.get("WANDB_DIR", ".")).expanduser() / "wandb" / "settings"
    files = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        files.read([own, here])
    written = files["default"].items() if "default" in files else ()
    return {f"WANDB_{name.upper()}": value for name, value in written} | held
