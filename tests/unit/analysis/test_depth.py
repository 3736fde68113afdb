"""Prediction depth against brute force: NumPy in float64 everywhere, scikit-learn where nothing ties."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from seal_ray.analysis.depth import Depths, Examples, balanced_subset, measure_depth, prediction_depth
from seal_ray.analysis.features import extract, probes
from seal_ray.analysis.neighbours import nearest, vote
from seal_ray.errors import ConfigError, DataError
from seal_ray.networks import build
from seal_ray.streams import stream


def brute_force(queries: Tensor, support: Tensor, k: int, exclude: Tensor | None = None) -> np.ndarray:
    """One query at a time: float64 squared distances, ordered by (distance, index)."""
    q, s = (np.asarray(t, dtype=np.float64) for t in (queries, support))
    rows = []
    for i, point in enumerate(q):
        distances = ((s - point) ** 2).sum(axis=1)
        order = sorted(range(len(s)), key=lambda j: (distances[j], j))
        rows.append([j for j in order if exclude is None or j != exclude[i]][:k])
    return np.array(rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(*shape: int, seed: int, values: int = 3) -> Tensor:
    """Small whole numbers, so that distances are exact and many are equal."""
    return torch.randint(values, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("features", [1, 7, 300, 2000])
def test_neighbours_of_random_points(features: int) -> None:
    queries, support = normal(25, features), normal(400, features, seed=1)
    assert np.array_equal(nearest(queries, support, 30), brute_force(queries, support, 30))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("features", [1, 2, 5, 40])
def test_ties_go_to_the_smaller_index(features: int, seed: int) -> None:
    queries, support = grid(20, features, seed=seed), grid(150, features, seed=seed + 100)
    expected = brute_force(queries, support, 30)
    assert np.array_equal(nearest(queries, support, 30), expected)
    distances = torch.cdist(queries.double(), support.double()).sort(dim=1).values
    assert (distances[:, 29] == distances[:, 30]).any()  # or the test would test nothing


@given(st.data())
@settings(max_examples=150)
def test_neighbours_of_small_whole_numbers(data: st.DataObject) -> None:
    integers = st.integers(1, 12)
    queries, size, features = (data.draw(integers) for _ in range(3))
    size += 1
    seed = data.draw(st.integers(0, 2**31))
    exclude = None
    if data.draw(st.booleans()):
        exclude = torch.randint(-1, size, (queries,), generator=torch.Generator().manual_seed(seed))
    k = data.draw(st.integers(1, size - (exclude is not None)))
    points, support = grid(queries, features, seed=seed), grid(size, features, seed=seed + 1)
    found = nearest(points, support, k, exclude=exclude, chunk=data.draw(integers))
    expected = brute_force(points, support, k, exclude)
    assert np.array_equal(found, expected)
    unordered = nearest(points, support, k, exclude=exclude, ordered=False)
    assert np.array_equal(unordered.sort(dim=1).values, np.sort(expected, axis=1))


@pytest.mark.parametrize("exclude", [None, torch.arange(200) % 3 - 1])
@pytest.mark.parametrize("kind", [normal, partial(grid, seed=0), partial(grid, seed=0, values=40)])
@pytest.mark.parametrize("features", [1, 3, 20, 500])
def test_without_an_order_the_same_points(
    kind: Callable[..., Tensor], features: int, exclude: Tensor | None
) -> None:
    points = kind(1200, features)
    found = nearest(points[:200], points[200:], 30, exclude=exclude, ordered=False)
    expected = nearest(points[:200], points[200:], 30, exclude=exclude)
    assert torch.equal(found.sort(dim=1).values, expected.sort(dim=1).values)
    assert np.array_equal(expected[:20], brute_force(points[:20], points[200:], 30, exclude))


def test_rounding_in_float32_does_not_decide() -> None:
    # Points a millionth apart, a thousand from the origin and from one far point: float32 products alone
    # cannot tell their distances apart.
    support = 1000 + 1e-3 * normal(500, 50).round(decimals=1)
    support[17] = -1e6
    queries = support[18:58] + 1e-3 * normal(40, 50, seed=1)
    approximate = torch.cdist(queries, support, compute_mode="use_mm_for_euclid_dist")
    expected = brute_force(queries, support, 30)
    assert not np.array_equal(approximate.topk(30, largest=False).indices, expected)
    assert np.array_equal(nearest(queries, support, 30), expected)


@pytest.mark.parametrize(
    ("here", "there"),
    [(1e-42, 1e-42), (1e-30, 1e-30), (1e-18, 1e-18), (1e18, 1e18), (1e30, 1e30), (1e25, 1e18), (1.0, 1e-30)],
)
def test_sizes_whose_squares_float32_cannot_hold(here: float, there: float) -> None:
    queries, support = normal(10, 40) * here, normal(200, 40, seed=1) * there
    found = nearest(queries, support, 30)
    if here == there:
        assert np.array_equal(found, brute_force(queries, support, 30))
    # From far away float64 sums nearly tie, and the order in which they are summed decides: in distance only.
    distances = ((queries.double()[:, None] - support.double()) ** 2).sum(dim=2)
    expected = distances.gather(1, torch.from_numpy(brute_force(queries, support, 30)))
    torch.testing.assert_close(distances.gather(1, found), expected, rtol=1e-14, atol=0)


def test_a_process_that_allows_coarse_products_gets_exact_neighbours() -> None:
    queries, support = normal(30, 200), normal(1000, 200, seed=1)
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest(queries, support, 30)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(found, brute_force(queries, support, 30))


def test_a_support_of_equal_points_gives_the_first_ones() -> None:
    found = nearest(normal(3, 8), normal(1, 8, seed=1).expand(500, 8), 30)
    assert torch.equal(found, torch.arange(30).expand(3, 30))


def test_the_point_itself_is_left_out_but_not_its_duplicate() -> None:
    support = normal(100, 5)
    support[60] = support[10]
    found = nearest(support, support, 1, exclude=torch.arange(100))[:, 0]
    assert (found[10], found[60]) == (60, 10)
    assert not (found == torch.arange(100)).any()
    assert torch.equal(
        nearest(support, support, 1)[:, 0], torch.arange(100).where(support[:, 0] != support[10, 0], 10)
    )


@pytest.mark.parametrize("points", [normal(60, 33), grid(60, 4, seed=0)])
@pytest.mark.parametrize("chunk", [1, 7, 59, 1000])
def test_the_chunk_does_not_matter(points: Tensor, chunk: int) -> None:
    itself = torch.arange(60)
    whole = nearest(points, points, 30, exclude=itself)
    assert torch.equal(nearest(points, points, 30, exclude=itself, chunk=chunk), whole)


def test_more_neighbours_than_the_support_offers() -> None:
    points = normal(30, 4)
    assert np.array_equal(nearest(points, points, 30), brute_force(points, points, 30))
    with pytest.raises(ConfigError, match="31 neighbours, but the support offers 30 of its 30 points"):
        nearest(points, points, 31)
    with pytest.raises(ConfigError, match="30 neighbours, but the support offers 29 of its 30 points"):
        nearest(points, points, 30, exclude=torch.arange(30))


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=50)
def test_a_vote_goes_to_the_most_frequent_and_smallest_class(seed: int, k: int, classes: int) -> None:
    labels = torch.randint(classes, (20, k), generator=torch.Generator().manual_seed(seed))
    expected = [max(range(classes), key=lambda c: (row.count(c), -c)) for row in labels.tolist()]
    assert vote(labels, classes).tolist() == expected


def test_depth_by_hand() -> None:
    asked = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 1]])
    assert prediction_depth(asked, torch.ones(5, dtype=torch.int64)).tolist() == [0, 1, 2, 3, 2]


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=6))
def test_depth_by_its_definition(asked: list[list[int]]) -> None:
    predictions = [0, 1, 2, 0]
    expected = [
        min(d for d in range(len(asked) + 1) if all(row[i] == said for row in asked[d:]))
        for i, said in enumerate(predictions)
    ]
    assert prediction_depth(torch.tensor(asked), torch.tensor(predictions)).tolist() == expected


def test_a_balanced_subset() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 40 + [5] * 20)[
        torch.randperm(113, generator=stream(0, "x"))
    ]
    chosen = balanced_subset(labels, 30, seed=1)
    assert (chosen.diff() > 0).all()
    assert torch.bincount(labels[chosen]).tolist() == [9, 3, 9, 0, 0, 9]
    assert set(balanced_subset(labels, 20, seed=1).tolist()) < set(chosen.tolist())
    assert torch.equal(balanced_subset(labels, 30, seed=1), chosen)
    assert not torch.equal(balanced_subset(labels, 30, seed=2), chosen)
    assert torch.equal(balanced_subset(labels, 113, seed=1), torch.arange(113))
    with pytest.raises(ConfigError, match=r"a subset of 114 .* only 113 examples"):
        balanced_subset(labels, 114, seed=1)


def network() -> nn.Module:
    """A ResNet whose batch norms know their inputs, so that its layers differ as those of a trained one."""
    net = build("resnet18", classes=4, stem="cifar", width=4, generator=stream(0, "init"))
    net.train()
    with torch.no_grad():
        net(images(64, seed=9)[0])
    return net


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images around one of four patterns, and which."""
    labels = torch.arange(count) % 4
    return normal(4, 3, 16, 16)[labels] + 1.5 * normal(count, 3, 16, 16, seed=seed), labels


