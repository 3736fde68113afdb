"""Who works pieces off: this process, or Ray actors, a slot each, that are handed one piece at a time."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seal_ray.analysis.compute import work_off
from seal_ray.analysis.inputs import InputCache
from seal_ray.analysis.moments import Moment
from seal_ray.analysis.tasks import Piece
from seal_ray.device import prepare_process
from seal_ray.distributed.launch import last_line
from seal_ray.errors import CheckpointError, ClusterError, SealRayError
from seal_ray.plugins import PluginFile, files_of, loaded_files, using

RETRIES = 3
"""How often a piece is tried again whose process has died, and a process started again that never came up."""


@dataclass(frozen=True)
class Done:
    """A piece that needs no more work: it took so many seconds, or failed for a reason.

    unreadable: because a moment that it reads is damaged; one with the same weights may be intact.
    """

    piece: Piece
    seconds: float = 0.0
    reason: str = ""
    unreadable: bool = False


class Agenda:
    """The pieces that nobody works on, those of one moment together.

    A worker stays with its moment, whose network and features it has; one without takes the next moment
    that nobody has, and when there is none helps with one that has the most left.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._left: dict[Moment, deque[Piece]] = {}
        for piece in pieces:
            self._left.setdefault(piece.moment, deque()).append(piece)
        self._at: dict[int, Moment] = {}

    def __bool__(self) -> bool:
        return any(self._left.values())

    def next(self, worker: int) -> Piece | None:
        """The worker's next piece; None when there is none."""
        own = self._at.get(worker)
        if own is None or not self._left[own]:
            taken = {moment for other, moment in self._at.items() if other != worker}
            free = [moment for moment, left in self._left.items() if left and moment not in taken]
            rest = [moment for moment, left in self._left.items() if left]
            if not rest:
                return None
            own = free[0] if free else max(rest, key=lambda moment: len(self._left[moment]))
            self._at[worker] = own
        return self._left[own].popleft()

    def again(self, piece: Piece) -> None:
        """The piece was lost: it is next in its moment."""
        self._left[piece.moment].appendleft(piece)

    def rest(self) -> list[Piece]:
        """All that is left, in order."""
        return [piece for left in self._left.values() for piece in left]


def work_here(pieces: Sequence[Piece]) -> Generator[Done]:
    """Work pieces off in this process, on a GPU where there is one."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    prepare_process(device, deterministic=True, precision="fp32")
    cache = InputCache(device)
    for piece in pieces:
        yield _attempt(piece, cache, processes=1)


def _attempt(piece: Piece, cache: InputCache, processes: int) -> Done:
    """What is wrong with a moment, its data or the settings is the outcome of that piece alone."""
    try:
        return Done(piece, work_off(piece, cache, processes=processes))
    except SealRayError as error:
        return Done(piece, reason=str(error), unreadable=isinstance(error, CheckpointError))


class Worker:
    """What runs in an actor: a process with its own images and networks, and the driver's plugin files."""

    def __init__(self, gpu: bool, processes: int, plugins: Sequence[PluginFile] = ()) -> None:
        with using(plugins):  # from now on they are loaded, wherever a run's copies lie
            pass
        device = torch.device("cuda" if gpu else "cpu")
        prepare_process(device, deterministic=True, precision="fp32")
        self._cache, self._processes = InputCache(device), processes

    def ready(self) -> None:
        """Answers once the process has started."""

    def work(self, piece: Piece) -> Done:
        """Work a piece off."""
        return _attempt(piece, self._cache, self._processes)


@dataclass(frozen=True)
class Slots:
    """How many actors work, and what each of them occupies."""

    count: int
    gpus_each: float
    processes: int = 1  # that an actor starts for a piece, itself included


