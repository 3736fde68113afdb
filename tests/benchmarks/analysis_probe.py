"""Linear probes and few-shot heads against loops over scikit-learn, and how far their results lie apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from threadpoolctl import threadpool_limits
from torch import Tensor

from seal_ray.analysis.fewshot import Episodes, episodes, score_episodes, unit_length
from seal_ray.analysis.probe import DECAYS, fit_grid, fit_probe, standardisation
from tests.benchmarks.measure import Result, best_of
from tests.benchmarks.training import BenchData

EXAMPLES, FEATURES, CLASSES = 10_000, 512, 10
WEIGHT_DECAY = 0.01


def embeddings(count: int, *, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Correlated, non-negative features of overlapping classes, as penultimate layers give them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    inner = apart * torch.randn(CLASSES, 48, generator=generator)[labels]
    inner += torch.randn(count, 48, generator=generator) * torch.arange(1, 49) ** -0.3
    seen = inner @ torch.randn(48, FEATURES, generator=generator) / 48**0.5
    seen += 0.15 * torch.randn(count, FEATURES, generator=generator) - 0.3
    return seen.relu_() * (0.5 * torch.randn(FEATURES, generator=generator)).exp(), labels


def linear_probe(data: BenchData) -> Iterator[Result]:
    """scikit-learn at its own tolerance; both minimise the same objective."""
    features, labels = embeddings(EXAMPLES, apart=0.15, seed=0)
    center, scale = standardisation(features)
    features = (features - center) * scale
    x, y = features.numpy(), labels.numpy()

    def theirs(weight_decay: float) -> LogisticRegression:
        return LogisticRegression(C=1 / (EXAMPLES * weight_decay), max_iter=5000).fit(x, y)

    what = f"{EXAMPLES} x {FEATURES} features, {CLASSES} classes"
    with threadpool_limits(torch.get_num_threads()):
        mine, other = best_of(
            5,
            lambda: fit_probe(features, labels, classes=CLASSES, weight_decay=WEIGHT_DECAY),
            lambda: theirs(WEIGHT_DECAY),
        )
        yield Result(f"logistic regression to scikit-learn, {what}", other / mine, at_least=1)
        mine, other = best_of(
            2,
            lambda: fit_grid(features, labels, classes=CLASSES, weight_decays=DECAYS),
            lambda: [theirs(weight_decay) for weight_decay in DECAYS],
        )
    yield Result(f"  {len(DECAYS)} weight decays together to scikit-learn's loop", other / mine, at_least=2)
    model, their = (
        fit_probe(features, labels, classes=CLASSES, weight_decay=WEIGHT_DECAY),
        theirs(WEIGHT_DECAY),
    )
    apart = abs(float((model.predict(features) == labels).double().mean()) - their.score(x, y))
    yield Result("  accuracies apart", 100 * apart, "points", at_most=0.2)


def few_shot(data: BenchData) -> Iterator[Result]:
    """600 five-way episodes on features of unit length."""
    features, labels = embeddings(6_000, apart=0.3, seed=1)
    features = unit_length(features)
    for shots in (5, 20, 50):
        drawn = episodes(labels, seed=0, shots=shots)
        c = 1 / (5 * shots * WEIGHT_DECAY)
        found: dict[str, np.ndarray] = {}

        def theirs(c: float = c, drawn: Episodes = drawn, found: dict[str, np.ndarray] = found) -> None:
            found["theirs"] = loop(LogisticRegression(C=c, max_iter=1000), features, drawn)

        with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
            # NearestCentroid says of columns that are zero throughout a class that they are.
            warnings.simplefilter("ignore", UserWarning)
            logistic, prototype, other, centroids = best_of(
                2,
                lambda drawn=drawn: score_episodes(features, drawn, weight_decay=WEIGHT_DECAY),
                lambda drawn=drawn: score_episodes(features, drawn, head="prototype"),
                theirs,
                lambda drawn=drawn: loop(NearestCentroid(), features, drawn),
            )
        apart = abs(score_episodes(features, drawn, weight_decay=WEIGHT_DECAY).mean - found["theirs"].mean())
        yield Result(
            f"600 logistic heads to scikit-learn's loop, {shots} shots",
            other / logistic,
            at_least=3 if shots >= 20 else None,
        )
        yield Result("  mean accuracies apart", 100 * apart, "points", at_most=0.3)
        yield Result("  prototype heads to the same loop", other / prototype, at_least=20)
        yield Result("  prototype heads to a loop of NearestCentroid", centroids / prototype)


def loop(head: LogisticRegression | NearestCentroid, features: Tensor, drawn: Episodes) -> np.ndarray:
    """Accuracies of a scikit-learn classifier, one episode after another."""
    x = features.numpy()
    ways, shots = drawn.support.shape[1:]
    known, asked = (np.repeat(np.arange(ways), n) for n in (shots, drawn.query.shape[2]))
    pairs = zip(drawn.support.flatten(1).numpy(), drawn.query.flatten(1).numpy(), strict=True)
    return np.array([(head.fit(x[s], known).predict(x[q]) == asked).mean() for s, q in pairs])


BENCHMARKS = (linear_probe, few_shot)
