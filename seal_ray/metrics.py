"""Metrics of the validation images as small frozen values: functions of all logits (N, K) and labels (N,)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, TypeVar, runtime_checkable

from annotated_types import Ge

from seal_ray.errors import DataError
from seal_ray.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor

TAKEN = ("loss", "top1", "top5")
"""What `val_` stands before in every row."""


@runtime_checkable
class Metric(Protocol):
    """A metric that placements may name; its fields are what an entry of `metrics:` may hold."""

    name: ClassVar[str]

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        """The value, of logits (N, K) and labels, int64 (N,), of all images in index order, on the CPU."""
        ...


M = TypeVar("M", bound=type)

METRICS: Registry[Metric] = Registry("metric")
"""The metrics that placements may name."""


def metric(cls: M) -> M:
    """Class decorator: placements may name this metric. Write it above `@dataclass(frozen=True)`.

    ConfigError for a class that is none, for a name that another one has, and for one of `TAKEN`.
    """
    problem = "" if "__call__" in dir(cls) else "needs the function __call__"
    if (name := getattr(cls, "name", None)) in TAKEN:
        problem = f"is called {name!r}, and val_{name} is in every row already; rename it"
    return METRICS.register(cls, problem)


@metric
@dataclass(frozen=True)
class BalancedAccuracy:
    """The mean of the classes' accuracies, per cent: each class that has images counts once."""

    name: ClassVar[str] = "balanced_accuracy"

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        """Per cent."""
        return float(100 * per_class_accuracy(logits.argmax(dim=1), labels, logits.shape[1]).nanmean())


@metric
@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error, per cent, over bins of equal width (Guo et al., arXiv 1706.04599)."""

    name: ClassVar[str] = "ece"
    bins: Annotated[int, Ge(1)] = 15

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        """Per cent."""
        return 100 * expected_calibration_error(logits, labels, bins=self.bins)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, in [0, 1].

    sum_b n_b / N |accuracy_b - confidence_b| over `bins` equal-width bins ((b - 1) / bins, b / bins] of the
    largest softmax probability. logits: (N, classes); labels: (N,). Computed in float64.
    Source: Guo et al., ICML 2017, arXiv 1706.04599, eq. 3.
    """
    import torch

    check_logits(logits, labels)
    confidence, prediction = logits.double().softmax(dim=1).max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=logits.device) / bins
    surplus = (prediction == labels).double() - confidence
    gaps = surplus.new_zeros(bins).index_add_(0, torch.bucketize(confidence, edges), surplus)
    return float(gaps.abs().sum() / len(labels))


def per_class_accuracy(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The share of each class's examples predicted rightly, float64 (classes,); nan for an absent class."""
    count = labels.bincount(minlength=classes)
    return labels[predictions == labels].bincount(minlength=classes).double() / count


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """DataError unless there is a row of logits for each label, and one at least."""
    if not len(labels) or len(logits) != len(labels):
        raise DataError(
            f"{len(logits)} rows of logits for {len(labels)} labels; give one for each, at least 1"
        )