def slots(wanted: int | None, pieces: int, processes: int = 1) -> Slots:
    """An actor for each GPU of the cluster, or for each CPU where it has none; or `wanted`, sharing GPUs.

    Never more than pieces. processes: how many CPUs a piece may need, its actor's included. ClusterError
    when the cluster has fewer CPUs than that needs.
    """
    import ray

    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if (wanted or 1) * processes > cpus:
        each = f"{processes} CPUs (curvature.shards)" if processes > 1 else "a CPU"
        raise ClusterError(f"--workers {wanted or 1}: each needs {each}, the cluster has {cpus}; lower it")
    room = cpus // processes
    count = min(wanted or min(gpus // processes, room) or room, pieces)
    return Slots(count, 1 / math.ceil(count * processes / gpus) if gpus else 0.0, processes)


def work_on_ray(pieces: Sequence[Piece], wanted: int | None) -> Generator[Done]:
    """Work pieces off on actors, under a Ray that is initialised; yields each as soon as it is done.

    An actor that dies loses the piece in its hands, which a new one tries again, RETRIES times.
    """
    for kind in {piece.analysis for piece in pieces if piece.analysis is not None}:
        files_of(kind)  # those that actors would not find are an error
    processes = max(piece.processes for piece in pieces)
    crew = _Crew(slots(wanted, len(pieces), processes), Agenda(pieces))
    try:
        yield from crew.work()
    finally:
        crew.dismiss()


class _Crew:
    """The actors by slot, and what each of them is at: a piece, or starting."""

    def __init__(self, slots: Slots, agenda: Agenda) -> None:
        self._slots, self._agenda = slots, agenda
        self._actors: dict[int, Any] = {}
        self._awaited: dict[Any, tuple[int, Piece | None]] = {}
        self._deaths: Counter[str] = Counter()
        self._last_death = ""
        for slot in range(slots.count):
            self._hire(slot)

    def work(self) -> Iterator[Done]:
        """Until every piece is done. Actors for which the cluster has no room yet are not waited for."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        while self._agenda or any(piece for _, piece in self._awaited.values()):
            if not self._awaited:
                reason = f"no process could be started: {self._last_death}"
                yield from (Done(piece, reason=reason) for piece in self._agenda.rest())
                return
            (answer,), _ = ray.wait(list(self._awaited), num_returns=1)
            slot, piece = self._awaited.pop(answer)
            done: Done | None
            try:
                done = ray.get(answer)
            except RayTaskError as error:  # of this piece alone; the process lives
                assert piece is not None
                done = Done(piece, reason=last_line(error))
                self._hand(slot)
            except RayError as error:
                done = self._replace(slot, piece, last_line(error))
            else:
                self._hand(slot)
            if isinstance(done, Done):
                yield done

    def dismiss(self) -> None:
        """End every actor."""
        for slot in list(self._actors):
            self._end(slot)

    def _hire(self, slot: int) -> None:
        import ray

        options = {
            "num_cpus": 1,
            "num_gpus": self._slots.gpus_each,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
        }
        actor = ray.remote(Worker).options(**options)
        gpu = self._slots.gpus_each > 0
        self._actors[slot] = actor.remote(gpu, self._slots.count, loaded_files())
        self._awaited[self._actors[slot].ready.remote()] = (slot, None)

    def _hand(self, slot: int) -> None:
        """The next piece for an actor that has none; one for which there is none frees its slot."""
        piece = self._agenda.next(slot)
        if piece is None:
            self._end(slot)
        else:
            self._awaited[self._actors[slot].work.remote(piece)] = (slot, piece)

    def _replace(self, slot: int, piece: Piece | None, reason: str) -> Done | None:
        """A new actor for one that died; what it lost is tried again, or has failed too often."""
        self._end(slot)
        self._last_death = reason
        what = piece.key if piece else "starting"
        self._deaths[what] += 1
        often = self._deaths[what] > RETRIES
        if piece and not often:
            self._agenda.again(piece)
        if piece or not often:
            self._hire(slot)
        if piece and often:
            return Done(piece, reason=f"its process died {self._deaths[what]} times: {reason}")
        return None

    def _end(self, slot: int) -> None:
        import ray

        ray.kill(self._actors.pop(slot))
