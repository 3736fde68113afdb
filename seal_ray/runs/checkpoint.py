"""One saved state of a run: a folder of tensors and metric rows under a checksummed manifest.

The manifest is written last; a folder without a valid one does not exist. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seal_ray.errors import CheckpointError
from seal_ray.phases.edits import State as State
from seal_ray.phases.schedule import Position, Row
from seal_ray.storage.files import remove_folder, write_durably
from seal_ray.storage.paths import AnyPath

if TYPE_CHECKING:
    from torch import Tensor

SNAPSHOT_FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """All that training goes on from: the state after the epoch at `position`.

    weights: parameters and buffers by name; optimizer: its tensors by `<parameter>:<key>`; carried: named
    states of the method; rows: the metrics of every epoch up to here, oldest first; epochs: since the last
    checkpoint; weights_sha256: of the weights, where it is known already.
    """

    run_id: str
    position: Position | None  # None: before the first epoch
    weights: State
    optimizer: State = field(default_factory=dict)
    carried: dict[str, State] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    moment: str | None = None  # its name; None: a checkpoint
    epochs: int = 1
    weights_sha256: str | None = None


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (name, dtype, shape, C-order bytes) of parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_line(row: Row) -> bytes:
    """A metric row as a line of JSON."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def write_snapshot(folder: AnyPath, snapshot: Snapshot) -> None:
    """Write a snapshot; an existing folder is replaced, its manifest going first and coming last."""
    (folder / "manifest.json").unlink(missing_ok=True)
    carried = {f"{name}/{key}": t for name, state in snapshot.carried.items() for key, t in state.items()}
    contents = {
        "weights.safetensors": _tensors(snapshot.weights),
        "optimizer.safetensors": _tensors(snapshot.optimizer),
        "carried.safetensors": _tensors(carried),
        "metrics.jsonl": b"".join(to_line(row) for row in snapshot.rows),
    }
    for name, data in contents.items():
        write_durably(folder / name, data)
    at = snapshot.position
    body = {
        "format": SNAPSHOT_FORMAT,
        "run_id": snapshot.run_id,
        "position": None if at is None else {"generation": at.generation, "epoch": at.epoch},
        "moment": snapshot.moment,
        "weights_sha256": snapshot.weights_sha256 or weights_sha256(snapshot.weights),
        "fingerprint": dict(snapshot.fingerprint),
        **({"epochs": snapshot.epochs} if snapshot.epochs != 1 else {}),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        },
    }
    text = json.dumps({**body, "manifest_sha256": _seal(body)}, indent=1)
    write_durably(folder / "manifest.json", text.encode())


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """The manifest, its own checksum verified. CheckpointError says what is wrong with it."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        seal = manifest.pop("manifest_sha256")
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no manifest.json, so it was never completed") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: unreadable ({type(error).__name__})") from None
    if seal != _seal(manifest) or manifest.get("format") != SNAPSHOT_FORMAT:
        raise CheckpointError(f"{path}: altered, or written by another version")
    return dict(manifest)


def read_snapshot(folder: AnyPath, run_id: str) -> Snapshot:
    """Read a snapshot of this run, every checksum verified. CheckpointError says what is wrong."""
    from safetensors.torch import load

    manifest = read_manifest(folder)
    if manifest["run_id"] != run_id:
        raise CheckpointError(f"{folder}: belongs to run {manifest['run_id']}, not to {run_id}")
    contents = {}
    for name, entry in manifest["files"].items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name}: {error.strerror}") from None
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{folder / name}: truncated or altered")
        contents[name] = data
    carried: dict[str, State] = {}
    for name, tensor in load(contents["carried.safetensors"]).items():
        owner, key = name.split("/", 1)
        carried.setdefault(owner, {})[key] = tensor
    at = manifest["position"]
    return Snapshot(
        run_id=run_id,
        position=None if at is None else Position(at["generation"], at["epoch"]),
        weights=load(contents["weights.safetensors"]),
        optimizer=load(contents["optimizer.safetensors"]),
        carried=carried,
        rows=tuple(json.loads(line) for line in contents["metrics.jsonl"].splitlines()),
        fingerprint=manifest["fingerprint"],
        moment=manifest["moment"],
        epochs=manifest.get("epochs", 1),
    )


def remove_snapshot(folder: AnyPath) -> None:
    """Delete a snapshot, its manifest first, so that a half-deleted one does not exist either."""
    (folder / "manifest.json").unlink(missing_ok=True)
    remove_folder(folder)


def _tensors(state: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def newest_first(folders: Sequence[AnyPath]) -> list[AnyPath]:
    """Checkpoint folders `gGGG-eEEE`, the furthest position first."""
    return sorted(folders, key=lambda f: [int(part[1:]) for part in f.name.split("-")], reverse=True)
