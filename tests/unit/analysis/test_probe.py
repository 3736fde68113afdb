"""The linear probe against scikit-learn's LogisticRegression, and its protocol against its own words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from seal_ray.analysis import probe as module
from seal_ray.analysis.probe import Linear, fit_grid, fit_probe, probe, share_of_each_class, standardisation
from seal_ray.errors import ConfigError, DataError, SealRayWarning
from tests.unit.analysis.test_heads import mixture

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def objective(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, decay: float) -> float:
    logits = features.double() @ weight.double().T + bias.double()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss + decay / 2 * weight.double().square().sum())


def by_scikit_learn(features: Tensor, labels: Tensor, decay: float) -> LogisticRegression:
    head = LogisticRegression(C=1 / (len(labels) * decay), tol=1e-7, max_iter=20_000)
    return head.fit(features.double().numpy(), labels.numpy())


def standardised(features: Tensor) -> Tensor:
    center, scale = standardisation(features)
    return (features - center) * scale


@pytest.mark.parametrize("apart", [0.2, 0.5, 1.5])
def test_accuracy_and_objective_of_scikit_learn(apart: float) -> None:
    """From classes that overlap to classes that a plane separates."""
    features, labels = mixture(3000, 40, 5, apart=apart)
    features = standardised(features)
    train, test = slice(0, 1000), slice(1000, None)
    models = fit_grid(features[train], labels[train], classes=5, weight_decays=DECAYS)
    for decay, model in zip(DECAYS, models, strict=True):
        theirs = by_scikit_learn(features[train], labels[train], decay)
        expected = objective(
            features[train], labels[train], torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_), decay
        )
        found = objective(features[train], labels[train], model.weight, model.bias, decay)
        assert found == pytest.approx(expected, rel=1e-3)
        assert model.objective == pytest.approx(found, rel=1e-4)
        ours = (model.predict(features[test]) == labels[test]).double().mean()
        assert ours == pytest.approx(theirs.score(features[test], labels[test]), abs=0.002)


def test_the_gradient_vanishes() -> None:
    features, labels = mixture(800, 30, 4, apart=0.5)
    model = fit_probe(standardised(features), labels, classes=4, weight_decay=0.01, tolerance=1e-9)
    weight, bias = (t.double().requires_grad_() for t in (model.weight, model.bias))
    logits = standardised(features).double() @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, labels) + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-5
    assert model.gradient_norm < 1e-4


def test_two_classes() -> None:
    features, labels = mixture(500, 10, 2, apart=0.5)
    features = standardised(features)
    model = fit_probe(features, labels, classes=2, weight_decay=0.01, tolerance=1e-9)
    theirs = by_scikit_learn(features, labels, 0.005)
    assert np.allclose(model.weight[1] - model.weight[0], theirs.coef_[0], atol=1e-3)
    assert model.bias.sum() == pytest.approx(0, abs=1e-5)


def test_a_grid_is_its_members() -> None:
    features, labels = mixture(400, 30, 4)
    together = fit_grid(standardised(features), labels, classes=4, weight_decays=DECAYS)
    for decay, model in zip(DECAYS, together, strict=True):
        alone = fit_probe(standardised(features), labels, classes=4, weight_decay=decay)
        assert model.objective == pytest.approx(alone.objective, rel=1e-5)


def test_a_grid_solved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = mixture(400, 30, 4)
    whole = fit_grid(standardised(features), labels, classes=4, weight_decays=DECAYS)
    monkeypatch.setattr(module, "LOGITS", 2 * 4 * 400)
    parts = fit_grid(standardised(features), labels, classes=4, weight_decays=DECAYS)
    assert [m.objective for m in parts] == pytest.approx([m.objective for m in whole], rel=1e-5)


def test_fewer_images_than_features() -> None:
    features, labels = mixture(60, 200, 3)
    features = standardised(features)
    model = fit_probe(features, labels, classes=3, weight_decay=0.01)
    theirs = by_scikit_learn(features, labels, 0.01)
    expected = objective(features, labels, torch.tensor(theirs.coef_), torch.tensor(theirs.intercept_), 0.01)
    assert objective(features, labels, model.weight, model.bias, 0.01) == pytest.approx(expected, rel=1e-3)


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 12), st.sampled_from([1e-3, 0.03, 1.0]))
@settings(max_examples=25)
def test_scales_and_constant_columns(seed: int, classes: int, width: int, decay: float) -> None:
    """Raw features over ten orders of magnitude, some columns constant."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = mixture(20 * classes, width, classes, seed=seed)
    features *= 10 ** (8 * torch.rand(width, generator=generator) - 5)
    features[:, torch.rand(width, generator=generator) < 0.3] = 3.0
    model = fit_probe(features, labels, classes=classes, weight_decay=decay, max_iterations=2000)
    assert model.weight.isfinite().all()
    found = objective(features, labels, model.weight, model.bias, decay)
    # The gradient, in units of each column's own curvature, is next to nothing.
    weight, bias = (t.double().requires_grad_() for t in (model.weight, model.bias))
    logits = features.double() @ weight.T + bias
    (torch.nn.functional.cross_entropy(logits, labels) + decay / 2 * weight.square().sum()).backward()
    assert weight.grad is not None
    curvature = features.double().square().mean(dim=0) / 2 + decay
    assert float((weight.grad.square() / curvature).sum()) < 0.02 * found


