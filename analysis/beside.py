"""Analyses that a run or a sweep asks for: made as moments appear, where there is room beside training."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from seal_ray.analysis.moments import Target
from seal_ray.analysis.run import analyze_target, summary
from seal_ray.errors import SealRayError
from seal_ray.runs.folder import Store

PAUSE = 5.0
"""Seconds between two looks for moments that have come."""


@contextlib.contextmanager
def analysing(
    find: Callable[[], Target], what: Sequence[str], rich: Console, *, busy: int, use_gpu: bool
) -> Iterator[None]:
    """Analyse moments under a Ray that is initialised, while the block trains and what is left after it.

    find: the runs that have begun. busy: workers that train in the block; where the cluster has no CPU (or
    with use_gpu GPU) beyond theirs, all of it is done after the block. What fails is left to `seal-ray
    analyze`, and said.
    """
    import ray

    total = ray.cluster_resources()
    free = int(total.get("GPU" if use_gpu else "CPU", 0)) - busy
    over = threading.Event()
    beside = threading.Thread(target=_watch, args=(find, what, free, over), daemon=True)
    if free > 0:
        beside.start()
    try:
        yield
    finally:
        over.set()
    if free > 0:
        beside.join()
    analyse_after(find, what, rich)


def analyse_after(
    find: Callable[[], Target], what: Sequence[str], rich: Console, *, in_process: bool = False
) -> None:
    """What is left to analyse once training has ended; nothing, where it was only stopped."""
    try:
        target = find()
    except SealRayError as error:
        rich.print(f"analyses: none: {error}", markup=False)
        return
    if any(Store(one.folder, one.run_id).status().get("status") == "stopped" for one in target.subjects):
        rich.print("analyses: the rest is made when training goes on", markup=False)
        return
    outcomes = analyze_target(target, rich, what, in_process=in_process)
    rich.print(f"analyses: {summary(outcomes)}", markup=False)


def _watch(find: Callable[[], Target], what: Sequence[str], free: int, over: threading.Event) -> None:
    """Do what there is to do until it is over; the last call, after training, says what went wrong."""
    quiet = Console(file=io.StringIO())
    while not over.wait(PAUSE):
        with contextlib.suppress(SealRayError):
            analyze_target(find(), quiet, what, workers=free)
