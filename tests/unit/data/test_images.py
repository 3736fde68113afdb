"""Smaller training sets and wrong labels: exact counts, the same for every seed and method."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seal_ray.data.subset import noisy_labels, training_indices
from seal_ray.errors import ConfigError
from seal_ray.recipe import Placement
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.runs import tiny_images, tiny_recipe

LABELS = np.random.default_rng(0).integers(0, 5, 300)


@pytest.mark.parametrize("per_class", [1, 7, 40])
def test_a_subset_is_balanced_and_ascending(per_class: int) -> None:
    indices = training_indices(LABELS, per_class)
    assert (np.diff(indices) > 0).all()
    assert np.bincount(LABELS[indices]).tolist() == [per_class] * 5


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    sizes = [set(training_indices(LABELS, n).tolist()) for n in (1, 2, 10, 40)]
    assert all(small < large for small, large in pairwise(sizes))


def test_a_subset_is_not_just_the_first_images() -> None:
    indices = training_indices(LABELS, 20)
    firsts = np.sort(np.concatenate([np.flatnonzero(np.equal(LABELS, label))[:20] for label in range(5)]))
    assert indices.tolist() != firsts.tolist()
    assert indices.max() > 250


def test_all_images_are_used_when_no_number_is_given() -> None:
    assert training_indices(LABELS, None).tolist() == list(range(300))


def test_a_class_with_too_few_images_is_named() -> None:
    labels = np.array([0, 0, 1, 0, 2, 2])
    with pytest.raises(ConfigError, match=r"recipe\.data\.per_class: 2 images a class, but class 1 has 1"):
        training_indices(labels, 2)


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    fraction=st.decimals("0", "0.99", places=2),
)
@example([0] * 100, "0.29")
def test_exactly_the_fraction_of_labels_is_wrong(labels: list[int], fraction: object) -> None:
    before = np.array(labels)
    after = noisy_labels(before, 4, float(str(fraction)))
    assert int((after != before).sum()) == int(Fraction(str(fraction)) * len(labels))  # rounded down
    assert after.dtype == before.dtype
    assert before.tolist() == labels
    assert after.min() >= 0
    assert after.max() <= 3


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    before = np.zeros(40_000, dtype=np.int64)
    counts = np.bincount(noisy_labels(before, 5, 0.4), minlength=5)
    assert counts[0] == 24_000
    assert abs(counts[1:] / 16_000 - 0.25).max() < 0.015


def test_more_noise_keeps_the_wrong_images_of_less() -> None:
    wrong = [set(np.flatnonzero(noisy_labels(LABELS, 5, f) != LABELS)) for f in (0.1, 0.2, 0.6)]
    assert wrong[0] < wrong[1] < wrong[2]


@pytest.mark.parametrize("method", ["normal", "seal", "ban"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_seed_and_method_trains_on_the_same_images_and_labels(method: str, seed: int) -> None:
    data = {"path": "unused", "per_class": 8, "label_noise": 0.3}
    recipe = tiny_recipe(method, seed=seed, data=data)
    run = Run(recipe, tiny_images(), None, World(), Placement())
    clean = np.arange(30) % 3
    assert run.indices.tolist() == training_indices(clean, 8).tolist()
    assert run.labels.tolist() == noisy_labels(clean, 3, 0.3).tolist()
    assert int((run.labels != clean).sum()) == 9
    assert run.validation.truth.tolist() == (np.arange(17) % 3).tolist()  # validation stays true


def test_a_subset_smaller_than_a_batch_is_a_config_error() -> None:
    recipe = tiny_recipe(data={"path": "unused", "per_class": 3})
    with pytest.raises(ConfigError, match=r"recipe\.batch_size: 12 images, but the training set has only 9"):
        Run(recipe, tiny_images(), None, World(), Placement())
