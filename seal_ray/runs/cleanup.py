"""What nothing in a storage folder refers to any more, and removing it: for `seal-ray clean`.

Left by launches that were killed, or kept by an earlier setting. Never anything of a run that is being
trained, never a moment that was completed, nothing outside of run folders (those with a job.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from seal_ray.errors import CheckpointError, ClusterError, ConfigError
from seal_ray.phases.schedule import Position
from seal_ray.recipe import load_job
from seal_ray.runs.checkpoint import newest_first, remove_snapshot
from seal_ray.runs.folder import CHECKPOINT, MOMENT, SWEEPS, WARM_WORKERS, Store
from seal_ray.storage.files import size_of
from seal_ray.storage.lease import hold_lease, lease_holder, locked
from seal_ray.storage.paths import AnyPath, ObjectPath, listed, on_this_host

TEMPORARY = re.compile(r"\.[\w.]+\.[a-z0-9_]{8}", re.ASCII)
"""What write_durably leaves when it is killed."""


@dataclass(frozen=True)
class Litter:
    """A file or folder that nothing refers to: where, why, and its size in bytes."""

    path: AnyPath
    what: str
    bytes: int
    run: AnyPath  # the folder whose owner minds it: the run's


def find_litter(storage: AnyPath) -> list[Litter]:
    """The litter of the runs in `storage` that nobody trains. CheckpointError without such a folder.

    A checkpoint is surplus when the newest ones that placement.keep.checkpoints asks for are all usable;
    every checksum of those is verified.
    """
    if not storage.is_dir():
        raise CheckpointError(f"{storage}: no such folder; name the one that runs were stored in")
    places: list[AnyPath] = [path.parent for path in listed(storage, "*/job.yaml")]
    places += sorted(on_this_host(storage).glob(f"{SWEEPS}/*/{WARM_WORKERS}*"))
    return [litter for place in places if lease_holder(place) is None for litter in _find(place)]


def remove(found: Sequence[Litter]) -> list[Litter]:
    """Remove litter that still is litter while no launch can begin; returns what is gone.

    Of a run that is being trained by now nothing is removed.
    """
    removed = []
    for run in dict.fromkeys(litter.run for litter in found):
        with _kept_free(run) as free:
            still = {litter.path for litter in _find(run)} if free else set()
            gone = [one for one in found if one.run == run and one.path in still]
            for path in (litter.path for litter in gone):
                if path.is_dir():
                    remove_snapshot(path)
                else:
                    with suppress(OSError):
                        path.unlink()
        removed += [litter for litter in gone if not litter.path.exists()]
    return removed


@contextmanager
def _kept_free(run: AnyPath) -> Iterator[bool]:
    """Whether nobody trains the run, which no one can begin to do for the length of the block."""
    if not isinstance(run, ObjectPath):
        with locked(run):
            yield lease_holder(run) is None
        return
    with ExitStack() as stack:
        free = False
        with suppress(ClusterError):  # where hosts share no lock: ours is a launch of its own
            stack.enter_context(hold_lease(run))
            free = True
        yield free


def _find(run: AnyPath) -> Iterator[Litter]:
    """The litter in the folder of a run, or of a sweep's warm workers, that nobody alive owns."""
    if run.name.startswith(WARM_WORKERS):
        yield Litter(run, "Ray's folder of a sweep that is gone", size_of(run), run)
        return
    leases = run.glob("lease.json") if isinstance(run, Path) else ()  # an object is never without one
    for path, what in (
        *((path, "lease of a launch that is gone") for path in leases),
        *((path, "Ray's folder of a launch that is gone") for path in on_this_host(run).glob("ray")),
        *((path, "half-written") for path in _unfinished(run)),
        *((path, "more checkpoints than placement.keep.checkpoints") for path in _surplus(run)),
    ):
        yield Litter(path, what, size_of(path), run)


def _unfinished(run: AnyPath) -> Iterator[AnyPath]:
    """Snapshots whose manifest was never written, and temporary files elsewhere."""
    yield from (path for path in listed(run, "*") if _temporary(path))
    snapshots = [path for path in run.glob("checkpoints/*") if CHECKPOINT.fullmatch(path.name)]
    snapshots += [path for path in run.glob("moments/*") if MOMENT.fullmatch(path.name)]
    for folder in sorted(snapshots):
        if not (folder / "manifest.json").exists():
            yield folder
        else:
            yield from (path for path in listed(folder, "*") if _temporary(path))


def _surplus(run: AnyPath) -> list[AnyPath]:
    """Complete checkpoints beyond those to keep, which must be usable; none if that cannot be told."""
    manifests = run.glob("checkpoints/*/manifest.json")
    folders = newest_first([path.parent for path in manifests if CHECKPOINT.fullmatch(path.parent.name)])
    try:
        keep = load_job(run / "job.yaml").placement.keep.checkpoints
        for folder in folders[:keep] if len(folders) > keep else []:
            generation, epoch = folder.name[1:].split("-e")
            Store(run, run.name).at(Position(int(generation), int(epoch)))
    except (ConfigError, CheckpointError):
        return []
    return folders[keep:]


def _temporary(path: AnyPath) -> bool:
    return path.is_file() and TEMPORARY.fullmatch(path.name) is not None
