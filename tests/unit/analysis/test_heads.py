"""Few-shot heads against scikit-learn, one episode at a time, and brute force in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from seal_ray.analysis import fewshot as heads
from seal_ray.analysis.fewshot import Episodes, episodes, score_episodes, unit_length
from seal_ray.errors import ConfigError, DataError, SealRayWarning


def mixture(
    count: int, features: int, classes: int, *, apart: float = 0.4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Overlapping clusters of correlated, non-negative features with scales of their own; labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    inner = apart * torch.randn(classes, 16, generator=generator)[labels]
    inner += torch.randn(count, 16, generator=generator)
    seen = inner @ torch.randn(16, features, generator=generator) / 4
    seen += 0.2 * torch.randn(count, features, generator=generator)
    return seen.relu() * torch.randn(features, generator=generator).exp(), labels


def by_scikit_learn(features: Tensor, drawn: Episodes, weight_decay: float) -> np.ndarray:
    ways, shots = drawn.support.shape[1:]
    known, asked = (np.repeat(np.arange(ways), n) for n in (shots, drawn.query.shape[2]))
    accuracies = []
    for support, query in zip(drawn.support.flatten(1), drawn.query.flatten(1), strict=True):
        # For two classes scikit-learn penalises the difference of two weights, which is half of both.
        c = (2 if ways == 2 else 1) / (ways * shots * weight_decay)
        head = LogisticRegression(C=c, tol=1e-6, max_iter=5000)
        head.fit(features[support].double().numpy(), known)
        accuracies.append((head.predict(features[query].double().numpy()) == asked).mean())
    return np.array(accuracies)


def by_brute_force(features: Tensor, drawn: Episodes) -> np.ndarray:
    seen = features.double().numpy()
    accuracies = []
    for support, query in zip(drawn.support.numpy(), drawn.query.numpy(), strict=True):
        means = np.stack([seen[images].mean(axis=0) for images in support])
        right = [
            ((seen[image] - means) ** 2).sum(axis=1).argmin() == way
            for way, images in enumerate(query)
            for image in images
        ]
        accuracies.append(np.mean(right))
    return np.array(accuracies)


@pytest.mark.parametrize("weight_decay", [1e-3, 0.01, 0.1])
@pytest.mark.parametrize("shots", [1, 5, 20])
def test_logistic_heads_on_unit_features(shots: int, weight_decay: float) -> None:
    features, labels = mixture(600, 48, 8, apart=1)
    features = unit_length(features)
    drawn = episodes(labels, seed=1, shots=shots, count=60)
    expected = by_scikit_learn(features, drawn, weight_decay)
    assert score_episodes(features, drawn, weight_decay=weight_decay).mean == pytest.approx(
        expected.mean(), abs=0.003
    )
    precise = score_episodes(features, drawn, weight_decay=weight_decay, tolerance=1e-7)
    # One query more or less of 75 in an episode.
    assert np.abs(precise.accuracies.numpy() - expected).max() < 1.5 / 75


@pytest.mark.parametrize("ways", [2, 3])
def test_logistic_heads_on_features_as_they_are(ways: int) -> None:
    """Fewer features than support images, large and unequal scales."""
    features, labels = mixture(400, 12, 6)
    drawn = episodes(labels, seed=2, ways=ways, shots=20, count=30)
    found = score_episodes(features, drawn, weight_decay=0.003, tolerance=1e-6, max_iterations=3000)
    assert np.allclose(found.accuracies, by_scikit_learn(features, drawn, 0.003), atol=1.5 / (15 * ways))


def test_one_image_many_times_in_a_support() -> None:
    features, labels = mixture(200, 40, 5)
    features = unit_length(features[torch.arange(200) // 20 * 20 + labels])
    drawn = episodes(labels, seed=0, shots=10, count=10)
    found = score_episodes(features, drawn, weight_decay=0.01, tolerance=1e-6)
    assert np.allclose(found.accuracies, by_scikit_learn(features, drawn, 0.01))


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 4), st.integers(2, 5))
@settings(max_examples=40)
def test_prototypes(seed: int, width: int, shots: int, ways: int) -> None:
    features, labels = mixture(60, width, 6, seed=seed)
    drawn = episodes(labels, seed=seed, shots=shots, ways=ways, queries=4, count=12)
    found = score_episodes(features, drawn, head="prototype")
    assert np.array_equal(found.accuracies, by_brute_force(features, drawn))


def test_prototypes_within_float32_of_each_other() -> None:
    """All far from the origin and close together, so that float32 products cannot tell them apart."""
    features, labels = mixture(120, 20, 6)
    features = 500 + features
    drawn = episodes(labels, seed=0, shots=4, count=40)
    assert np.array_equal(
        score_episodes(features, drawn, head="prototype").accuracies, by_brute_force(features, drawn)
    )


def test_equal_prototypes_go_to_the_first_way() -> None:
    labels = torch.arange(60) % 3
    drawn = episodes(labels, seed=0, ways=3, shots=2, queries=3, count=4)
    found = score_episodes(torch.ones(60, 7), drawn, head="prototype")
    assert found.accuracies.tolist() == pytest.approx([1 / 3] * 4)


def test_mean_and_half_width() -> None:
    features, labels = mixture(300, 10, 6)
    drawn = episodes(labels, seed=0, shots=2, count=50)
    found = score_episodes(features, drawn, head="prototype")
    accuracies = found.accuracies.numpy()
    assert found.mean == pytest.approx(accuracies.mean())
    assert found.half_width == pytest.approx(1.96 * accuracies.std(ddof=1) / 50**0.5)
    assert accuracies.std() > 0


def test_chunks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = mixture(300, 30, 6)
    drawn = episodes(labels, seed=0, shots=5, count=30)
    together = [score_episodes(unit_length(features), drawn, head=head) for head in ("logistic", "prototype")]  # type: ignore[arg-type]
    monkeypatch.setattr(heads, "WORKING_SET", 1)
    apart = [score_episodes(unit_length(features), drawn, head=head) for head in ("logistic", "prototype")]  # type: ignore[arg-type]
    assert np.allclose(together[0].accuracies, apart[0].accuracies, atol=1.5 / 75)
    assert torch.equal(together[1].accuracies, apart[1].accuracies)


@pytest.mark.parametrize("head", ["logistic", "prototype"])
def test_two_calls_agree_bit_for_bit(head: str) -> None:
    features, labels = mixture(300, 30, 6)
    drawn = episodes(labels, seed=0, shots=5, count=30)
    first, second = (score_episodes(features, drawn, head=head) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(first.accuracies, second.accuracies)


def test_unit_length() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(unit_length(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_what_cannot_be_evaluated() -> None:
    features, labels = mixture(300, 10, 6)
    drawn = episodes(labels, seed=0, shots=5, count=4)
    with pytest.raises(ConfigError, match="weight_decay"):
        score_episodes(features, drawn, weight_decay=0)
    with pytest.warns(SealRayWarning, match="4 of 4 logistic regressions did not converge"):
        score_episodes(features, drawn, max_iterations=1)
    features[17, 3] = torch.nan
    with pytest.raises(DataError, match="not all finite"):
        score_episodes(features, drawn)
