"""Episodes: a pure function of the seed and the labels, without overlap, uniform."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from seal_ray.analysis.fewshot import episodes
from seal_ray.errors import ConfigError, DataError


def shuffled(*sizes: int, seed: int = 0) -> Tensor:
    """Labels of classes of these sizes, mixed."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@given(
    st.lists(st.integers(4, 9), min_size=2, max_size=7),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 9),
)
@settings(max_examples=40)
def test_images_of_an_episode_are_distinct_and_of_their_class(
    sizes: list[int], shots: int, queries: int, seed: int
) -> None:
    labels = shuffled(*sizes, seed=seed)
    drawn = episodes(labels, seed=seed, count=5, ways=2, shots=shots, queries=queries)
    assert drawn.support.shape == (5, 2, shots)
    assert drawn.query.shape == (5, 2, queries)
    for classes, support, query in zip(drawn.classes, drawn.support, drawn.query, strict=True):
        assert len(set(classes.tolist())) == 2
        images = torch.cat([support, query], dim=1)
        assert images.unique().numel() == images.numel()
        assert (labels[images] == classes[:, None]).all()


def test_seed_and_labels_alone_decide() -> None:
    labels = shuffled(30, 40, 35, 25, 50, 20)
    torch.manual_seed(1)
    first = episodes(labels, seed=7, shots=5, count=20)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = episodes(labels.clone(), seed=7, shots=5, count=20)
    assert torch.equal(torch.get_rng_state(), state)
    other = episodes(labels, seed=8, shots=5, count=20)
    for name in ("classes", "support", "query"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_more_episodes_and_more_shots_extend_the_fewer() -> None:
    labels = shuffled(*[40] * 8)
    few, many = (episodes(labels, seed=0, shots=5, count=count) for count in (10, 30))
    assert torch.equal(many.support[:10], few.support)
    larger = episodes(labels, seed=0, shots=20, count=10)
    assert torch.equal(larger.query, few.query)
    assert torch.equal(larger.support[..., :5], few.support)


def test_classes_and_images_are_uniform() -> None:
    sizes = (20, 30, 25, 40, 22, 35, 28)
    labels = shuffled(*sizes)
    drawn = episodes(labels, seed=3, shots=3, queries=4, ways=3, count=2000)
    assert chisquare(drawn.classes.flatten().bincount()).pvalue > 1e-3
    for images in (drawn.support, drawn.query):
        for number in range(len(sizes)):
            of_class = images[drawn.classes == number].flatten()
            counts = of_class.bincount(minlength=len(labels))[labels == number]
            assert chisquare(counts).pvalue > 1e-3 / len(sizes)
    # The first place among an episode's ways says nothing about the class either.
    assert chisquare(drawn.classes[:, 0].bincount()).pvalue > 1e-3


def test_labels_need_not_be_consecutive() -> None:
    labels = shuffled(9, 9, 9) * 10 + 5
    drawn = episodes(labels, seed=0, ways=3, shots=2, queries=3, count=4)
    assert set(drawn.classes.flatten().tolist()) == {5, 15, 25}
    assert (labels[drawn.query] == drawn.classes[..., None]).all()


def test_a_small_class_is_named() -> None:
    with pytest.raises(DataError, match=r"class 2 has 19 images, but 5 shots and 15 queries need 20"):
        episodes(shuffled(30, 30, 19, 30, 30), seed=0, shots=5)


def test_too_few_classes() -> None:
    with pytest.raises(DataError, match=r"ways: 5, but there are only 4 classes"):
        episodes(shuffled(30, 30, 30, 30), seed=0, shots=5)


@pytest.mark.parametrize("wrong", [{"shots": 0}, {"queries": 0}, {"ways": 1}, {"count": 1}])
def test_sizes_that_make_no_episodes(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        episodes(shuffled(30, 30, 30, 30, 30), seed=0, **({"shots": 5} | wrong))
