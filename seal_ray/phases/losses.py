"""Losses as small frozen values: functions of logits (N, K) and labels, mean over N, in nats.

Labels are classes (N,), or, of images that are mixed, the shares of the classes (N, K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, TypeVar, runtime_checkable

from annotated_types import Ge, Gt, Lt

from seal_ray.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class RecipeLoss(Protocol):
    """A loss that recipes may name; its fields are what `loss:` may hold.

    With a class variable `partners = True` it is given `partner_logits` (N, K) as well: without gradient, the
    logits of another training image of each one's class, drawn anew each epoch.
    """

    name: ClassVar[str]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss (scalar) of `logits` (N, K) for `labels`, (N,) or (N, K)."""
        ...


L = TypeVar("L", bound=type)

LOSSES: Registry[RecipeLoss] = Registry("loss")
"""The losses that recipes may name."""


def loss(cls: L) -> L:
    """Class decorator: recipes may name this loss. Write it above `@dataclass(frozen=True)`.

    ConfigError for a class that is none, and for a name that another one has.
    """
    return LOSSES.register(cls, "" if "__call__" in dir(cls) else "needs the function __call__")


@loss
@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """Cross entropy, -mean log softmax(logits)[label], the target mixed with the uniform one."""

    name: ClassVar[str] = "ce"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over N; of a mixed image, the mean by its shares."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@loss
@dataclass(frozen=True)
class ClassWiseDistillation:
    """Cross entropy + `weight` x T^2 x KL(partner || image), both softened by T = `temperature`.

    Pairs of one class learn to be predicted alike: CS-KD (Yun et al., CVPR 2020, arXiv 2003.13964), with the
    weight of SEAL's published code. Costs two passes a step.
    """

    name: ClassVar[str] = "cs_kd"
    partners: ClassVar[bool] = True
    weight: Annotated[float, Ge(0)] = 3.0
    temperature: Annotated[float, Gt(0)] = 4.0

    def __call__(self, logits: Tensor, labels: Tensor, partner_logits: Tensor) -> Tensor:
        """The mean over N; `partner_logits` (N, K) carry no gradient."""
        from torch.nn.functional import cross_entropy

        soft = _divergence(logits, partner_logits, self.temperature)
        return cross_entropy(logits, labels) + self.weight * self.temperature**2 * soft


def takes_partners(loss: RecipeLoss) -> bool:
    """Whether each image passes together with another one of its class."""
    return getattr(loss, "partners", False)


def _divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL(targets || logits), mean over N, of logits (N, K) softened by T = `temperature`."""
    from torch.nn.functional import kl_div

    return kl_div(
        (logits / temperature).log_softmax(dim=1),
        (targets / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


class Loss(Protocol):
    """What a phase minimises (or, for an ascending part, climbs)."""

    teacher: ClassVar[bool]
    """Whether `teacher_logits` are needed; they come from the carried network of that name."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, recipe_loss: RecipeLoss, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss (scalar) of `logits` (N, K) for `labels`, (N,) or (N, K)."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """The recipe's loss: cross entropy, unless `recipe.loss` names another."""

    teacher: ClassVar[bool] = False

    def __call__(
        self, logits: Tensor, labels: Tensor, *, recipe_loss: RecipeLoss, teacher_logits: Tensor | None
    ) -> Tensor:
        """The recipe's loss."""
        return recipe_loss(logits, labels)


@dataclass(frozen=True)
class Distill:
    """The recipe's loss plus `weight` x T^2 x KL(teacher || student), both softened by T = `temperature`.

    Source: Born-Again Networks, arXiv 1805.04770 (T = 1, equal weights); the factor T^2 keeps the size of
    the gradient as T changes (Hinton et al., arXiv 1503.02531, section 2).
    """

    weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0
    teacher: ClassVar[bool] = True

    def __call__(
        self, logits: Tensor, labels: Tensor, *, recipe_loss: RecipeLoss, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss; `teacher_logits` (N, K) carry no gradient."""
        assert teacher_logits is not None
        soft = _divergence(logits, teacher_logits, self.temperature)
        return recipe_loss(logits, labels) + self.weight * self.temperature**2 * soft


@dataclass(frozen=True)
class ConfidentError:
    """Cross entropy towards the most probable *wrong* class: descending it makes confident mistakes.

    -mean log softmax(logits)[w], w = argmax over classes other than the label (of mixed images: than those
    that they have a share of). Climbing the plain loss
    may only flatten the prediction; this one asks for errors the network believes in (errorful learning,
    the outlook of SEAL, CVPR 2023).
    """

    teacher: ClassVar[bool] = False

    def __call__(
        self, logits: Tensor, labels: Tensor, *, recipe_loss: RecipeLoss, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss; the wrong class is chosen without gradient, ties to the smaller class."""
        from torch.nn.functional import cross_entropy

        if labels.ndim == 1:
            others = logits.detach().scatter(1, labels[:, None], -math.inf)
        else:
            others = logits.detach().masked_fill(labels > 0, -math.inf)
        return cross_entropy(logits, others.argmax(dim=1))
