"""Losses as small frozen values: functions of logits (N, K) and labels (N,), mean over N, in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from annotated_types import Ge, Gt
from torch import Tensor


class Loss(Protocol):
    """What a phase minimises (or, for an ascending part, climbs)."""

    teacher: ClassVar[bool]
    """Whether `teacher_logits` are needed; they come from the carried network of that name."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, label_smoothing: float, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss (scalar) of `logits` (N, K) for `labels` (N,)."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy with the recipe's label smoothing."""

    teacher: ClassVar[bool] = False

    def __call__(
        self, logits: Tensor, labels: Tensor, *, label_smoothing: float, teacher_logits: Tensor | None
    ) -> Tensor:
        """-mean log softmax(logits)[label], the target mixed with the uniform one."""
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class Distill:
    """Cross entropy plus `weight` x T^2 x KL(teacher || student), both softened by T = `temperature`.

    Source: Born-Again Networks, arXiv 1805.04770 (T = 1, equal weights); the factor T^2 keeps the size of
    the gradient as T changes (Hinton et al., arXiv 1503.02531, section 2).
    """

    weight: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0
    teacher: ClassVar[bool] = True

    def __call__(
        self, logits: Tensor, labels: Tensor, *, label_smoothing: float, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss; `teacher_logits` (N, K) carry no gradient."""
        assert teacher_logits is not None
        hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, dim=1),
            F.log_softmax(teacher_logits / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return hard + self.weight * self.temperature**2 * soft


@dataclass(frozen=True)
class ConfidentError:
    """Cross entropy towards the most probable *wrong* class: descending it makes confident mistakes.

    -mean log softmax(logits)[w], w = argmax over classes other than the label. Climbing the plain loss
    may only flatten the prediction; this one asks for errors the network believes in (errorful learning,
    the outlook of SEAL, CVPR 2023).
    """

    teacher: ClassVar[bool] = False

    def __call__(
        self, logits: Tensor, labels: Tensor, *, label_smoothing: float, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss; the wrong class is chosen without gradient, ties to the smaller class."""
        others = logits.detach().scatter(1, labels[:, None], -torch.inf)
        return F.cross_entropy(logits, others.argmax(dim=1))
