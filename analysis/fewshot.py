"""Few-shot episodes: which images are support and queries, and heads on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from seal_ray.analysis.logistic import MAX_ITERATIONS, minimise
from seal_ray.errors import ConfigError, DataError
from seal_ray.streams import stream


@dataclass(frozen=True, eq=False)
class Episodes:
    """Indices of images, int64: support (count, ways, shots) and query (count, ways, queries).

    classes: (count, ways), the labels. Within an episode all images are distinct, and all classes.
    """

    classes: Tensor
    support: Tensor
    query: Tensor


def episodes(
    labels: Tensor, *, seed: int, shots: int, count: int = 600, ways: int = 5, queries: int = 15
) -> Episodes:
    """`count` episodes of `ways` classes, `shots` support images and `queries` queries of each.

    A pure function of the seed and labels (N,), whatever else is drawn: every network and method is asked
    the same. Classes are uniform among those that occur, images within their class. Episode i depends
    neither on count nor, but for its support's size, on shots: more episodes begin with the fewer, and
    with more shots the queries stay and the support grows. Defaults: Guo et al., ECCV 2020, arXiv 1912.07200.
    Raises DataError when there are fewer classes than ways, or fewer images of one than shots + queries.
    """
    if min(shots, queries, ways - 1, count - 1) < 1:
        raise ConfigError(
            f"shots: {shots}, queries: {queries}, ways: {ways}, count: {count}; "
            "give at least 1 shot, 1 query, 2 ways and 2 episodes"
        )
    known, sizes = labels.unique(return_counts=True)
    if len(known) < ways:
        raise DataError(f"ways: {ways}, but there are only {len(known)} classes; lower ways")
    if (least := int(sizes.min())) < shots + queries:
        raise DataError(
            f"class {known[sizes.argmin()]} has {least} images, but {shots} shots and {queries} queries need "
            f"{shots + queries}; lower shots or queries, or leave the class out"
        )
    by_class = labels.argsort(stable=True).split(sizes.tolist())
    classes = torch.empty(count, ways, dtype=torch.int64)
    images = torch.empty(count, ways, queries + shots, dtype=torch.int64)
    for episode in range(count):
        generator = stream(seed, "episode", episode)
        classes[episode] = torch.randperm(len(known), generator=generator)[:ways]
        for way, number in enumerate(classes[episode].tolist()):
            drawn = torch.randperm(len(by_class[number]), generator=generator)[: queries + shots]
            images[episode, way] = by_class[number][drawn]
    return Episodes(known[classes], images[..., queries:], images[..., :queries])


CLOSE = 32 * torch.finfo(torch.float32).eps
"""Differences of squared distances, relative to the longest feature's square, that float64 has to judge."""

WORKING_SET = 1 << 24
"""Bytes of the episodes that are solved together: enough to hide the cost of a call, few enough to cache."""


@dataclass(frozen=True, eq=False)
class EpisodeScores:
    """Accuracies, 0 to 1, float64 (count,), of the queries of each episode; their mean and its interval.

    half_width: 1.96 standard deviations (n - 1) / sqrt(n).
    """

    mean: float
    half_width: float
    accuracies: Tensor


