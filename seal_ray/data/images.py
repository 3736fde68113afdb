"""What training sees of a data set, wherever it lies: its identity, its statistics, its loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seal_ray.augmentations import Augmentation, Drawn, Mixing
from seal_ray.data.augment import Crop, Normaliser, draw
from seal_ray.data.dataset import SPLITS as SPLITS
from seal_ray.data.dataset import Split as Split
from seal_ray.data.loaders import ArrayLoader, Loader, ResidentLoader, moved, on_device, open_loader
from seal_ray.data.subset import Indices
from seal_ray.streams import stream

if TYPE_CHECKING:
    from seal_ray.data.prepared import Dataset
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
    size: tuple[int, int]
    """Height and width, pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    open: Callable[[Split, int], Loader]
    """A loader of a split whose batches hold that many images."""
    loader: Literal["ffcv", "torch"] = "torch"
    """What reads them, which decides last bits where they are JPEG."""

    @classmethod
    def from_dataset(cls, dataset: Dataset, *, loader: Literal["ffcv", "torch"]) -> Images:
        """The images of a prepared folder, read through FFCV or plainly."""
        return cls(
            dataset.training_identity,
            len(dataset.classes),
            (dataset.size, dataset.size),
            dataset.mean,
            dataset.std,
            lambda split, size: open_loader(dataset, split, kind=loader, batch_size=size),
            loader,
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
            train[0].shape[1:3],
            tuple(map(float, pixels.mean(axis=0))),
            tuple(map(float, pixels.std(axis=0))),
            lambda split, size: ArrayLoader(*splits[split], size),
        )


class Batch(NamedTuple):
    """A worker's images of one optimizer step before they are augmented; all of it lies on the device."""

    pixels: Tensor  # uint8 (n, H, W, 3), one shard after the other
    places: Tensor  # int64 (2, n): see Crop.places
    labels: Tensor  # int64 (n,)
    keep: Tensor | None  # the masks of dropout, (shards, shard size, features)
    drawn: Sequence[Sequence[Drawn]] | None  # for each shard what it needs of each of `augment.then`


@dataclass(frozen=True)
class TrainingImages:
    """A worker's training images and how its device augments them. Made once a run, constants and all."""

    loader: Loader
    labels: Tensor  # int64 (N,), on the CPU
    shards: int
    """How many of each batch are this worker's, those of partners included."""
    augment: Augment
    crop: Crop
    normaliser: Normaliser
    classes: Tensor
    """The identity of as many rows as there are classes: labels as shares."""
    device: torch.device

    @classmethod
    def of(
        cls,
        images: Images,
        loader: Loader,
        labels: Indices,
        augment: Augment,
        normaliser: Normaliser,
        *,
        shards: int,
        device: torch.device,
    ) -> TrainingImages:
        """Those that `loader` reads, labelled `labels` (N,)."""
        crop = Crop.of(images.size, augment.crop_padding, device)
        classes = torch.eye(images.classes, dtype=normaliser.scale.dtype, device=device)
        return cls(loader, torch.from_numpy(labels), shards, augment, crop, normaliser, classes, device)

    def epoch(
        self,
        order: Indices,
        generator: torch.Generator,
        masks: Iterator[Tensor] | None = None,
        drawn: Iterator[Sequence[Sequence[Drawn]]] | None = None,
    ) -> Iterator[Batch]:
        """This worker's batches of an epoch.

        order: (steps, shards, shard size) sample indices; N + i for image i as a partner, which is cropped
        and flipped by draws of its own. masks: of dropout, for each step; None without.
        drawn: for each step and shard what is drawn for each of `augment.then`; None where there is none.
        What is known for the whole epoch is moved to the device once.
        """
        padding, flip = self.augment.crop_padding, self.augment.flip
        count = len(self.labels)
        draws = draw(count * (1 + int(order.max()) // count), padding=padding, flip=flip, generator=generator)
        per_step = torch.from_numpy(order).flatten(1)
        of_step = self.crop.places(draws, per_step), self.labels[per_step % count]
        places, labels = on_device(of_step, self.device)
        resident = isinstance(self.loader, ResidentLoader)
        pixels = self.loader.batches(order.reshape(-1) % count)
        streams = (
            pixels if resident else moved(pixels, self.device),
            moved(masks, self.device) if masks else repeat(None),
            moved(drawn, self.device) if drawn else repeat(None),
        )
        for index, (images, keep, each) in enumerate(zip(*streams, strict=False)):
            yield Batch(images, places[index], labels[index], keep, each)

    def augmented(self, batch: Batch) -> list[Shard]:
        """The shards of a batch: cropped, flipped, changed by each of `augment.then`, normalised."""
        cropped = self.crop(batch.pixels, batch.places)
        labels = batch.labels.chunk(self.shards)
        seen: Iterable[tuple[Tensor, Tensor]]
        if batch.drawn is None:
            seen = zip(self.normaliser.of_bytes(cropped).chunk(self.shards), labels, strict=True)
        else:
            seen = map(self._changed, cropped.chunk(self.shards), labels, batch.drawn)
        keep = [None] * self.shards if batch.keep is None else batch.keep.unbind()
        return [(images, targets, mask) for (images, targets), mask in zip(seen, keep, strict=True)]

    def _changed(self, pixels: Tensor, targets: Tensor, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """A shard after each of `augment.then`, normalised, and its labels or mixed targets."""
        images = pixels.permute(0, 3, 1, 2).to(self.classes.dtype).div_(255).contiguous()
        for change, tensors in zip(self.augment.then, drawn, strict=True):
            images = change.apply(images, tensors)
            if isinstance(change, Mixing):
                targets = change.mix(self.classes[targets] if targets.ndim == 1 else targets, tensors)
        return self.normaliser.of_floats(images), targets


def epoch_order(
    indices: Indices, *, batch_size: int, shards: int, seed: int, generation: int, epoch: int
) -> Indices:
    """The order of one epoch, (steps, shards, batch_size / shards); the last incomplete batch is dropped."""
    shuffled = torch.randperm(len(indices), generator=stream(seed, "order", generation, epoch)).numpy()
    steps = len(indices) // batch_size
    order: Indices = indices[shuffled[: steps * batch_size]]
    return order.reshape(steps, shards, batch_size // shards)


def with_partners(
    order: Indices, indices: Indices, labels: Indices, *, seed: int, generation: int, epoch: int
) -> Indices:
    """The order of one epoch, each shard followed by one of its partners: (steps, 2 shards, shard size).

    The partner of an image is drawn for that image, uniformly from those of its label among `indices`, itself
    one of them; as a partner image i is N + i. labels: (N,). Source: CS-KD, arXiv 2003.13964, section 3.
    """
    draws = torch.randint(2**62, (len(labels),), generator=stream(seed, "partner", generation, epoch)).numpy()
    by_label = indices[labels[indices].argsort(kind="stable")]
    sizes = np.bincount(labels[indices])
    first, of = sizes.cumsum() - sizes, labels[order]
    partners = by_label[first[of] + draws[order] % sizes[of]]
    steps, shards, size = order.shape
    return np.stack([order, len(labels) + partners], axis=2).reshape(steps, 2 * shards, size)


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
