"""Linear probes: multinomial logistic regression on frozen features, and how its weight decay is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from seal_ray.analysis.logistic import MAX_ITERATIONS, minimise
from seal_ray.errors import ConfigError, DataError
from seal_ray.metrics import per_class_accuracy
from seal_ray.streams import stream

DECAYS = tuple(10 ** (exponent / 2) for exponent in range(-10, 2))
"""The default grid of weight decays, 1e-5 to 3.2, two a decade."""

TOLERANCE = 1e-6
"""The share of the objective that may be left to gain, by the Hessian at zero weights."""

JITTER = 1e-5
"""Relative: above the rounding of a float32 Gram matrix, too little to slow the solver."""

LOGITS = 1 << 25
"""Logits of a grid that are held at a time: larger grids are solved in several parts."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A classifier argmax(weight x + bias): weight (classes, F), bias (classes,); how it was found.

    objective: its value in nats. gradient_norm: sqrt(g' H^-1 g) of the gradient g, in sqrt(nats), where H
    is the objective's Hessian at zero weights.
    """

    weight: Tensor
    bias: Tensor
    objective: float
    iterations: int
    gradient_norm: float

    def predict(self, features: Tensor) -> Tensor:
        """The class of each row of features (N, F), int64 (N,)."""
        return torch.addmm(self.bias, features, self.weight.T).argmax(dim=1)


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Accuracies, 0 to 1, of a probe on the test set, and what was chosen on the way.

    per_class: float64 (classes,), nan for a class without test images. holdout: accuracy on the held-out
    part by weight decay, ascending. iterations: of the last fit. train_size: images it was fitted to.
    """

    top1: float
    per_class: Tensor
    weight_decay: float
    holdout: dict[float, float]
    iterations: int
    train_size: int


def probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    seed: int,
    grid: Sequence[float] = DECAYS,
    holdout: float = 0.2,
    fraction: float = 1.0,
    tolerance: float = TOLERANCE,
) -> ProbeResult:
    """Accuracy on the test set of a linear probe fitted to the train set.

    Features (N, F) have each column's mean over the train set subtracted and are divided by its standard
    deviation; columns that are constant there count for nothing. Every decay of `grid` is fitted to all but
    a share `holdout` of each class; the one most accurate on that share (of equals the larger) is then
    fitted to the whole train set. With a `fraction` below 1 the train set is that share of each class, at
    least 2 images. Both shares are drawn from the seed and the labels alone.
    Raises ConfigError for a share or a decay outside its range; DataError as `fit_probe` does and for a class
    with a single train image.
    """
    if not 0 < holdout < 1 or not 0 < fraction <= 1:
        raise ConfigError(
            f"holdout: {holdout}, fraction: {fraction}; give 0 < holdout < 1, 0 < fraction <= 1"
        )
    _check(train_features, train_labels, classes, each=2, what="train")
    _check(test_features, test_labels, classes, each=0, what="test")
    if fraction < 1:
        kept = training_share(train_labels, fraction, seed)
        train_features, train_labels = train_features[kept], train_labels[kept]
    center, scale = standardisation(train_features)
    train, test = ((features - center) * scale for features in (train_features, test_features))
    generator = stream(seed, "probe holdout")
    held = share_of_each_class(train_labels, holdout, at_least=1, stay=1, generator=generator)
    fitted = torch.ones_like(train_labels, dtype=torch.bool).index_fill_(0, held, False)
    decays = sorted(grid)
    models = fit_grid(
        train[fitted], train_labels[fitted], classes=classes, weight_decays=decays, tolerance=tolerance
    )
    accuracies = [_accuracy(model.predict(train[held]), train_labels[held]) for model in models]
    _, best = max(zip(accuracies, decays, strict=True))
    model = fit_probe(train, train_labels, classes=classes, weight_decay=best, tolerance=tolerance)
    predictions = model.predict(test)
    return ProbeResult(
        top1=_accuracy(predictions, test_labels),
        per_class=per_class_accuracy(predictions, test_labels, classes),
        weight_decay=best,
        holdout=dict(zip(decays, accuracies, strict=True)),
        iterations=model.iterations,
        train_size=len(train_labels),
    )


