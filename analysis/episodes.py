"""Few-shot episodes: which images are support and which are queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
