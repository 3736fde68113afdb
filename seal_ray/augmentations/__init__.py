"""Augmentations that `augment.then` may list, in the order in which they are shown."""

# isort: off
from seal_ray.augmentations.base import AUGMENTATIONS as AUGMENTATIONS
from seal_ray.augmentations.base import Augmentation as Augmentation
from seal_ray.augmentations.base import Drawn as Drawn
from seal_ray.augmentations.base import Mixing as Mixing
from seal_ray.augmentations.base import augmentation as augmentation
from seal_ray.augmentations.mixing import Cutmix as Cutmix
from seal_ray.augmentations.mixing import Cutout as Cutout
from seal_ray.augmentations.mixing import Mixup as Mixup
from seal_ray.augmentations.colour import ColourJitter as ColourJitter
from seal_ray.augmentations.randaugment import RandAugment as RandAugment