def by_scikit_learn(
    net: nn.Module, depths: Depths, train: tuple[Tensor, Tensor], new: Tensor | None
) -> list[int]:
    """Depths of the whole training set as its own support (new is None), or of new images."""
    names = probes(net)
    x, y = train
    known = extract(net, x.split(50), names, max_features=depths.max_features)
    asked = known if new is None else extract(net, new.split(50), names, max_features=depths.max_features)
    said = asked.logits.argmax(dim=1).numpy()
    agree = []
    for name in names:
        support, queries = known.layers[name].numpy(), asked.layers[name].numpy()
        if new is None and depths.exclude_self:
            votes = [
                KNeighborsClassifier(depths.k, algorithm="brute")
                .fit(np.delete(support, i, axis=0), np.delete(y.numpy(), i))
                .predict(queries[i : i + 1])[0]
                for i in range(len(queries))
            ]
        else:
            probe = KNeighborsClassifier(depths.k, algorithm="brute").fit(support, y.numpy())
            votes = probe.predict(queries)
        agree.append(np.asarray(votes) == said)
    return [
        min(d for d in range(len(names) + 1) if all(row[i] for row in agree[d:])) for i in range(len(said))
    ]


@pytest.mark.parametrize("exclude_self", [True, False])
def test_depths_are_those_of_scikit_learns_probes(exclude_self: bool) -> None:
    net, train, val = network(), images(64, seed=1), images(60, seed=2)
    depths = measure_depth(
        net,
        Examples.from_tensors(*train, batch_size=50),
        Examples.from_tensors(*val, batch_size=50),
        k=9,
        max_features=100,
        exclude_self=exclude_self,
    )
    assert depths.train.depths.tolist() == by_scikit_learn(net, depths, train, None)
    assert depths.val.depths.tolist() == by_scikit_learn(net, depths, train, val[0])
    assert len(depths.train.depths.unique()) > 3
    assert depths.probes == probes(net)


