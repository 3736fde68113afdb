"""The thread that hashes and writes what training goes on from, while training goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from seal_ray.phases.edits import State
from seal_ray.runs.checkpoint import weights_sha256


class Writer:
    """One thread, which does what it is given in order. One thing at most is being written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def hash(self, state: Mapping[str, Tensor]) -> tuple[Callable[[], State], Future[str]]:
        """A copy of a state as it is now, for the thread; and its `weights_sha256`, once that is known."""
        copy = functools.cache(copied(state))
        return copy, self._thread.submit(lambda: weights_sha256(copy()))

    def write(self, action: Callable[[], None]) -> None:
        """Let the thread do this, after what it was given before. Raises as wait."""
        self.wait()
        self._writing = self._thread.submit(action)

    def wait(self) -> None:
        """Until what was given to `write` is done, as whose exception it raises, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread, once it has done everything."""
        self._thread.shutdown()


def copied(state: Mapping[str, Tensor]) -> Callable[[], State]:
    """Copy tensors to where they lie, contiguous; the function brings the copies to the machine's memory.

    From a GPU it copies to pinned memory, on a stream of its own, so that only the thread that calls waits.
    """
    copies = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    gpus = {tensor.device for tensor in copies.values() if tensor.is_cuda}
    made = {gpu: torch.cuda.current_stream(gpu).record_event() for gpu in gpus}

    def fetch() -> State:
        fetched = dict(copies)
        for gpu, event in made.items():
            stream = torch.cuda.Stream(gpu)
            stream.wait_event(event)
            with torch.cuda.stream(stream):
                for name, tensor in copies.items():
                    if tensor.device == gpu:
                        place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                        fetched[name] = place.copy_(tensor, non_blocking=True)
            stream.synchronize()
        return fetched

    return fetch
