"""Which runs of a sweep are left to train, and which of them may start now.

Several sweeps may work on one storage at once. They agree through what lies there: the runs' leases say what
is being trained, `generations.json` what it consists of, moments what is done.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from seal_ray.distributed.launch import Planned, begin, pause
from seal_ray.errors import CheckpointError, ClusterError, ConfigError, SealRayError, StorageError
from seal_ray.runs.folder import Store
from seal_ray.runs.sharing import finished_generations, next_to_start, recorded
from seal_ray.storage.files import make_folder
from seal_ray.storage.lease import Pulse, alone, hold_lease, owns
from seal_ray.storage.paths import ObjectPath


@dataclass(frozen=True)
class Claim:
    """A run that this sweep may train, and the token of its lease."""

    planned: Planned
    token: str

    @property
    def store(self) -> Store:
        """The run's folder, to be written to as long as the lease is ours."""
        folder = self.planned.store.folder
        return replace(self.planned.store, owned=lambda: owns(folder, self.token))


class Queue:
    """The runs of a sweep that have not ended. A claimed run is ours until it is released.

    planned: at least one run, all of one storage and with the same moments kept. ended: statuses after
    which a run is left alone. ConfigError when generations cannot be shared because `relearned` is not kept.
    """

    def __init__(
        self, planned: Sequence[Planned], *, share: bool, ended: Sequence[str], note: Callable[[str], None]
    ) -> None:
        self._share, self._ended, self._note = share, ended, note
        self._moments = planned[0].job.placement.keep.moments
        if share and "relearned" not in self._moments:
            raise ConfigError(
                "placement.keep.moments: runs of a sweep go on from each other's `relearned` moments; keep "
                "them, or train everything in each run with --no-share"
            )
        self._storage = planned[0].store.folder.parent
        self._waiting = {one.run_id: one for one in planned}
        self._keys = {one.run_id: one.run_keys for one in planned}
        self._claimed: dict[str, contextlib.ExitStack] = {}
        self._pulse = Pulse()
        self._looked = -math.inf
        self._trouble = ""
        self.stopping = False

    @property
    def left(self) -> bool:
        """Whether a run is still to be claimed, now or later."""
        return bool(self._waiting) and not self.stopping

    def claim(self) -> Claim | None:
        """The run to start now; None when each must wait for what somebody is training.

        It starts after the generations that others have trained. An object store is only asked again after a
        pause.
        """
        if isinstance(self._storage, ObjectPath) and time.monotonic() - self._looked < pause(self._storage):
            return None
        make_folder(self._storage)
        held = contextlib.ExitStack()
        try:
            chosen, token = self._take(held)
        except ClusterError:  # `seal-ray train` has just begun it, or another sweep is choosing
            chosen = None
        except (CheckpointError, StorageError) as error:
            if not isinstance(self._storage, ObjectPath):
                held.close()
                raise
            chosen = None  # S3 may answer again; what trains goes on
            if self._trouble != str(error):
                self._trouble = str(error)
                self._note(f"waiting: {error}")
        if chosen is None:
            held.close()
            self._looked = time.monotonic()
            return None
        self._claimed[chosen.run_id] = held
        del self._waiting[chosen.run_id]
        claim = Claim(chosen, token)
        try:
            begin(replace(chosen, store=claim.store), self._note, share=self._share)
        except SealRayError as error:
            self._note(f"{chosen.run_id}: failed: {error}")
            with contextlib.suppress(SealRayError):
                claim.store.set_status("failed", reason=str(error))
            self.release(chosen)
            return self.claim()
        return claim

    def _take(self, held: contextlib.ExitStack) -> tuple[Planned | None, str]:
        """The run to start now, if any, and the token of its lease, which `held` gives up."""
        if isinstance(self._storage, ObjectPath) and self._choose() is None:
            return None, ""  # which costs fewer requests than to decide it alone
        with alone(self._storage) as still_alone:
            chosen = self._choose()
            if chosen is None:
                return None, ""
            token = held.enter_context(hold_lease(chosen.store.folder))
            chosen.store.record_generations(chosen.keys, self._moments)
            if not still_alone():
                raise ClusterError(f"{self._storage}: another sweep has chosen meanwhile")
        return chosen, token

    def release(self, planned: Planned, *, again: bool = False) -> None:
        """A claimed run has ended, or, `again`, is to be started once more."""
        self._claimed.pop(planned.run_id).close()
        if again:
            self._waiting[planned.run_id] = planned

    def stop(self, why: str) -> None:
        """Start nothing more, and ask what runs to stop at its next epoch boundary."""
        self.stopping = True
        what = "what runs ends at its next epoch boundary" if self._claimed else "nothing runs"
        self._note(f"stopping: {what}, nothing more is started; press Ctrl-C again to stop at once")
        for run_id in list(self._claimed):
            try:
                Store(self._storage / run_id, run_id).request_stop(why)
            except SealRayError as error:
                self._note(f"{run_id}: not stopping: {error}")

    def close(self) -> None:
        """Give up every lease that is still held."""
        for held in self._claimed.values():
            held.close()
        self._claimed.clear()

    def _choose(self) -> Planned | None:
        for one in list(self._waiting.values()):
            if one.store.status().get("status") in self._ended:
                del self._waiting[one.run_id]
        if not self.left:
            return None
        waiting = [one for one in self._waiting.values() if not self._pulse.alive(one.store.folder)]
        if not self._share:
            return waiting[0] if waiting else None
        done = {key for key, _ in finished_generations(self._storage, self._moments)}
        training = [known.keys for run, known in recorded(self._storage) if self._pulse.alive(run.folder)]
        chosen = next_to_start([self._keys[one.run_id] for one in waiting], training, done)
        return self._waiting[chosen.run_id] if chosen else None
