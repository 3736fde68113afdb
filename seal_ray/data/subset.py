"""What a recipe changes about a data set: a smaller training set, wrong labels. Pure and seeded."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from seal_ray.errors import ConfigError
from seal_ray.streams import stream

Indices = npt.NDArray[np.int64]


def training_indices(labels: Indices, per_class: int | None) -> Indices:
    """Indices of the training images in use, ascending: `per_class` of each class, or all of them.

    The same images for every seed and method. ConfigError when a class has fewer.
    """
    if per_class is None:
        return np.arange(len(labels))
    import torch

    shuffled = torch.randperm(len(labels), generator=stream(0, "per_class")).numpy()
    chosen = []
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        if len(members) < per_class:
            raise ConfigError(
                f"recipe.data.per_class: {per_class} images a class, but class {label} has {len(members)}"
            )
        chosen.append(members[:per_class])
    return np.sort(np.concatenate(chosen))


def training_split(labels: Indices, per_class: int | None, holdout: float) -> tuple[Indices, Indices]:
    """Indices of the training images in use and of those held out of them, each ascending.

    Of the images in use `holdout` of each class, rounded half up, is held out: the same ones for every seed
    and method. ConfigError when that leaves a class none to train on, or holds out none at all.
    """
    used = training_indices(labels, per_class)
    if not holdout:
        return used, used[:0]
    import torch

    shuffled = used[torch.randperm(len(used), generator=stream(0, "holdout")).numpy()]
    held = []
    for label in np.unique(labels[used]):
        members = shuffled[labels[shuffled] == label]
        count = int(Fraction(str(holdout)) * len(members) + Fraction(1, 2))
        if count == len(members):
            raise ConfigError(f"recipe.data.holdout: {holdout:g} leaves class {label} no image to train on")
        held.append(members[:count])
    chosen = np.sort(np.concatenate(held))
    if not len(chosen):
        raise ConfigError(f"recipe.data.holdout: {holdout:g} of a few images a class is none; raise it")
    return np.setdiff1d(used, chosen), chosen


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches among so many training images in use. ConfigError when there is none."""
    if images < batch_size:
        raise ConfigError(
            f"recipe.batch_size: {batch_size} images, but the training set has only {images}; lower it"
        )
    return images // batch_size


def noisy_labels(labels: Indices, classes: int, fraction: float) -> Indices:
    """Labels with `fraction` of them (rounded down) replaced by a uniformly drawn *other* class.

    The same wrong labels for every seed and method, so that methods are compared on the same data.
    """
    import torch

    generator = stream(0, "label_noise")
    wrong = int(Fraction(str(fraction)) * len(labels))  # in exact decimals: 0.29 of 100 is 29
    chosen = torch.randperm(len(labels), generator=generator).numpy()[:wrong]
    shifts = torch.randint(1, max(classes, 2), (len(chosen),), generator=generator).numpy()
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shifts) % classes
    return noisy
