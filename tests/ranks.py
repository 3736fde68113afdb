"""Run a function on real gloo ranks, each its own process with one thread."""

from __future__ import annotations

import multiprocessing as mp
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOADED = ["tests.runs", "torch._dynamo", "torchvision.models.resnet"]
"""What every rank would import for seconds; the last two are loaded by torch and by networks on first use."""


def on_ranks(workers: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` on each of `workers` ranks; the results in rank order."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        ranks = [
            context.Process(target=_rank, args=(rank, workers, folder, queue, function, args))
            for rank in range(workers)
        ]
        for process in ranks:
            process.start()
        results = dict(queue.get(timeout=240) for _ in ranks)
        for process in ranks:
            process.join()
    failed = [value for value in results.values() if isinstance(value, _Failure)]
    assert not failed, failed[0].trace
    return [results[rank] for rank in range(workers)]


class _Failure:
    def __init__(self, trace: str) -> None:
        self.trace = trace


def _rank(rank: int, workers: int, folder: str, queue: Any, function: Callable[..., Any], args: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{Path(folder) / 'rendezvous'}", rank=rank, world_size=workers
        )
        value = function(*args)
        dist.destroy_process_group()
    except BaseException:
        value = _Failure(f"rank {rank}:\n{traceback.format_exc()}")
    queue.put((rank, value))