def test_leaving_the_point_out_matters() -> None:
    train, val = images(80, seed=1), images(8, seed=2)
    both = [
        measure_depth(
            network(),
            Examples.from_tensors(*train),
            Examples.from_tensors(*val),
            k=1,
            max_features=64,
            exclude_self=exclude,
        )
        for exclude in (True, False)
    ]
    assert not torch.equal(both[0].train.probe_predictions, both[1].train.probe_predictions)
    assert (both[1].train.probe_predictions == train[1]).all()  # each is its own nearest neighbour
    assert torch.equal(both[0].val.probe_predictions, both[1].val.probe_predictions)


def test_a_subset_as_support_and_points() -> None:
    net, train, val = network(), images(160, seed=1), images(60, seed=2)
    splits = Examples.from_tensors(*train), Examples.from_tensors(*val)
    depths = measure_depth(net, *splits, k=5, support_size=80, points=40, max_features=64, seed=3)
    assert depths.support_size == 80
    support = balanced_subset(train[1], 80, seed=3)
    alone = measure_depth(
        net,
        Examples.from_tensors(train[0][support], train[1][support]),
        splits[1],
        k=5,
        max_features=64,
    )
    for split, found, rows in (
        (train, depths.train, torch.searchsorted(support, depths.train.indices)),
        (val, depths.val, depths.val.indices),
    ):
        every = alone.train if found is depths.train else alone.val
        assert torch.bincount(found.labels).tolist() == [10, 10, 10, 10]
        assert torch.equal(found.labels, split[1][found.indices])
        assert torch.equal(found.depths, every.depths[rows])


def test_the_summary_counts_right_and_wrong_apart() -> None:
    splits = [Examples.from_tensors(*images(n, seed=n)) for n in (80, 30)]
    depths = measure_depth(network(), *splits, k=5, max_features=64)
    summary = json.loads(json.dumps(depths.summary(), allow_nan=False))
    assert (summary["k"], summary["max_features"], summary["exclude_self"]) == (5, 64, True)
    assert summary["shapes"]["layer4.1"] == [32, 1, 1]
    for name, points in (("train", depths.train), ("val", depths.val)):
        right = points.predictions == points.labels
        for group, chosen in (("all", right | ~right), ("correct", right), ("wrong", ~right)):
            found, expected = summary[name][group], points.depths[chosen].tolist()
            assert expected
            assert found["count"] == len(expected)
            assert found["mean"] == pytest.approx(np.mean(expected))
            assert found["histogram"] == [expected.count(d) for d in range(len(depths.probes) + 1)]


def test_what_cannot_be_measured_is_refused() -> None:
    net = network()
    splits = [Examples.from_tensors(*images(n, seed=n)) for n in (20, 10)]
    with pytest.raises(ConfigError, match=r"20 neighbours, but a support of 20 training images offers 19"):
        measure_depth(net, *splits, k=20)
    few = Examples.from_tensors(images(20, seed=0)[0], torch.arange(20))
    with pytest.raises(DataError, match="label 19 among the training images, but the network has 4 outputs"):
        measure_depth(net, few, splits[1], k=5)
    with torch.no_grad():
        net.layer3[0].bn1.weight.fill_(torch.inf)
    with pytest.raises(DataError, match=r"at 'layer3\.0' are not all finite"):
        measure_depth(net, *splits, k=5)
