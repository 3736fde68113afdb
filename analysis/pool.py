"""Where tasks are computed: in this process, or by Ray actors, which are handed one at a time."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seal_ray.analysis.compute import compute_task
from seal_ray.analysis.inputs import InputCache
from seal_ray.analysis.moments import Moment
from seal_ray.analysis.tasks import Task
from seal_ray.device import prepare_process
from seal_ray.distributed.launch import last_line
from seal_ray.errors import CheckpointError, ClusterError, SealRayError
from seal_ray.plugins import PluginFile, files_of, loaded_files, using

RESTARTS = 3
"""How often a task is tried again whose process has died, and a process started again that never came up."""

POLL = 1.0
"""Seconds after which a driver whose actors are all at work looks around."""


Working = tuple[Task, ...]
"""What is being worked on."""


@dataclass(frozen=True)
class Done:
    """A task that needs no more work: it took so many seconds, or failed for a reason.

    unreadable: because a moment that it reads is damaged; one with the same weights may be intact.
    """

    task: Task
    seconds: float = 0.0
    reason: str = ""
    unreadable: bool = False


class TaskQueue:
    """The tasks that nobody works on, those of one moment together.

    A worker stays with its moment, whose network and features it has; one without takes the next moment
    that nobody has, and when there is none helps with one that has the most left.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left: dict[Moment, deque[Task]] = {}
        for task in tasks:
            self._left.setdefault(task.moment, deque()).append(task)
        self._at: dict[int, Moment] = {}

    def __bool__(self) -> bool:
        return any(self._left.values())

    def next(self, worker: int) -> Task | None:
        """The worker's next task; None when there is none."""
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

    def again(self, task: Task) -> None:
        """The task was lost: it is next in its moment."""
        self._left[task.moment].appendleft(task)

    def rest(self) -> list[Task]:
        """All that is left, in order."""
        return [task for left in self._left.values() for task in left]


def compute_here(tasks: Sequence[Task]) -> Generator[Done | Working]:
    """Compute tasks in this process, on a GPU where there is one; yields each before and after."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    prepare_process(device, deterministic=True, precision="fp32")
    cache = InputCache(device)
    for task in tasks:
        yield (task,)
        yield _attempt(task, cache, processes=1)


def _attempt(task: Task, cache: InputCache, processes: int) -> Done:
    """What is wrong with a moment, its data or the settings is the outcome of that task alone."""
    try:
        return Done(task, compute_task(task, cache, processes=processes))
    except SealRayError as error:
        return Done(task, reason=str(error), unreadable=isinstance(error, CheckpointError))


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

    def work(self, task: Task) -> Done:
        """Compute a task."""
        return _attempt(task, self._cache, self._processes)


@dataclass(frozen=True)
class PoolSize:
    """How many actors work, and what each of them occupies."""

    count: int
    gpus_each: float
    processes: int = 1  # that an actor starts for a task, itself included


def pool_size(wanted: int | None, tasks: int, processes: int = 1) -> PoolSize:
    """An actor for each GPU of the cluster, or for each CPU where it has none; or `wanted`, sharing GPUs.

    Never more than tasks. processes: how many CPUs a task may need, its actor's included. ClusterError
    when the cluster has fewer CPUs than that needs.
    """
    import ray

    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if (wanted or 1) * processes > cpus:
        each = f"{processes} CPUs (curvature.shards)" if processes > 1 else "a CPU"
        raise ClusterError(f"--workers {wanted or 1}: each needs {each}, the cluster has {cpus}; lower it")
    room = cpus // processes
    count = min(wanted or min(gpus // processes, room) or room, tasks)
    return PoolSize(count, 1 / math.ceil(count * processes / gpus) if gpus else 0.0, processes)


def compute_on_ray(tasks: Sequence[Task], wanted: int | None) -> Generator[Done | Working]:
    """Compute tasks on actors, under a Ray that is initialised; yields each as soon as it is done, and what
    is being worked on while none is, so that the caller may stop.

    An actor that dies loses the task in its hands, which a new one tries again, RESTARTS times.
    """
    for kind in {task.analysis for task in tasks if task.analysis is not None}:
        files_of(kind)  # those that actors would not find are an error
    processes = max(task.processes for task in tasks)
    pool = ActorPool(pool_size(wanted, len(tasks), processes), TaskQueue(tasks))
    try:
        yield from pool.work()
    finally:
        pool.stop()


class ActorPool:
    """The actors by slot, and what each of them is at: a task, or starting."""

    def __init__(self, slots: PoolSize, queue: TaskQueue) -> None:
        self._slots, self._queue = slots, queue
        self._actors: dict[int, Any] = {}
        self._awaited: dict[Any, tuple[int, Task | None]] = {}
        self._deaths: Counter[str] = Counter()
        self._last_death = ""
        for slot in range(slots.count):
            self._start(slot)

    def work(self) -> Iterator[Done | Working]:
        """Until every task is done; what is being worked on whenever POLL seconds pass without one.

        Actors for which the cluster has no room yet are not waited for.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        while self._queue or any(task for _, task in self._awaited.values()):
            if not self._awaited:
                reason = f"no process could be started: {self._last_death}"
                yield from (Done(task, reason=reason) for task in self._queue.rest())
                return
            answered, _ = ray.wait(list(self._awaited), num_returns=1, timeout=POLL)
            if not answered:
                yield tuple(task for _, task in self._awaited.values() if task)
                continue
            (answer,) = answered
            slot, task = self._awaited.pop(answer)
            done: Done | None
            try:
                done = ray.get(answer)
            except RayTaskError as error:  # of this task alone; the process lives
                assert task is not None
                done = Done(task, reason=last_line(error))
                self._hand(slot)
            except RayError as error:
                done = self._replace(slot, task, last_line(error))
            else:
                self._hand(slot)
            if isinstance(done, Done):
                yield done

    def stop(self) -> None:
        """End every actor."""
        for slot in list(self._actors):
            self._stop(slot)

    def _start(self, slot: int) -> None:
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
        """The next task for an actor that has none; one for which there is none frees its slot."""
        task = self._queue.next(slot)
        if task is None:
            self._stop(slot)
        else:
            self._awaited[self._actors[slot].work.remote(task)] = (slot, task)

    def _replace(self, slot: int, task: Task | None, reason: str) -> Done | None:
        """A new actor for one that died; what it lost is tried again, or has failed too often."""
        self._stop(slot)
        self._last_death = reason
        what = task.key if task else "starting"
        self._deaths[what] += 1
        often = self._deaths[what] > RESTARTS
        if task and not often:
            self._queue.again(task)
        if task or not often:
            self._start(slot)
        if task and often:
            return Done(task, reason=f"its process died {self._deaths[what]} times: {reason}")
        return None

    def _stop(self, slot: int) -> None:
        import ray

        ray.kill(self._actors.pop(slot))
