"""What an augmentation is: frozen data that says what is drawn for a shard and what that does to images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

from seal_ray.plugins import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Drawn = tuple["Tensor", ...]
"""What is drawn for one shard: on the CPU when drawn, on the device when applied."""


@runtime_checkable
class Augmentation(Protocol):
    """A random change of training images; its fields are what an entry of `augment.then` may hold.

    It sees one shard of a batch, so that the number of workers changes nothing. All that is random lies in
    `draw`, which is called for each shard of an epoch in turn with a generator of that epoch; `apply` is a
    function of its arguments, on whatever device they are.
    """

    name: ClassVar[str]

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """The draws for `count` images of (height, width) pixels, from a CPU generator alone."""
        ...

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The images changed: floating-point (N, 3, H, W), RGB in [0, 1]; the same shape and type out.

        They come cropped and flipped, and are normalised afterwards. The tensor that went in stays as it was.
        """
        ...


@runtime_checkable
class Mixing(Augmentation, Protocol):
    """An augmentation that mixes images of a shard, and so their labels."""

    def mix(self, targets: Tensor, drawn: Drawn) -> Tensor:
        """The targets of the mixed images: (N, K), each row the shares of the classes, which add up to 1."""
        ...


A = TypeVar("A", bound=type)

AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    {
        "cutout": "seal_ray.augmentations.mixing",
        "mixup": "seal_ray.augmentations.mixing",
        "cutmix": "seal_ray.augmentations.mixing",
        "colour_jitter": "seal_ray.augmentations.colour",
        "randaugment": "seal_ray.augmentations.randaugment",
    },
)
"""The augmentations that recipes may list; those of the package in the order in which they are shown."""


def augmentation(cls: A) -> A:
    """Class decorator: recipes may list this augmentation. Write it above `@dataclass(frozen=True)`.

    ConfigError for a class that is none, and for a name that another one has.
    """
    complete = all(callable(getattr(cls, wanted, None)) for wanted in ("draw", "apply"))
    return AUGMENTATIONS.register(cls, "" if complete else "needs the functions draw and apply")
