"""The run folder `<storage>/<run id>/`: checkpoints, moments, metrics, status, stop request, lease.

metrics.jsonl is the truth about metrics: one line an epoch, in order, each once. A commit writes the
checkpoint first and its lines second; opening a run rewrites the lines from the checkpoint, so a kill
between the two leaves nothing doubled or missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seal_ray.errors import CheckpointError, Diverged, SealRayError, SealRayWarning, StorageError, in_a_line
from seal_ray.phases.schedule import Position, Row
from seal_ray.runs.checkpoint import (
    Snapshot,
    newest_first,
    read_manifest,
    read_snapshot,
    remove_snapshot,
    to_line,
    write_snapshot,
)
from seal_ray.runs.lineage import run_id
from seal_ray.runs.weights import pinned
from seal_ray.storage.files import append_durably, saving, write_durably
from seal_ray.storage.paths import AnyPath, storage_path

if TYPE_CHECKING:
    from seal_ray.data.images import Images
    from seal_ray.recipe import Recipe

CHECKPOINT = re.compile(r"g\d{3,}-e\d{3,}")
MOMENT = re.compile(r"g(\d{3,})-([a-z]+)", re.ASCII)
GENERATIONS = "generations.json"
ENDED = ("finished", "diverged")
"""Statuses of a run that is never trained any further."""
SWEEPS = "sweeps"
"""Below a storage folder, the results of sweeps: `sweeps/<name>/`."""
WARM_WORKERS = "ray-"
"""What the names of folders begin with that a sweep needs while it trains."""


@dataclass(frozen=True)
class Generations:
    """The keys of a run's generations (see `seal_ray.runs.lineage`), and the moments it keeps of each."""

    keys: tuple[str, ...]
    moments: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """One run's folder. Only the worker that leads writes to it, while `owned()` says it may."""

    folder: AnyPath
    run_id: str
    checkpoints: int = 2  # how many to keep
    owned: Callable[[], bool] = lambda: True

    def latest(self) -> Snapshot | None:
        """The newest usable checkpoint; None when the run never committed one.

        A damaged one is skipped with a warning that names it. CheckpointError, saying what was tried,
        when there are checkpoints and none is usable.
        """
        tried = []
        for folder in self._completed():
            try:
                return self._read(folder)
            except CheckpointError as error:
                tried.append(str(error))
                warnings.warn(f"checkpoint skipped: {error}", SealRayWarning, stacklevel=2)
        if tried:
            raise CheckpointError(
                f"{self.folder}: no usable checkpoint among {len(tried)}:\n  "
                + "\n  ".join(tried)
                + "\nRestore one of them, or remove the run's folder to train it anew."
            )
        return None

    def at(self, position: Position) -> Snapshot:
        """The checkpoint at a position. CheckpointError when it is not usable."""
        return self._read(self.folder / "checkpoints" / epoch_label(position))

    def open(self, snapshot: Snapshot | None) -> None:
        """Make the folder agree with the state that training goes on from."""
        rows = snapshot.rows if snapshot else ()
        with self._saving():
            write_durably(self.folder / "metrics.jsonl", b"".join(map(to_line, rows)))

    def commit(self, snapshot: Snapshot) -> None:
        """Save the state after an epoch, then its metrics, then drop surplus checkpoints.

        Those of later epochs (damaged ones that were skipped) are not counted, only overwritten in time.
        """
        assert snapshot.position is not None
        written = self.folder / "checkpoints" / epoch_label(snapshot.position)
        with self._saving():
            write_snapshot(written, snapshot)
        # Asked again, since writing takes a while: an equal checkpoint does no harm, a doubled line would.
        with self._saving():
            if snapshot.epochs == 1:
                append_durably(self.folder / "metrics.jsonl", to_line(snapshot.rows[-1]))
            else:  # none of several lines without the others
                write_durably(self.folder / "metrics.jsonl", b"".join(map(to_line, snapshot.rows)))
            found = self._checkpoints()
            for surplus in found[found.index(written) + self.checkpoints :]:
                remove_snapshot(surplus)

    def mend(self) -> None:
        """Put metrics back to what the newest checkpoint says, if damaged or if there is no checkpoint."""
        try:
            astray = bool(self.rows()) and not self._completed()
        except CheckpointError:
            astray = True
        if astray:
            self.open(self.latest())

    def adopt(self, snapshot: Snapshot) -> None:
        """Go on from a state that was trained elsewhere: it becomes the newest checkpoint."""
        assert snapshot.position is not None
        if not self._completed():
            self.open(snapshot)  # first, so that nobody finds a checkpoint without its metrics
        with self._saving():
            write_snapshot(self.folder / "checkpoints" / epoch_label(snapshot.position), snapshot)
        self.open(snapshot)

    def keep_moment(self, name: str, generation: int, snapshot: Snapshot) -> None:
        """Save a named moment for analysis: `moments/gGGG-<name>`. The optimizer is not part of it."""
        with self._saving():
            write_snapshot(
                self._moment(name, generation), replace(snapshot, optimizer={}, moment=name, epochs=1)
            )

    def keep_examples(self, position: Position, right: npt.NDArray[np.bool_]) -> None:
        """Save which validation images, in their order, the epoch at `position` had right."""
        text = json.dumps({"count": len(right), "right": np.packbits(right).tobytes().hex()})
        with self._saving():
            write_durably(self._examples(position), text.encode())

    def examples(self, position: Position) -> npt.NDArray[np.bool_] | None:
        """What `keep_examples` saved of an epoch; None when that was not tracked.

        CheckpointError when it is damaged.
        """
        path = self._examples(position)
        try:
            held = json.loads(path.read_bytes())
            packed = np.frombuffer(bytes.fromhex(held["right"]), dtype=np.uint8)
            return np.unpackbits(packed)[: held["count"]].astype(bool)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(
                f"{path}: damaged; remove it, and the epoch counts as not tracked"
            ) from None

    def moment(self, name: str, generation: int) -> Snapshot:
        """A kept moment. CheckpointError when it is not there or not usable."""
        snapshot = read_snapshot(self._moment(name, generation), self.run_id)
        if snapshot.moment != name:
            raise CheckpointError(f"{self._moment(name, generation)}: holds another moment; it was copied")
        return snapshot

    def completed_moments(self) -> frozenset[str]:
        """The labels `gGGG-<name>` of the moments that were completed."""
        return frozenset(path.parent.name for path in (self.folder / "moments").rglob("manifest.json"))

    def record_generations(self, keys: Sequence[str], moments: Sequence[str]) -> None:
        """Say which generations this run consists of and which moments it keeps of each of them.

        Moments that an earlier launch did not keep are left out, since earlier generations lack them.
        """
        before = self.generations()
        kept = tuple(name for name in moments if before is None or name in before.moments)
        if before == Generations(tuple(keys), kept):
            return
        with self._saving():
            text = json.dumps({"keys": list(keys), "moments": kept}, indent=1)
            write_durably(self.folder / GENERATIONS, text.encode())

    def generations(self) -> Generations | None:
        """The generations of the run; None when they were never recorded or are damaged."""
        try:
            held = json.loads((self.folder / GENERATIONS).read_bytes())
            return Generations(tuple(map(str, held["keys"])), tuple(map(str, held["moments"])))
        except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
            return None

    def status(self) -> dict[str, Any]:
        """What was last recorded: {"status": "running" | "finished" | "stopped" | "diverged", ...}."""
        path = self.folder / "status.json"
        try:
            held = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            held = None
        return held if isinstance(held, dict) else {"status": "unknown", "reason": f"{path} is damaged"}

    def set_status(self, status: str, **details: Any) -> None:
        """Record how the run stands."""
        text = json.dumps({"run_id": self.run_id, "status": status, **details}, indent=1)
        with self._saving():
            write_durably(self.folder / "status.json", text.encode())

    def rows(self) -> list[Row]:
        """The metrics so far; a line that is still being written is left out.

        CheckpointError unless they are, byte for byte, what one of the checkpoints says.
        """
        path = self.folder / "metrics.jsonl"
        text = _whole_lines(path)
        while (known := self._metrics_checksums()) and hashlib.sha256(text).hexdigest() not in known:
            # Epochs may have been committed since it was read; damage stays as it is.
            before, text = text, _whole_lines(path)
            if text == before:
                raise CheckpointError(
                    f"{path}: damaged, it is not what the checkpoints say; the next launch of the run "
                    "rewrites it"
                )
        try:
            rows = [json.loads(line) for line in text.splitlines()]
        except (ValueError, RecursionError):
            rows = [None]
        if not all(isinstance(row, dict) for row in rows):
            raise CheckpointError(f"{path}: damaged, and the run has no checkpoint; remove the run's folder")
        return rows

    def metrics_size(self) -> int:
        """Bytes of metrics so far, which tell whether there are more; 0 when there are none."""
        try:
            return (self.folder / "metrics.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def warn(self, text: str) -> None:
        """Leave a warning for whoever follows the run; one that cannot be written is dropped."""
        with suppress(OSError, StorageError):
            append_durably(self.folder / "warnings.txt", (" ".join(text.split()) + "\n").encode())

    def warnings(self) -> list[str]:
        """What the run has warned of, oldest first."""
        return _whole_lines(self.folder / "warnings.txt").decode().splitlines()

    def record_start(self) -> None:
        """Note that workers begin here, after so many epochs; like a warning it may be dropped."""
        with suppress(OSError, StorageError, CheckpointError):
            append_durably(self.folder / "starts.txt", f"{len(self.rows())}\n".encode())

    def starts(self) -> list[int]:
        """After how many epochs workers began, in order: more than one where the run was resumed."""
        try:
            return [int(line) for line in _whole_lines(self.folder / "starts.txt").splitlines()]
        except ValueError:
            return []

    @contextmanager
    def failing(self) -> Iterator[None]:
        """An exception in the block, but for Diverged, is how the run stands from then on: `failed`."""
        try:
            yield
        except Diverged:
            raise
        except Exception as error:
            with suppress(SealRayError):
                self.set_status("failed", reason=in_a_line(error))
            raise

    def say_waiting(self, why: str) -> None:
        """Note what keeps workers from starting, empty: nothing; like a warning it may be dropped."""
        with suppress(OSError, StorageError):
            if why:
                write_durably(self.folder / "waiting.txt", why.encode())
            else:
                (self.folder / "waiting.txt").unlink(missing_ok=True)

    def waiting(self) -> str:
        """What `say_waiting` noted."""
        try:
            return (self.folder / "waiting.txt").read_bytes().decode()
        except FileNotFoundError:
            return ""

    def request_stop(self, reason: str = "it was asked to") -> None:
        """Ask the run to end at its next epoch boundary; the reason becomes that of its status."""
        with saving(self.folder):
            write_durably(self.folder / "stop", reason.encode())

    def stop_requested(self) -> bool:
        """Whether someone asked the run to end."""
        return (self.folder / "stop").exists()

    def stop_reason(self) -> str:
        """Why someone asked the run to end; of an empty file that it is there."""
        try:
            return (self.folder / "stop").read_text().strip() or "there is a file `stop` in its folder"
        except FileNotFoundError:
            return "it was asked to"

    def clear_stop(self) -> None:
        """Forget a stop request that has been obeyed, or that was for an earlier launch."""
        (self.folder / "stop").unlink(missing_ok=True)

    def _examples(self, position: Position) -> AnyPath:
        return self.folder / "examples" / f"{epoch_label(position)}.json"

    def _moment(self, name: str, generation: int) -> AnyPath:
        return self.folder / "moments" / moment_label(name, generation)

    def _read(self, folder: AnyPath) -> Snapshot:
        snapshot = read_snapshot(folder, self.run_id)
        if snapshot.moment is not None:
            raise CheckpointError(f"{folder}: is a moment, which lacks the optimizer; it was copied here")
        if snapshot.position is None or epoch_label(snapshot.position) != folder.name:
            raise CheckpointError(f"{folder}: holds the state of another epoch; it was copied or renamed")
        return snapshot

    def _metrics_checksums(self) -> set[str]:
        """SHA-256 of metrics.jsonl as each checkpoint has it; a kill may leave it one commit behind."""
        folders, found, first = self._checkpoints(), set(), 0
        for folder in folders:
            with suppress(CheckpointError):
                manifest = read_manifest(folder)
                found.add(manifest["files"]["metrics.jsonl"]["sha256"])
                first = manifest.get("epochs", 1)
        if found and [folder.name for folder in folders] == [epoch_label(Position(0, first - 1))]:
            found.add(hashlib.sha256(b"").hexdigest())
        return found

    def _completed(self) -> list[AnyPath]:
        return [folder for folder in self._checkpoints() if (folder / "manifest.json").exists()]

    def _checkpoints(self) -> list[AnyPath]:
        parent = self.folder / "checkpoints"
        found: list[AnyPath] = list(parent.iterdir()) if parent.is_dir() else []
        return newest_first([f for f in found if CHECKPOINT.fullmatch(f.name)])

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Write as the owner of the run; what goes wrong is said, and costs nothing committed before."""
        with saving(self.folder):
            if not self.owned():
                raise CheckpointError(
                    f"{self.folder}: another launch has taken this run over; nothing written"
                )
            yield


def open_store(storage: AnyPath | str, recipe: Recipe, images: Images, checkpoints: int = 2) -> Store:
    """The store of a recipe's run on these images: `<storage>/<run id>/`."""
    identity = run_id(pinned(recipe), images.identity)
    return Store(storage_path(storage) / identity, identity, checkpoints)


def moment_label(name: str, generation: int) -> str:
    """What the folder of a moment is called: `gGGG-<name>`."""
    return f"g{generation:03d}-{name}"


def epoch_label(position: Position) -> str:
    """What the folder of a checkpoint is called: `gGGG-eEEE`."""
    return f"g{position.generation:03d}-e{position.epoch:03d}"


def _whole_lines(path: AnyPath) -> bytes:
    """The file's lines without one that is still being written; nothing when there is no file."""
    try:
        return b"".join(path.read_bytes().rpartition(b"\n")[:2])
    except FileNotFoundError:
        return b""
