"""Batches of a prepared data set in exactly the order that is asked for."""

from __future__ import annotations

import functools
import queue
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from seal_ray.data.beton import BetonFile, import_ffcv
from seal_ray.data.dataset import Labels, Pixels
from seal_ray.data.prepared import Dataset
from seal_ray.errors import DataError

BATCHES_AHEAD = 2
POLL_INTERVAL = 0.2  # seconds between looks at whether FFCV's thread still lives

Order = npt.NDArray[np.int64]
Item = TypeVar("Item")


class Loader(Protocol):
    """The images of one split.

    labels: (N,) int64. `batches(order)` gives the images at the indices `order`, in that order, as contiguous
    uint8 tensors (B, H, W, 3), on the CPU unless the loader says otherwise; the last may be smaller. Each
    tensor is the caller's own, and an iterator may be dropped at any point. Raises IndexError for an index
    outside 0..N-1.
    """

    @property
    def labels(self) -> Labels: ...  # noqa: D102 - described by the class

    def batches(self, order: Order) -> Iterator[torch.Tensor]: ...  # noqa: D102


def open_loader(dataset: Dataset, split: str, *, kind: Literal["ffcv", "torch"], batch_size: int) -> Loader:
    """Open a loader of a split, "train" or "val".

    "ffcv" decodes ahead on a thread of its own; "torch" needs no FFCV and reads in line on the caller's
    thread, which for raw pixels is a copy. Of raw pixels both give the same bytes. Of JPEG they do not,
    because FFCV decodes faster and coarser: on Tiny ImageNet 2.0 grey levels from the original on average,
    against 1.2.
    Raises DataError when the file is damaged, ConfigError when FFCV cannot be used.
    """
    facts = dataset.splits[split]
    file = BetonFile.open(dataset.folder / facts.file)
    if (len(file.labels), file.height, file.width) != (facts.count, dataset.size, dataset.size):
        raise DataError(f"{file.path} is not what dataset.json describes; prepare the data set again")
    if kind == "torch":
        return BetonLoader(file, batch_size)
    return FfcvLoader(_ffcv_loader(file.path, facts.sha256, batch_size), file.labels)


@dataclass(frozen=True, eq=False)
class ArrayLoader:
    """A loader of images that lie in memory, images: (N, H, W, 3) uint8."""

    images: Pixels
    labels: Labels
    batch_size: int

    def batches(self, order: Order) -> Iterator[torch.Tensor]:
        """See `Loader`."""
        parts = _split(order, len(self.labels), self.batch_size)
        return (torch.from_numpy(self.images[indices]) for indices in parts)


@dataclass(frozen=True, eq=False)
class BetonLoader:
    """A loader that reads a .beton file without FFCV.

    In line: gathering raw pixels takes a microsecond an image, less than handing batches between threads.
    """

    file: BetonFile
    batch_size: int

    @property
    def labels(self) -> Labels:
        """See `Loader`."""
        return self.file.labels

    def batches(self, order: Order) -> Iterator[torch.Tensor]:
        """See `Loader`."""
        parts = _split(order, len(self.labels), self.batch_size)
        return (torch.from_numpy(self.file.pixels(indices)) for indices in parts)


@dataclass(frozen=True, eq=False)
class ResidentLoader:
    """A loader of images that lie on a device, (N, H, W, 3) uint8, and whose batches do."""

    images: Tensor
    labels: Labels
    batch_size: int

    @classmethod
    def filled(
        cls, loader: Loader, size: tuple[int, int], batch_size: int, device: torch.device
    ) -> ResidentLoader:
        """All images of `loader`, of size (height, width), read once in the order of their indices."""
        count, start = len(loader.labels), 0
        images = torch.empty(count, *size, 3, dtype=torch.uint8, device=device)
        for batch in loader.batches(np.arange(count)):
            images[start : start + len(batch)] = batch.to(device)
            start += len(batch)
        return cls(images, loader.labels, batch_size)

    def batches(self, order: Order) -> Iterator[Tensor]:
        """See `Loader`. The order is moved to the device once."""
        there = on_device(torch.from_numpy(_checked(order, len(self.labels))), self.images.device)
        starts = range(0, len(there), self.batch_size)
        return (self.images.index_select(0, there[start : start + self.batch_size]) for start in starts)


@dataclass(frozen=True, eq=False)
class Selected:
    """A loader of some images of another one. indices: theirs there."""

    loader: Loader
    indices: Order

    @property
    def labels(self) -> Labels:
        """See `Loader`."""
        labels: Labels = self.loader.labels[self.indices]
        return labels

    def batches(self, order: Order) -> Iterator[torch.Tensor]:
        """See `Loader`."""
        return self.loader.batches(self.indices[_checked(order, len(self.indices))])


