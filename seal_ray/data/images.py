"""What training sees of a data set, wherever it lies: its identity, its statistics, its loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from seal_ray.augmentations import Augmentation, Drawn, Mixing
from seal_ray.data.augment import crop_and_flip, draw, normalise
from seal_ray.data.dataset import SPLITS as SPLITS
from seal_ray.data.dataset import Split as Split
from seal_ray.data.loaders import ArrayLoader, Loader, open_loader
from seal_ray.data.subset import Indices
from seal_ray.streams import stream

if TYPE_CHECKING:
    from seal_ray.data.beton import Dataset
    from seal_ray.recipe import Augment

Shard = tuple[Tensor, Tensor, Tensor | None]
"""Images (n, 3, H, W), normalised and floating-point, their labels (n,) or, where images are mixed, shares of
the classes (n, K), and, where there is dropout, the mask of their features (n, features), on the device.
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
    (accumulation, shard size, features); None without dropout. drawn: for images of (height, width) pixels,
    for each step what its shards need of each of `augment.then`; None where there is none.
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
    drawn: Callable[[tuple[int, int]], Iterator[list[list[Drawn]]]] | None = None

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
        drawn: Iterator[list[list[Drawn]]] | None = None
        mean, std = (  # made once: to move them in each step would wait for the device
            torch.tensor(values, dtype=self.dtype, device=self.device)[:, None, None]
            for values in (self.images.mean, self.images.std)
        )
        batches = self.loader.batches(self.order.reshape(-1))
        for indices, pixels in zip(per_step, batches, strict=True):
            moved = crop_and_flip(self._moved(pixels), draws.at(indices, self.device), padding=padding)
            y = labels[indices].to(self.device, non_blocking=True).chunk(shards)
            if self.drawn is None:
                x = normalise(moved, self.images.mean, self.images.std, self.memory_format, self.dtype)
                seen = list(zip(x.chunk(shards), y, strict=True))
            else:
                drawn = drawn or self.drawn((moved.shape[1], moved.shape[2]))
                changed = [
                    self._augmented(*one) for one in zip(moved.chunk(shards), y, next(drawn), strict=True)
                ]
                seen = [
                    (((x - mean) / std).contiguous(memory_format=self.memory_format), targets)
                    for x, targets in changed
                ]
            keep = [None] * shards if self.masks is None else self._moved(next(self.masks)).unbind()
            yield [(images, targets, mask) for (images, targets), mask in zip(seen, keep, strict=True)]

    def _augmented(self, pixels: Tensor, targets: Tensor, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """A shard after each of `augment.then`, in [0, 1], and its labels or mixed targets."""
        images = pixels.permute(0, 3, 1, 2).to(self.dtype).div_(255).contiguous()
        for change, tensors in zip(self.augment.then, drawn, strict=True):
            there = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
            images = change.apply(images, there)
            if isinstance(change, Mixing):
                if targets.ndim == 1:
                    targets = torch.eye(self.images.classes, dtype=self.dtype, device=self.device)[targets]
                targets = change.mix(targets, there)
        return images, targets

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


def augmentation_draws(
    augmentations: Sequence[Augmentation],
    order: Indices,
    mine: slice,
    size: tuple[int, int],
    *,
    seed: int,
    generation: int,
    epoch: int,
) -> Iterator[list[list[Drawn]]]:
    """For each step of an epoch, what each of a worker's shards needs of each augmentation.

    order: that of the whole epoch, for which all is drawn whichever shards are `mine`, so that another number
    of workers changes no draw. size: (height, width). Each augmentation has a stream of its own.
    """
    streams = [stream(seed, f"augment-{i}", generation, epoch) for i in range(len(augmentations))]
    steps, shards, count = order.shape
    for _ in range(steps):
        drawn = [
            [one.draw(count, size, generator) for one, generator in zip(augmentations, streams, strict=True)]
            for _ in range(shards)
        ]
        yield drawn[mine]


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