def test_standardisation_ignores_constants() -> None:
    features = torch.tensor([[1e6, 1.0, 0.0, 1e-8], [1e6, 3.0, 0.0, 3e-8]])
    center, scale = standardisation(features)
    expected = torch.tensor([[0.0, -1.0, 0.0, -1.0], [0.0, 1.0, 0.0, 1.0]])
    assert torch.allclose((features - center) * scale, expected, atol=1e-5)
    features, _ = mixture(200, 8, 2)
    assert np.allclose(standardised(features), StandardScaler().fit_transform(features.double()), atol=1e-5)


def split(classes: int = 4, apart: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, labels = mixture(1200, 24, classes, apart=apart)
    return features[:400], labels[:400], features[400:], labels[400:]


def test_the_protocol_step_by_step() -> None:
    train, labels, test, truth = split()
    found = probe(train, labels, test, truth, classes=4, seed=5, grid=DECAYS)
    scaler = StandardScaler().fit(train.double())
    seen, asked = (torch.tensor(scaler.transform(t.double())).float() for t in (train, test))
    assert list(found.holdout) == sorted(DECAYS)
    best = max(found.holdout.values())
    assert found.weight_decay == max(d for d, accuracy in found.holdout.items() if accuracy == best)
    theirs = by_scikit_learn(seen, labels, found.weight_decay)
    assert found.top1 == pytest.approx(theirs.score(asked, truth), abs=0.002)
    predicted = torch.tensor(theirs.predict(asked))
    for number in range(4):
        expected = (predicted[truth == number] == number).double().mean()
        assert float(found.per_class[number]) == pytest.approx(float(expected), abs=0.01)
    assert found.train_size == 400
    # 80 held-out images, 20 of a class.
    assert all((80 * accuracy) == pytest.approx(round(80 * accuracy)) for accuracy in found.holdout.values())


def test_equals_go_to_the_larger_decay() -> None:
    train, labels, test, truth = split(apart=20)
    found = probe(train, labels, test, truth, classes=4, seed=0, grid=(0.01, 0.1, 0.001))
    assert set(found.holdout.values()) == {1.0}
    assert found.weight_decay == 0.1


def test_a_fraction_of_the_train_set() -> None:
    train, labels, test, truth = split()
    whole, tenth, again = (
        probe(train, labels, test, truth, classes=4, seed=1, fraction=fraction) for fraction in (1, 0.1, 0.1)
    )
    assert tenth.train_size == 40
    assert tenth.top1 < whole.top1
    assert tenth.holdout == again.holdout
    assert torch.equal(tenth.per_class, again.per_class)
    assert probe(train, labels, test, truth, classes=4, seed=1, fraction=1e-6).train_size == 8


@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.floats(0.01, 0.99), st.integers(0, 99))
@settings(max_examples=60)
def test_a_share_is_taken_of_every_class(sizes: list[int], share: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    taken = share_of_each_class(
        labels, share, at_least=1, stay=1, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(taken, taken.unique())
    for number, size in enumerate(sizes):
        count = int((labels[taken] == number).sum())
        assert 1 <= count <= size - 1
        assert abs(count - share * size) <= 1


def test_two_calls_agree_bit_for_bit() -> None:
    features, labels = mixture(400, 30, 4)
    first, second = (fit_grid(features, labels, classes=4, weight_decays=DECAYS) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)
    train, labels, test, truth = split()
    state = torch.get_rng_state()
    once = probe(train, labels, test, truth, classes=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    twice = probe(train, labels, test, truth, classes=4, seed=3)
    assert once.holdout == twice.holdout
    assert torch.equal(once.per_class, twice.per_class)


def test_what_is_left_unfinished_is_said() -> None:
    features, labels = mixture(400, 30, 4)
    with pytest.warns(SealRayWarning, match="2 of 2 logistic regressions did not converge"):
        fit_grid(features, labels, classes=4, weight_decays=(1e-3, 1e-4), max_iterations=2)


def test_wrong_data() -> None:
    train, labels, test, truth = split()
    with pytest.raises(DataError, match="class 3 has 0 train images"):
        fit_probe(train[labels < 3], labels[labels < 3], classes=4, weight_decay=0.1)
    with pytest.raises(DataError, match="class 4 has 0 train images"):
        probe(train, labels, test, truth, classes=5, seed=0)
    with pytest.raises(DataError, match="class 1 has 1 train images, but each class needs 2"):
        single = torch.tensor([0, 0, 1, 2, 2, 3, 3])
        probe(train[:7], single, test, truth, classes=4, seed=0)
    with pytest.raises(DataError, match="label 3 among the test labels, but there are 3 classes"):
        probe(train[labels < 3], labels[labels < 3], test, truth, classes=3, seed=0)
    with pytest.raises(DataError, match="400 rows of train features for 399 labels"):
        fit_probe(train, labels[1:], classes=4, weight_decay=0.1)
    broken = train.clone()
    broken[3, 3] = torch.inf
    with pytest.raises(DataError, match="train features are not all finite"):
        fit_probe(broken, labels, classes=4, weight_decay=0.1)


@pytest.mark.parametrize("wrong", [{"holdout": 0.0}, {"holdout": 1.0}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_shares_outside_their_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        probe(*split(), classes=4, seed=0, **wrong)  # type: ignore[arg-type]


def test_decays_and_classes_outside_their_range() -> None:
    features, labels = mixture(40, 5, 2)
    for decays in ((), (0.1, 0.0), (-1.0,)):
        with pytest.raises(ConfigError, match="weight decays"):
            fit_grid(features, labels, classes=2, weight_decays=decays)
    with pytest.raises(ConfigError, match="classes: 1"):
        fit_probe(features, torch.zeros_like(labels), classes=1, weight_decay=0.1)


def test_a_class_without_test_images() -> None:
    train, labels, test, truth = split()
    found = probe(train, labels, test[truth > 0], truth[truth > 0], classes=4, seed=0)
    assert found.per_class.isnan().tolist() == [True, False, False, False]


def test_predictions() -> None:
    model = Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 0.5]), 0.0, 0, 0.0)
    assert model.predict(torch.tensor([[1.0, 0.0], [1.0, 0.6]])).tolist() == [0, 1]