@dataclass(frozen=True, eq=False)
class FfcvLoader:
    """A loader that lets FFCV read and decode ahead, on a thread of its own."""

    ffcv: Any  # ffcv.loader.Loader of the images alone, sequential, last batch kept
    labels: Labels

    def batches(self, order: Order) -> Iterator[torch.Tensor]:
        """See `Loader`. An iterator that is dropped ends its thread before the next one starts."""
        return self._batches(_checked(order, len(self.labels)).astype(np.uint64))

    def _batches(self, order: npt.NDArray[np.uint64]) -> Iterator[torch.Tensor]:
        # FFCV reads the order from its traversal order, and the number of batches from the first one.
        self.ffcv.indices = self.ffcv.traversal_order.indices = self.ffcv.first_traversal_order = order
        epoch = iter(self.ffcv)
        try:
            while (batch := _next(epoch)) is not None:
                # FFCV decodes into a ring of buffers, and would write over a batch that an asynchronous copy
                # to a GPU still reads.
                yield batch.clone()
        finally:
            _end(epoch)


def on_device(tensors: Item, device: torch.device) -> Item:
    """A tensor, or what tuples and lists hold of them, on the device; a copy to a GPU is not waited for."""
    moved: Item = tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), _pinned(tensors, device))
    return moved


def moved(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """Tensors, or tuples and lists of them, on the device. A GPU's are computed ahead, on a thread."""
    if device.type == "cuda":
        items = ahead((_pinned(item, device) for item in items), BATCHES_AHEAD)
    return (on_device(item, device) for item in items)


def _pinned(tensors: Item, device: torch.device) -> Item:
    """CPU tensors in memory from which a copy to a GPU needs no other; torch uses that memory again."""
    if device.type != "cuda":
        return tensors
    pinned: Item = tree_map_only(Tensor, lambda t: t if t.is_cuda else t.pin_memory(), tensors)
    return pinned


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """`items`, computed on a thread, up to `count` of them before they are asked for. It may be dropped."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


@functools.lru_cache(maxsize=8)
def _ffcv_loader(path: Path, sha256: str, batch_size: int) -> Any:
    """FFCV's loader of a file, used again: each new one compiles code, whose memory is never given back.

    sha256: which file lies at the path.
    """
    ffcv = import_ffcv()
    decoder = ffcv.fields.rgb_image.SimpleRGBImageDecoder()
    return ffcv.Loader(
        str(path),
        batch_size=batch_size,
        num_workers=1,  # one does 300,000 raw or 24,000 JPEG images of 64 px a second
        os_cache=True,
        order=ffcv.loader.OrderOption.SEQUENTIAL,
        seed=0,  # unused by this order; None would draw from NumPy's global state
        pipelines={"image": [decoder, ffcv.transforms.ToTensor()], "label": None},
        drop_last=False,
        batches_ahead=BATCHES_AHEAD,
    )


def _next(epoch: Any) -> torch.Tensor | None:
    """Wait for the next batch of an FFCV epoch; None after the last.

    FFCV's own `next` would wait for ever once its thread has died of an error.
    """
    while True:
        alive = epoch.is_alive()
        try:
            item = epoch.output_queue.get(timeout=POLL_INTERVAL)
        except queue.Empty:
            if not alive:
                raise RuntimeError("FFCV's reading thread died of the error printed above") from None
            continue
        if item is None:
            return None
        images: torch.Tensor = item[1][0]
        return images


def _end(epoch: Any) -> None:
    """End an epoch's thread: leave it nothing to read, and take what it waits to put into a full queue."""
    epoch.close()
    epoch.iter_ixes = iter(())
    while epoch.is_alive():
        try:
            epoch.output_queue.get(timeout=0.01)
        except queue.Empty:
            continue


def _split(order: Order, count: int, batch_size: int) -> Iterator[Order]:
    checked = _checked(order, count)
    return (checked[start : start + batch_size] for start in range(0, len(checked), batch_size))


def _checked(order: Order, count: int) -> Order:
    """Refuse indices outside 0..count-1, where FFCV's compiled code would read whatever lies there."""
    if order.ndim != 1 or order.dtype.kind not in "iu":
        raise IndexError(f"an order is one row of integers, not {order.dtype} {order.shape}")
    if len(order) and (order.min() < 0 or order.max() >= count):
        raise IndexError(f"the order has indices {order.min()}..{order.max()}, the images are 0..{count - 1}")
    return order