def score_episodes(
    features: Tensor,
    episodes: Episodes,
    *,
    head: Literal["logistic", "prototype"] = "logistic",
    weight_decay: float = 0.01,
    tolerance: float = 1e-4,
    max_iterations: int = MAX_ITERATIONS,
) -> EpisodeScores:
    """How well a head fitted to each episode's support classifies its queries.

    features: float32 (N, F) of the images that the episodes draw from; `unit_length` makes weight_decay
    mean the same for all networks. logistic: the minimum of mean cross entropy + weight_decay / 2
    ||weight||^2 on the support, the bias free; scikit-learn's C is 1 / (ways shots weight_decay).
    prototype: the nearest mean of a class, Euclidean, the first of equals; it has no weight_decay.
    Episodes are solved in chunks of bounded memory. Deterministic. Raises DataError for features that are
    not finite, ConfigError unless weight_decay > 0; warns (SealRayWarning) when `minimise` does not converge.
    """
    if weight_decay <= 0:
        raise ConfigError(f"weight_decay: {weight_decay}; give a number above 0")
    if not features.isfinite().all():
        raise DataError("the features are not all finite; the network has diverged")
    count, ways, shots = episodes.support.shape
    examples = ways * (shots + episodes.query.shape[2])
    size = max(1, WORKING_SET // (4 * examples * (features.shape[1] + 2 * ways * shots)))
    close = CLOSE * features.square().sum(dim=1).amax()
    truth = torch.arange(ways, device=features.device)[:, None]
    accuracies = []
    chunks = (images.to(features.device).split(size) for images in (episodes.support, episodes.query))
    for support, query in zip(*chunks, strict=True):
        if head == "prototype":
            guesses = _nearest_prototype(features, support, query, close)
        else:
            guesses = _logistic(features, support, query, weight_decay, tolerance, max_iterations)
        accuracies.append((guesses == truth).double().mean(dim=(1, 2)))
    found = torch.cat(accuracies)
    return EpisodeScores(found.mean().item(), 1.96 * found.std().item() / count**0.5, found)


def unit_length(features: Tensor) -> Tensor:
    """Each row of features (N, F) divided by its length, 0 where it is 0.

    Source: Tian et al., ECCV 2020, arXiv 2003.11539, section 3.2 (with logistic regression at C = 1).
    """
    normalised: Tensor = F.normalize(features, dim=1)
    return normalised


def _nearest_prototype(features: Tensor, support: Tensor, query: Tensor, close: Tensor) -> Tensor:
    """Ways (B, ways, queries) whose mean is nearest to each query; `close` calls are made in float64."""
    means = F.embedding_bag(support.flatten(0, 1), features, mode="mean").unflatten(0, support.shape[:2])
    queries = _rows(features, query.flatten(1))
    # Minus half the squared distance, less the query's own square.
    scores = torch.baddbmm(means.square().sum(dim=2, keepdim=True), means, queries.mT, beta=-0.5)
    best, guesses = scores.max(dim=1)
    second = scores.scatter_(1, guesses[:, None], -torch.inf).amax(dim=1)
    episode, which = (best - second <= close).nonzero(as_tuple=True)
    doubtful, place = episode.unique(return_inverse=True)
    exact = torch.stack(
        [_rows(features, way[doubtful]).double().mean(dim=1) for way in support.unbind(dim=1)], dim=1
    )
    for start in range(0, len(episode), len(queries)):
        some = slice(start, start + len(queries))
        offsets = queries[episode[some], which[some]].double()[:, None] - exact[place[some]]
        guesses[episode[some], which[some]] = offsets.square().sum(dim=2).argmin(dim=1)
    return guesses.view_as(query)


def _rows(features: Tensor, indices: Tensor) -> Tensor:
    """(..., F) of indices (...,): features[indices], in a fifth of the time."""
    return features.index_select(0, indices.flatten()).view(*indices.shape, features.shape[1])


def _logistic(
    features: Tensor,
    support: Tensor,
    query: Tensor,
    weight_decay: float,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Ways (B, ways, queries) that the logistic heads take each query for."""
    episodes, ways, shots = support.shape
    rows = _rows(features, support.flatten(1))
    center = rows.mean(dim=1, keepdim=True)
    rows -= center
    targets = torch.eye(ways, dtype=torch.float64, device=rows.device).repeat_interleave(shots, dim=1)
    decay = targets.new_full((episodes,), weight_decay)
    space = _Span(targets.expand(episodes, -1, -1), decay, rows @ rows.mT)
    weights = minimise(space, tolerance, max_iterations).weights.to(rows)
    weight = weights[..., : ways * shots] @ rows
    bias = weights[..., -1:] - weight @ center.mT
    logits = torch.baddbmm(bias, weight, _rows(features, query.flatten(1)).mT)
    return logits.argmax(dim=1).view_as(query)


@dataclass(frozen=True, eq=False)
class _Span:
    """Weights in the span of the support: W = A X for rows X (B, N, F), held as (A, bias, A K, bias).

    K = X X' (B, N, N). The gradient by W is G X with G = residual + decay A, and is held as (G, its bias).
    H is the decay alone, of which g' H^-1 g / 2 bounds what can be gained. Nothing else would do: where K
    is singular, G is whatever it is, and a multiple of any larger inverse makes A grow without bounds.
    All but K in float64, as G is a small difference.
    """

    targets: Tensor
    decay: Tensor
    gram: Tensor

    @property
    def size(self) -> int:
        return self.gram.shape[1]

    def origin(self) -> Tensor:
        return self.targets.new_zeros(*self.targets.shape[:2], 2 * self.size + 2)

    def logits(self, weights: Tensor) -> Tensor:
        return weights[..., -self.size - 1 : -1] + weights[..., -1:]

    def gradient(self, residual: Tensor, weights: Tensor) -> Tensor:
        given = torch.addcmul(residual, self.decay[:, None, None], weights[..., : self.size])
        # X is centred: a constant in G is nothing, and would only lose digits.
        given -= given.mean(dim=2, keepdim=True)
        return torch.cat([given, residual.sum(dim=2, keepdim=True)], dim=2)

    def precondition(self, gradient: Tensor) -> Tensor:
        bias = gradient.shape[1] * gradient[..., -1:]
        steep = gradient[..., :-1] / self.decay[:, None, None]
        images = (steep.to(self.gram) @ self.gram).to(steep)
        return torch.cat([steep, bias, images, bias], dim=2)

    def select(self, kept: Tensor) -> _Span:
        return _Span(self.targets[kept], self.decay[kept], self.gram[kept])
