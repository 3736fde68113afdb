"""How far confidences can be trusted, accuracy by class, and which examples were forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from seal_ray.errors import DataError


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, in [0, 1].

    sum_b n_b / N |accuracy_b - confidence_b| over `bins` equal-width bins ((b - 1) / bins, b / bins] of the
    largest softmax probability. logits: (N, classes); labels: (N,). Computed in float64.
    Source: Guo et al., ICML 2017, arXiv 1706.04599, eq. 3.
    """
    _check(logits, labels)
    confidence, prediction = logits.double().softmax(dim=1).max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=logits.device) / bins
    surplus = (prediction == labels).double() - confidence
    gaps = surplus.new_zeros(bins).index_add_(0, torch.bucketize(confidence, edges), surplus)
    return float(gaps.abs().sum() / len(labels))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), in nats, in float64. logits: (N, classes); labels: (N,)."""
    _check(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def per_class_accuracy(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The share of each class's examples predicted rightly, float64 (classes,); nan for an absent class."""
    count = torch.bincount(labels, minlength=classes)
    return torch.bincount(labels[predictions == labels], minlength=classes).double() / count


@dataclass(frozen=True, eq=False)
class Forgetting:
    """What became of N examples over training. An example is unforgettable when learned with 0 events.

    events: int64 (N,), how often an example went from right to wrong; 0 too for one never learned.
    learned: bool (N,), whether it was ever right.
    """

    events: Tensor
    learned: Tensor

    @property
    def unforgettable(self) -> Tensor:
        """Bool (N,): learned and never forgotten."""
        return self.learned & (self.events == 0)


def forgetting_events(correct: Tensor) -> Forgetting:
    """Forgetting events of each example from its correctness by epoch, bool (epochs, N).

    Source: Toneva et al., ICLR 2019, arXiv 1812.05159, section 3 (there at each presentation of an example).
    """
    return Forgetting(events=(correct[:-1] & ~correct[1:]).sum(dim=0), learned=correct.any(dim=0))


def _check(logits: Tensor, labels: Tensor) -> None:
    if not len(labels) or len(logits) != len(labels):
        raise DataError(
            f"{len(logits)} rows of logits for {len(labels)} labels; give one for each, at least 1"
        )