def fit_probe(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    weight_decay: float,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Linear:
    """Multinomial logistic regression: the one minimum of mean cross entropy + weight_decay/2 ||weight||^2.

    The bias is not penalised; its sum is 0. features: float32 (N, F), any scale; labels: int64 (N,).
    Deterministic. scikit-learn's C is 1 / (N weight_decay), for two classes 2 / (N weight_decay), as it
    penalises one difference of weights and not both weights. Solved by L-BFGS until half of gradient_norm's
    square, an estimate of what can still be gained, is at most tolerance x objective; warns
    (SealRayWarning) when it is not after max_iterations. Raises ConfigError unless weight_decay > 0 and
    classes > 1; DataError for features that are not finite, labels outside [0, classes) and a class without
    images.
    """
    (model,) = fit_grid(
        features,
        labels,
        classes=classes,
        weight_decays=(weight_decay,),
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return model


def fit_grid(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    weight_decays: Sequence[float],
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Linear, ...]:
    """`fit_probe` at every weight decay at once, in their order: one pass over the features serves all.

    Memory: a copy of the features, about five times N x classes x (decays in flight) and a matrix (F, F) a
    decay.
    """
    if not weight_decays or min(weight_decays) <= 0:
        raise ConfigError(f"weight decays {list(weight_decays)}: give at least one, all above 0")
    if classes < 2:
        raise ConfigError(f"classes: {classes}; a probe tells 2 or more apart")
    _check(features, labels, classes, each=1, what="train")
    center = features.mean(dim=0)
    # Centred features and ones, so that at zero weights the bias is independent of all else.
    rows = F.pad(features - center, (0, 1), value=1.0)
    gram = rows.T @ rows
    targets = F.one_hot(labels, classes).T.float().contiguous()[None]
    found = [
        minimise(_Shared.of(rows, gram, targets, decays), tolerance, max_iterations)
        for decays in torch.tensor(weight_decays).split(max(1, LOGITS // targets.numel()))
    ]
    return tuple(
        Linear(
            weight=weights[:, :-1].clone(),
            bias=weights[:, -1] - weights[:, :-1] @ center,
            objective=float(objective),
            iterations=int(iterations),
            gradient_norm=float(norm),
        )
        for some in found
        for weights, objective, iterations, norm in zip(
            some.weights, some.objective, some.iterations, some.gradient_norm, strict=True
        )
    )


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each column of features (N, F); 0 for a constant column."""
    deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
    varies = deviation > 10 * torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), torch.where(varies, 1 / deviation, 0).float()


def training_share(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Ascending indices of the train images that a `fraction` leaves: a share of each class, at least 2."""
    generator = stream(seed, "probe fraction")
    return share_of_each_class(labels, fraction, at_least=2, stay=0, generator=generator)


def share_of_each_class(
    labels: Tensor, share: float, *, at_least: int, stay: int, generator: torch.Generator
) -> Tensor:
    """Ascending indices of a share of every class's examples, to the nearest number.

    At least `at_least` of each and all but `stay` at most. labels: (N,), any that occur are classes.
    """
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    by_class = labels[shuffled].sort(stable=True)
    _, members, counts = by_class.values.unique_consecutive(return_inverse=True, return_counts=True)
    taken = (share * counts + 0.5).long().clamp_min(at_least).minimum(counts - stay)
    turns = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[members]
    return shuffled[by_class.indices[turns < taken[members]]].sort().values


def _check(features: Tensor, labels: Tensor, classes: int, *, each: int, what: str) -> None:
    """DataError unless the labels name classes and there are `each` finite rows of every class."""
    if len(features) != len(labels) or not len(labels):
        raise DataError(
            f"{len(features)} rows of {what} features for {len(labels)} labels; give one for each"
        )
    if not features.mean(dim=0).isfinite().all():  # a tenth of the time of looking at each number
        raise DataError(f"the {what} features are not all finite; the network has diverged")
    if labels.min() < 0 or labels.max() >= classes:
        outside = labels[(labels < 0) | (labels >= classes)][0]
        raise DataError(f"label {outside} among the {what} labels, but there are {classes} classes")
    counts = torch.bincount(labels, minlength=classes)
    if (least := int(counts.min())) < each:
        raise DataError(
            f"class {int(counts.argmin())} has {least} {what} images, but each class needs {each} or more"
        )


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return (predictions == labels).double().mean().item()


@dataclass(frozen=True, eq=False)
class _Shared:
    """The same examples in every problem: rows (N, F + 1), ones last. Weights are held as they are.

    H is X'X / (N classes) + decay, for the bias without decay. factors: its Cholesky factors.
    """

    rows: Tensor
    targets: Tensor  # (1, classes, N)
    decay: Tensor  # (B,)
    penalty: Tensor  # (B, 1, F + 1), the decay of each column: 0 for the bias
    factors: Tensor  # (B, F + 1, F + 1)

    @classmethod
    def of(cls, rows: Tensor, gram: Tensor, targets: Tensor, decay: Tensor) -> _Shared:
        hessian = gram.double() / targets.numel()
        hessian.diagonal().mul_(1 + JITTER)
        decay = decay.to(rows)
        penalty = F.pad(decay[:, None].expand(-1, len(gram) - 1), (0, 1))
        factors = [torch.linalg.cholesky(hessian + each.double().diag()).float() for each in penalty]
        return cls(rows, targets, decay, penalty[:, None], torch.stack(factors))

    @property
    def size(self) -> int:
        return self.rows.shape[1] - 1

    def origin(self) -> Tensor:
        return self.rows.new_zeros(len(self.decay), self.targets.shape[1], self.rows.shape[1])

    def logits(self, weights: Tensor) -> Tensor:
        return (weights.flatten(0, 1) @ self.rows.T).view(*weights.shape[:2], -1)

    def gradient(self, residual: Tensor, weights: Tensor) -> Tensor:
        by_weights = (residual.flatten(0, 1) @ self.rows).view(*residual.shape[:2], -1)
        return torch.addcmul(by_weights, self.penalty, weights)

    def precondition(self, gradient: Tensor) -> Tensor:
        solved: Tensor = torch.cholesky_solve(gradient.mT, self.factors).mT
        return solved

    def select(self, kept: Tensor) -> _Shared:
        return replace(self, decay=self.decay[kept], penalty=self.penalty[kept], factors=self.factors[kept])
