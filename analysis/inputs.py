"""The images and networks that analyses are made of, each loaded once in a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from seal_ray.analysis.depth import Examples, balanced_subset
from seal_ray.analysis.features import Features, extract
from seal_ray.analysis.moments import Moment, trained_on
from seal_ray.data.augment import normalise
from seal_ray.data.dataset import Labels
from seal_ray.data.images import Images, Split
from seal_ray.data.loaders import Loader, Selected
from seal_ray.data.prepared import Dataset
from seal_ray.data.subset import noisy_labels, training_split
from seal_ray.errors import CheckpointError
from seal_ray.networks import stages
from seal_ray.recipe import Job, Recipe, load_job
from seal_ray.runs.checkpoint import State, weights_sha256
from seal_ray.storage.paths import AnyPath

BATCH = 256
"""Images of a forward pass."""
FEATURES_HELD = 4
"""Moments whose features are kept: that at hand, the one before it, its baseline, and one to spare."""


@dataclass(frozen=True, eq=False)
class Data:
    """The images that runs of one data set, per_class, holdout and label_noise see, without augmentation.

    val: what a run is evaluated on, which may be held out of the training images. used: the training images
    in use, as indices of the whole split. train_labels: theirs, wrong ones included. held: what is asked for
    again with every network, as uint8.
    """

    dataset: Dataset
    images: Images
    loaders: dict[Split, Loader]
    used: Labels
    train_labels: Tensor
    val_labels: Tensor
    held: dict[tuple[Split, bytes], Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, dataset: Dataset, recipe: Recipe) -> Data:
        """The data of a recipe. DataError when the files are damaged."""
        images = Images.from_dataset(dataset, loader="torch")
        loaders: dict[Split, Loader] = {
            "train": images.open("train", BATCH),
            "val": images.open("val", BATCH),
        }
        labels = loaders["train"].labels
        used, held = training_split(labels, recipe.data.per_class, recipe.data.holdout)
        noisy = noisy_labels(labels, images.classes, recipe.data.label_noise)
        val_labels = loaders["val"].labels
        if recipe.data.holdout:  # as in training: val images of the data set are for the end
            loaders["val"], val_labels = Selected(loaders["train"], held), noisy[held]
        return cls(
            dataset,
            images,
            loaders,
            used,
            torch.from_numpy(noisy[used]),
            torch.from_numpy(val_labels),
        )

    def pixels(self, split: Split, indices: Tensor) -> Tensor:
        """The images (N, H, W, 3), uint8, at indices of the training images in use or of val."""
        return self._read(split, self._whole(split, indices))

    def batches(self, split: Split, indices: Tensor) -> Iterator[Tensor]:
        """The same, normalised, (B, 3, H, W), batch by batch; they stay in memory for the next network."""
        mean, std = self.images.mean, self.images.std
        wanted = self._whole(split, indices)
        key = (split, wanted.tobytes())
        if key not in self.held:
            self.held[key] = self._read(split, wanted)
        return (normalise(some, mean, std, torch.contiguous_format) for some in self.held[key].split(BATCH))

    def _whole(self, split: Split, indices: Tensor) -> Labels:
        """Indices of the whole split."""
        return self.used[indices.numpy()] if split == "train" else indices.numpy()

    def _read(self, split: Split, indices: Labels) -> Tensor:
        return torch.cat(list(self.loaders[split].batches(indices)))

    def examples(self, split: Split) -> Examples:
        """A split as `measure_depth` takes it."""
        labels = self.train_labels if split == "train" else self.val_labels
        return Examples(labels, lambda indices: self.batches(split, indices))

    def training_subset(self, size: int, seed: int) -> tuple[list[Tensor], Tensor]:
        """A class-balanced subset, all if there are fewer: normalised batches, and labels (N,)."""
        indices = balanced_subset(self.train_labels, min(size, len(self.train_labels)), seed)
        return list(self.batches("train", indices)), self.train_labels[indices]

    def class_name(self, label: int) -> str:
        """What people call a class."""
        return self.dataset.classes[label].words.split(",")[0]


class InputCache:
    """Data, networks and features by run, on a device: read when first asked for, and then kept.

    Of data those of one data set are held at a time, of features those of the last few moments.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._runs: dict[AnyPath, tuple[Job, Dataset]] = {}
        self._data: dict[tuple[str, int | None, float, float], Data] = {}
        self._features: dict[tuple[str, bytes, int], Features] = {}

    def recipe(self, run: AnyPath) -> Recipe:
        """What the run computes."""
        return self._run(run)[0].recipe

    def data(self, run: AnyPath) -> Data:
        """The images that the run sees. DataError when they are not there, damaged, or others."""
        job, dataset = self._run(run)
        used = job.recipe.data
        key = (dataset.training_identity, used.per_class, used.holdout, used.label_noise)
        if key not in self._data:
            self._data = {key: Data.open(dataset, job.recipe)}
        return self._data[key]

    def in_order(self, run: AnyPath, weights: State) -> State:
        """The weights in the order of the run's network; a file of tensors has none of its own."""
        job, dataset = self._run(run)
        names = [*job.recipe.model.outline(len(dataset.classes)).state_dict()]
        if other := sorted(weights.keys() ^ {*names}):
            raise CheckpointError(f"{run}: its weights are not of its network, see {', '.join(other[:3])}")
        return {name: weights[name] for name in names}

    def network(self, run: AnyPath, weights: State) -> nn.Module:
        """The run's network with these weights, in eval mode."""
        network = self.recipe(run).model.build(self.data(run).images.classes, torch.Generator())
        network.load_state_dict(weights)
        return network.to(self.device).eval()

    def stage_features(self, run: AnyPath, weights: State, indices: Tensor, max_features: int) -> Features:
        """Embeddings of validation images at the output of each stage of the network."""
        key = (weights_sha256(weights), indices.numpy().tobytes(), max_features)
        if key not in self._features:
            network = self.network(run, weights)
            while len(self._features) >= FEATURES_HELD:
                del self._features[next(iter(self._features))]
            self._features[key] = extract(
                network,
                self.data(run).batches("val", indices),
                stages(network),
                max_features=max_features,
                device=self.device,
            )
        return self._features[key]

    def _run(self, run: AnyPath) -> tuple[Job, Dataset]:
        if run not in self._runs:
            job = load_job(run / "job.yaml")
            self._runs[run] = job, trained_on(run, job)
        return self._runs[run]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an analysis may read of a moment.

    weights: parameters and buffers, in the network's order. epochs: trained by then. others: the moments that
    it is compared with, by role. processes: how many share this machine's memory.
    """

    moment: Moment
    weights: State
    epochs: int
    others: Mapping[str, Moment]
    cache: InputCache
    processes: int = 1

    @property
    def device(self) -> torch.device:
        """Where networks are."""
        return self.cache.device

    @property
    def recipe(self) -> Recipe:
        """What the run computes."""
        return self.cache.recipe(self.moment.run)

    @property
    def data(self) -> Data:
        """The images that the run sees. DataError when they are not there, damaged, or others."""
        return self.cache.data(self.moment.run)

    def network(self) -> nn.Module:
        """The run's network with the moment's weights, in eval mode, on the device: a new one each time."""
        return self.cache.network(self.moment.run, self.weights)
