"""Augmentations that `augment.then` may list; base.py has the list of those in this folder."""

from seal_ray.augmentations.base import AUGMENTATIONS as AUGMENTATIONS
from seal_ray.augmentations.base import Augmentation as Augmentation
from seal_ray.augmentations.base import Drawn as Drawn
from seal_ray.augmentations.base import Mixing as Mixing
from seal_ray.augmentations.base import augmentation as augmentation
