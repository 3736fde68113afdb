"""Losses against arithmetic in float64 with NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax

from seal_ray.phases.losses import (
    ClassWiseDistillation,
    ConfidentError,
    CrossEntropy,
    Distill,
    Loss,
    SmoothedCrossEntropy,
)

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 4.0, 4.0]])
TEACHER = np.array([[1.0, 1.0, -2.0], [0.0, 3.0, 0.0], [5.0, -5.0, 0.0]])
LABELS = np.array([0, 2, 1])


def value(loss: Loss, *, smoothing: float = 0.0, labels: np.ndarray = LABELS) -> float:
    result = loss(
        torch.tensor(LOGITS),
        torch.tensor(labels),
        recipe_loss=SmoothedCrossEntropy(smoothing),
        teacher_logits=torch.tensor(TEACHER) if loss.teacher else None,
    )
    assert result.shape == ()
    return float(result)


def smoothed(labels: np.ndarray, smoothing: float) -> float:
    """Cross entropy to a target of 1 - s + s / K for the label and s / K for each other class."""
    target = np.full((len(labels), 3), smoothing / 3)
    target[np.arange(len(labels)), labels] += 1 - smoothing
    return float(-(target * log_softmax(LOGITS, axis=1)).sum(axis=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])
def test_cross_entropy_with_label_smoothing(smoothing: float) -> None:
    assert value(CrossEntropy(), smoothing=smoothing) == pytest.approx(smoothed(LABELS, smoothing), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 2.0), (0.0, 3.0), (2.0, 0.5)])
def test_distillation_is_the_divergence_from_the_teacher(
    weight: float, temperature: float, smoothing: float
) -> None:
    teacher, student = (softmax(logits / temperature, axis=1) for logits in (TEACHER, LOGITS))
    divergence = rel_entr(teacher, student).sum(axis=1).mean()
    expected = smoothed(LABELS, smoothing) + weight * temperature**2 * divergence
    assert value(Distill(weight, temperature), smoothing=smoothing) == pytest.approx(expected, rel=1e-12)


def test_the_divergence_is_not_that_from_the_student() -> None:
    teacher, student = softmax(TEACHER, axis=1), softmax(LOGITS, axis=1)
    there, back = (rel_entr(p, q).sum(axis=1).mean() for p, q in [(teacher, student), (student, teacher)])
    soft = value(Distill()) - value(Distill(weight=0))
    assert soft == pytest.approx(there)
    assert abs(there - back) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_factor_keeps_the_size_of_the_gradient(temperature: float) -> None:
    logits = torch.tensor(LOGITS, requires_grad=True)
    arguments = {"recipe_loss": SmoothedCrossEntropy(0.0), "teacher_logits": torch.tensor(TEACHER)}
    soft = Distill(1.0, temperature)(logits, torch.tensor(LABELS), **arguments)
    hard = CrossEntropy()(logits, torch.tensor(LABELS), **arguments)
    (gradient,) = torch.autograd.grad(soft - hard, logits)
    expected = softmax(LOGITS / temperature, axis=1) - softmax(TEACHER / temperature, axis=1)
    np.testing.assert_allclose(gradient.numpy(), temperature * expected / len(LOGITS), rtol=1e-9)


def test_confident_error_is_the_cross_entropy_to_the_likeliest_wrong_class() -> None:
    # wrong classes by hand: 2 (0.5 over -1), 1 (0.2 over 0.1), 2 (4 over -3)
    expected = -log_softmax(LOGITS, axis=1)[[0, 1, 2], [2, 1, 2]].mean()
    assert value(ConfidentError()) == pytest.approx(expected, rel=1e-12)


def test_confident_error_of_a_tie_takes_the_smaller_class() -> None:
    expected = -log_softmax(LOGITS, axis=1)[[0, 1, 2], [0, 2, 1]].mean()
    assert value(ConfidentError(), labels=np.array([2, 1, 0])) == pytest.approx(expected, rel=1e-12)
    logits = torch.zeros(3, 4, requires_grad=True)
    loss = ConfidentError()(
        logits, torch.tensor([0, 1, 3]), recipe_loss=SmoothedCrossEntropy(), teacher_logits=None
    )
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.argmin(dim=1).tolist() == [1, 0, 0]


def test_confident_error_ignores_the_recipes_loss() -> None:
    assert value(ConfidentError(), smoothing=0.5) == value(ConfidentError())


SHARES = np.array([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_mixed_images_are_weighted_by_their_shares(smoothing: float) -> None:
    target = (1 - smoothing) * SHARES + smoothing / 3
    hard = -(target * log_softmax(LOGITS, axis=1)).sum(axis=1).mean()
    assert value(CrossEntropy(), smoothing=smoothing, labels=SHARES) == pytest.approx(hard, rel=1e-12)
    divergence = rel_entr(softmax(TEACHER, axis=1), softmax(LOGITS, axis=1)).sum(axis=1).mean()
    assert value(Distill(), smoothing=smoothing, labels=SHARES) == pytest.approx(hard + divergence)
    # wrong classes by hand: the only one without a share, then 1 (0.2 over 0.1), then 1
    wrong = -log_softmax(LOGITS, axis=1)[[0, 1, 2], [2, 1, 1]].mean()
    assert value(ConfidentError(), labels=SHARES) == pytest.approx(wrong, rel=1e-12)


@given(
    rows=st.lists(
        st.tuples(st.lists(st.floats(-50, 50), min_size=4, max_size=4), st.integers(0, 3)), min_size=1
    )
)
def test_losses_of_any_logits_agree_with_numpy(rows: list[tuple[list[float], int]]) -> None:
    logits, labels = np.array([row for row, _ in rows]), np.array([label for _, label in rows])
    log = log_softmax(logits, axis=1)
    wrong = []
    for row, label in zip(logits, labels, strict=True):
        others = [c for c in range(4) if c != label]
        wrong.append(max(others, key=lambda c: (row[c], -c)))
    arguments = {"recipe_loss": SmoothedCrossEntropy(0.0), "teacher_logits": None}
    tensors = torch.tensor(logits), torch.tensor(labels)
    picked = np.arange(len(rows))
    assert float(CrossEntropy()(*tensors, **arguments)) == pytest.approx(
        -log[picked, labels].mean(), abs=1e-9
    )
    assert float(ConfidentError()(*tensors, **arguments)) == pytest.approx(
        -log[picked, wrong].mean(), abs=1e-9
    )


def test_losses_are_values() -> None:
    assert CrossEntropy() == CrossEntropy()
    assert Distill(0.5) == Distill(0.5, 1.0)
    assert Distill(0.5) != Distill(0.4)
    assert len({CrossEntropy(), ConfidentError(), Distill(), CrossEntropy()}) == 3


@pytest.mark.parametrize(("weight", "temperature"), [(3.0, 4.0), (1.0, 1.0)])
def test_class_wise_distillation_by_hand(weight: float, temperature: float) -> None:
    logits, beside = torch.tensor(LOGITS), torch.tensor(TEACHER)
    loss = ClassWiseDistillation(weight, temperature)(logits, torch.tensor(LABELS), beside)
    other, own = (softmax(values / temperature, axis=1) for values in (TEACHER, LOGITS))
    soft = rel_entr(other, own).sum(axis=1).mean()
    expected = smoothed(LABELS, 0.0) + weight * temperature**2 * soft
    assert loss.item() == pytest.approx(expected, rel=1e-12)
