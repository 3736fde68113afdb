"""Augmentations that `augment.then` may list, in the order in which they are shown."""

# isort: off
from seal_ray.augmentations.base import AUGMENTATIONS, Augmentation, Drawn, Mixing, augmentation
from seal_ray.augmentations.mixing import Cutmix, Cutout, Mixup
from seal_ray.augmentations.colour import ColourJitter
from seal_ray.augmentations.randaugment import RandAugment

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ColourJitter",
    "Cutmix",
    "Cutout",
    "Drawn",
    "Mixing",
    "Mixup",
    "RandAugment",
    "augmentation",
]
