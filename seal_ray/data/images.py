"""What training sees of a data set, wherever it lies: its identity, its statistics, its loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from seal_ray.data.augment import crop_and_flip, draw, normalise
from seal_ray.data.loaders import ArrayLoader, Loader, open_loader
from seal_ray.data.subset import Indices
from seal_ray.streams import stream

if TYPE_CHECKING:
    from seal_ray.data.beton import Dataset
    from seal_ray.recipe import Augment

Split = Literal["train", "val"]
Shard = tuple[Tensor, Tensor, Tensor | None]
"""Images (n, 3, H, W), normalised and floating-point, their labels (n,) and, where there is dropout, the
mask of their features (n, features), on the device.
"""


@dataclass(frozen=True)
class Images:
    """A data set: uint8 images of one size with labels, in a train and a val split."""

    identity: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    open: Callable[[Split, int], Loader]
    """A loader of a split whose batches hold that many images."""

    @classmethod
    def from_dataset(cls, dataset: Dataset, *, loader: Literal["ffcv", "torch"]) -> Images:
        """The images of a prepared folder, read through FFCV or plainly."""
        return cls(
            dataset.training_identity,
            len(dataset.classes),
            dataset.mean,
            dataset.std,
            lambda split, size: open_loader(dataset, split, kind=loader, batch_size=size),
        )

    @classmethod
    def from_arrays(
        cls,
        train: tuple[np.ndarray, np.ndarray],
        val: tuple[np.ndarray, np.ndarray],
        *,
        identity: str,
        classes: int,
    ) -> Images:
        """Images in memory: pairs of uint8 (N, H, W, 3) and int64 labels (N,). Statistics are train's.

        identity names the data in run ids; equal names must mean equal arrays.
        """
        pixels = train[0].reshape(-1, 3) / 255
        splits = {"train": train, "val": val}
        return cls(
            identity,
            classes,
            tuple(map(float, pixels.mean(axis=0))),
            tuple(map(float, pixels.std(axis=0))),
            lambda split, size: ArrayLoader(*splits[split], size),
        )


@dataclass(frozen=True)
class TrainingEpoch:
    """One worker's share of an epoch: `steps` lists of `accumulation` shards, augmented on the device.

    order: (steps, accumulation, shard size) sample indices of this worker. masks: of dropout, for each step
    (accumulation, shard size, features); None without dropout.
    """

    loader: Loader
    order: Indices
    labels: Indices
    images: Images
    augment: Augment
    device: torch.device
    memory_format: torch.memory_format
    generator: torch.Generator
    masks: Iterator[Tensor] | None = None
    dtype: torch.dtype = torch.float32

    @property
    def steps(self) -> int:
        """Optimizer steps in the epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[list[Shard]]:
        """The shards of each step in turn."""
        padding = self.augment.crop_padding
        draws = draw(
            len(self.loader.labels), padding=padding, flip=self.augment.flip, generator=self.generator
        )
        labels = torch.from_numpy(self.labels)
        per_step = torch.from_numpy(self.order).flatten(1)
        shards = self.order.shape[1]
        batches = self.loader.batches(self.order.reshape(-1))
        for indices, pixels in zip(per_step, batches, strict=True):
            moved = crop_and_flip(self._moved(pixels), draws.at(indices, self.device), padding=padding)
            x = normalise(moved, self.images.mean, self.images.std, self.memory_format, self.dtype)
            y = labels[indices].to(self.device, non_blocking=True)
            keep = [None] * shards if self.masks is None else self._moved(next(self.masks)).unbind()
            yield list(zip(x.chunk(shards), y.chunk(shards), keep, strict=True))

    def _moved(self, tensor: Tensor) -> Tensor:
        """A large tensor of the CPU on the device, without waiting for it."""
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)


def epoch_order(
    indices: Indices, *, batch_size: int, shards: int, seed: int, generation: int, epoch: int
) -> Indices:
    """The order of one epoch, (steps, shards, batch_size / shards); the last incomplete batch is dropped."""
    shuffled = torch.randperm(len(indices), generator=stream(seed, "order", generation, epoch)).numpy()
    steps = len(indices) // batch_size
    order: Indices = indices[shuffled[: steps * batch_size]]
    return order.reshape(steps, shards, batch_size // shards)


def dropout_masks(
    p: float, order: Indices, features: int, *, seed: int, generation: int, epoch: int
) -> Iterator[Tensor]:
    """For each step of an epoch, what the features of the global batch are multiplied by: float32
    (shards, shard size, features), 0 with probability `p` and otherwise 1 / (1 - p).

    order: that of the whole epoch, whichever part of it a worker trains on. Masks are data of the batch and
    no state of the network, so that neither a resumed run nor another number of workers changes them.
    Source: Srivastava et al., JMLR 15 (2014), in the form scaled while training.
    """
    generator = stream(seed, "dropout", generation, epoch)
    steps, shards, size = order.shape
    for _ in range(steps):
        yield (torch.rand(shards, size, features, generator=generator) >= p) / (1 - p)
