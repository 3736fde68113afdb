"""Calibration, likelihood, accuracy by class and forgetting against loops and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import log_loss, recall_score
from torch import Tensor

from seal_ray.analysis.calibration import forgetting_events, negative_log_likelihood
from seal_ray.errors import DataError
from seal_ray.metrics import expected_calibration_error, per_class_accuracy


def drawn(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


def ece_by_bins(logits: Tensor, labels: Tensor, bins: int) -> float:
    p = softmax(logits.double().numpy(), axis=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels.numpy()
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 8), st.sampled_from([1, 2, 10, 15]))
@settings(max_examples=60)
def test_calibration_error_bin_by_bin(seed: int, n: int, classes: int, bins: int) -> None:
    logits, labels = drawn(n, classes, seed)
    found = expected_calibration_error(logits, labels, bins=bins)
    assert found == pytest.approx(ece_by_bins(logits, labels, bins), abs=1e-9)


def test_calibration_error_by_hand() -> None:
    # Confidences 0.5 (right), 0.9 (right), 0.9 (wrong): (0.5 + |1 - 1.8|) / 3.
    logits = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]], dtype=torch.float64).log()
    labels = torch.tensor([0, 0, 1])
    assert expected_calibration_error(logits, labels) == pytest.approx((0.5 + 0.8) / 3)
    assert expected_calibration_error(logits[1:], labels[1:], bins=1) == pytest.approx(0.4)


def test_a_bin_holds_its_upper_edge() -> None:
    # With two bins a confidence of exactly one half belongs to the first: not mixed with that of 0.75.
    logits = torch.tensor([[1.0, 1.0], [3.0, 1.0]], dtype=torch.float64).log()
    apart = expected_calibration_error(logits, torch.tensor([0, 1]), bins=2)
    assert apart == pytest.approx((0.5 + 0.75) / 2)
    assert expected_calibration_error(logits, torch.tensor([0, 1]), bins=1) == pytest.approx(0.25 / 2)


def test_likelihood_and_certain_mistakes() -> None:
    logits, labels = drawn(200, 5)
    expected = log_loss(labels, softmax(logits.double().numpy(), axis=1), labels=range(5))
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-12)
    certain = torch.tensor([[0.0, 1000.0]])
    assert negative_log_likelihood(certain, torch.tensor([0])) == 1000  # where probabilities underflow


def test_accuracy_by_class() -> None:
    logits, labels = drawn(200, 5)
    predictions = logits.argmax(dim=1)
    found = per_class_accuracy(predictions, labels, 7)
    assert found[:5].tolist() == pytest.approx(recall_score(labels, predictions, average=None).tolist())
    assert found[5:].isnan().all()


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9))
def test_forgetting_events_of_each_example(epochs: list[list[bool]]) -> None:
    found = forgetting_events(torch.tensor(epochs))
    for i in range(3):
        history = [row[i] for row in epochs]
        events = "".join("R" if right else "w" for right in history).count("Rw")
        assert found.events[i] == events
        assert found.learned[i] == any(history)
        assert found.unforgettable[i] == (any(history) and events == 0)


def test_one_row_of_logits_for_each_label() -> None:
    logits, labels = drawn(4, 3)
    for measure in (expected_calibration_error, negative_log_likelihood):
        with pytest.raises(DataError, match="4 rows of logits for 3 labels"):
            measure(logits, labels[:3])
        with pytest.raises(DataError, match="0 rows of logits for 0 labels"):
            measure(logits[:0], labels[:0])
        assert math.isfinite(measure(logits, labels))
