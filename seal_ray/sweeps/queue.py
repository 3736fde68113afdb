"""Which runs of a sweep are left to train, and which of them may start now.

Several sweeps may work on one storage at once. They agree through what lies there: the runs' leases say what
is being trained, `generations.json` what it consists of, moments what is done.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from seal_ray.distributed.launch import Planned, begin, pause
from seal_ray.errors import CheckpointError, ClusterError, ConfigError, SealRayError, StorageError
from seal_ray.runs.folder import Store
from seal_ray.runs.sharing import RunIndex, RunKeys, may_start
from seal_ray.storage.files import make_folder
from seal_ray.storage.lease import Pulse, alone, hold_lease, owns
from seal_ray.storage.paths import ObjectPath, asked, folders_in


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
        self._keys = {one.run_id: one.run_keys for one in planned}
        self._index = RunIndex(self._storage)
        for one in planned if share else ():
            self._index.need(one.moments_needed)
        self._waiting = {one.run_id: one for one in planned}
        self._claimed: dict[str, contextlib.ExitStack] = {}
        self._over: deque[str] = deque()
        """The runs that have ended since it was last asked which."""
        self._failed: list[str] = []
        """The runs that could not begin, since it was last asked which."""
        self._elsewhere: set[str] = set()
        """The runs that others trained when they were last looked at."""
        self._drop_ended(sorted(self._waiting.keys() & folders_in(self._storage)))
        self._pulse = Pulse()
        self._looked = -math.inf
        self._trouble = ""
        self.stopping = False

    @property
    def left(self) -> bool:
        """Whether a run is still to be claimed, now or later."""
        return bool(self._waiting) and not self.stopping

    def claim(self) -> Claim | None:
        """The run to start now; None when each must wait for what somebody is training, or when the one that
        was chosen cannot begin, see `take_failed`.

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
            sources = self._index.sources(chosen.keys) if self._share else {}
            begin(replace(chosen, store=claim.store), self._note, sources)
        except SealRayError as error:
            self._note(f"{chosen.run_id}: failed: {error}")
            with contextlib.suppress(SealRayError):
                claim.store.set_status("failed", reason=str(error))
            self.release(chosen)
            self._failed.append(chosen.run_id)
            return None
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

    def claimed(self) -> list[Store]:
        """The runs that are ours, as who only reads them sees them."""
        return [Store(self._storage / run_id, run_id) for run_id in list(self._claimed)]

    def changing(self) -> set[str]:
        """The runs that may have changed since this was last asked.

        Those that are trained, here or elsewhere, and those that have ended.
        """
        over = {self._over.popleft() for _ in range(len(self._over))}
        return {*self._claimed, *self._elsewhere, *over}

    def take_failed(self) -> list[str]:
        """The runs that could not begin since this was last asked."""
        failed, self._failed = self._failed, []
        return failed

    def release(self, planned: Planned, *, again: bool = False) -> None:
        """A claimed run has ended, or, `again`, is to be started once more."""
        self._claimed.pop(planned.run_id).close()
        self._over.append(planned.run_id)
        if again:
            self._waiting[planned.run_id] = planned

    def add(self, planned: Planned) -> None:
        """One more run, of the same storage and with the same moments kept."""
        self._keys[planned.run_id] = planned.run_keys
        if self._share:
            self._index.need(planned.moments_needed)
        self._waiting[planned.run_id] = planned
        self._drop_ended(sorted({planned.run_id} & folders_in(self._storage)))

    def forget(self, run_ids: Iterable[str]) -> None:
        """Runs that are not to be claimed any more."""
        for run_id in run_ids:
            self._waiting.pop(run_id, None)

    def stop(self, why: str) -> None:
        """Start nothing more, and ask what runs to stop at its next epoch boundary."""
        self.stopping = True
        what = "what runs ends at its next epoch boundary" if self._claimed else "nothing runs"
        self._note(f"stopping: {what}, nothing more is started; press Ctrl-C again to stop at once")
        for store in self.claimed():
            try:
                store.request_stop(why)
            except SealRayError as error:
                self._note(f"{store.run_id}: not stopping: {error}")

    def close(self) -> None:
        """Give up every lease that is still held."""
        for held in self._claimed.values():
            held.close()
        self._claimed.clear()

    def _choose(self) -> Planned | None:
        """The run to start now, if any: the first in order that nobody trains and that waits for none.

        A storage may hold thousands of runs, so only those are looked at on which the choice depends: the one
        to be chosen, who else holds what it would train, and, where all wait, those that they wait for.
        """
        if not self.left:
            return None
        self._index.refresh()
        looked: set[str] = set()
        chosen = self._first_free(looked)
        if chosen is None:
            self._look(self._waited_for() - looked, looked)
            chosen = self._first_free(looked)
        return chosen

    def _first_free(self, looked: set[str]) -> Planned | None:
        """The same by what is known. looked: the runs that were looked at for this choice."""
        free = [self._keys[run_id] for run_id in self._waiting if run_id not in self._elsewhere]
        if self._share:
            free = may_start(free, self._busy(), self._index.done)
        for run in free:
            self._look({run.run_id} - looked, looked)
            if run.run_id not in self._waiting or run.run_id in self._elsewhere:
                continue
            while self._share and (unseen := self._deciding(run) - looked):
                self._look(unseen, looked)
            if not self._share or not run.waits_for(self._busy(), self._index.done):
                return self._waiting[run.run_id]
        return None

    def _deciding(self, run: RunKeys) -> set[str]:
        """The runs that may be training what this one would, and one after which it would start."""
        start = run.start(self._index.done)
        return self._index.holders(run.keys[start:]) | self._index.source(run.keys[start - 1 : start])

    def _waited_for(self) -> set[str]:
        """The runs that are being trained of which some that waits would start if they came further."""
        done = self._index.done
        waiting = [self._keys[run_id] for run_id in self._waiting]
        wanted = {key for run in waiting for key in run.keys[run.start(done) :]}
        training = {*self._claimed, *self._elsewhere}
        return {one for one in training if one in self._waiting or not wanted.isdisjoint(self._keys_of(one))}

    def _busy(self) -> set[str]:
        """The keys of the generations that are being trained."""
        training, done = {*self._claimed, *self._elsewhere}, self._index.done
        return {key for run_id in training for key in self._keys_of(run_id) if key not in done}

    def _keys_of(self, run_id: str) -> Sequence[str]:
        return self._keys[run_id].keys if run_id in self._keys else self._index.keys(run_id)

    def _look(self, run_ids: set[str], looked: set[str]) -> None:
        """Learn who trains runs and how far they are; those that have ended wait no more."""
        looked |= run_ids
        there = run_ids & self._index.folders
        self._elsewhere -= run_ids - there
        self._drop_ended(sorted(there & self._waiting.keys()))
        others = sorted(there - self._claimed.keys())
        folders = [self._storage / run_id for run_id in others]
        for run_id, alive in zip(others, asked(self._pulse.alive, folders, self._storage), strict=True):
            (self._elsewhere.add if alive else self._elsewhere.discard)(run_id)
        if self._share:
            self._index.look(there)

    def _drop_ended(self, run_ids: Sequence[str]) -> None:
        """Of these waiting runs, which have folders, forget those that have ended."""
        stores = [self._waiting[run_id].store for run_id in run_ids]
        for store, status in zip(stores, asked(Store.status, stores, self._storage), strict=True):
            if status.get("status") in self._ended:
                del self._waiting[store.run_id]
                self._over.append(store.run_id)
