"""Prediction depth against scikit-learn's brute force, and embedding images against a bare forward pass."""

from __future__ import annotations

import multiprocessing as mp
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from seal_ray.analysis.depth import prediction_depth
from seal_ray.analysis.features import extract, probes
from seal_ray.analysis.neighbours import nearest, vote
from seal_ray.data.augment import normalise
from tests.benchmarks.measure import Result, best_of
from tests.benchmarks.training import BenchData, open_run

POINTS, SUPPORT, CLASSES, K = 2_000, 10_000, 10, 30


def embeddings(features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points, support and its labels: overlapping clusters, one a class, of 32 dimensions and some noise."""
    generator = torch.Generator().manual_seed(features)
    labels = torch.randint(CLASSES, (POINTS + SUPPORT,), generator=generator)
    inner = torch.randn(CLASSES, 32, generator=generator)[labels]
    inner += torch.randn(inner.shape, generator=generator)
    spread = torch.randn(32, features, generator=generator)
    seen = (inner @ spread + torch.randn(len(labels), features, generator=generator)).relu_()
    return seen[:POINTS], seen[POINTS:], labels[POINTS:]


def depth(data: BenchData) -> Iterator[Result]:
    """All 11 probes of a ResNet-18 at 512 features, and one at 4096."""
    for count, features in ((11, 512), (1, 4096)):
        ours, theirs = _sides(count, features)
        with threadpool_limits(torch.get_num_threads()):
            mine, other = best_of(3, ours, theirs)
        yield Result(
            f"depth of {POINTS} points, support {SUPPORT}, {count} x {features} features, to scikit-learn",
            other / mine,
            at_least=1.3,
        )


def _sides(count: int, features: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The depths from `count` probes, ours and scikit-learn's."""
    points, support, labels = embeddings(features)
    predictions = torch.zeros(POINTS, dtype=torch.int64)

    def ours() -> torch.Tensor:
        asked = [vote(labels[nearest(points, support, K, ordered=False)], CLASSES) for _ in range(count)]
        return prediction_depth(torch.stack(asked), predictions)

    def theirs() -> torch.Tensor:
        probe = KNeighborsClassifier(K, algorithm="brute").fit(support.numpy(), labels.numpy())
        asked = [torch.from_numpy(probe.predict(points.numpy())) for _ in range(count)]
        return prediction_depth(torch.stack(asked), predictions)

    return ours, theirs


def memory(data: BenchData) -> Iterator[Result]:
    """In a process of its own, torch, points and support included."""
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    process = context.Process(target=_peak, args=(results,))
    process.start()
    peak = results.get(timeout=300)
    process.join()
    yield Result(f"peak memory for {POINTS} x {SUPPORT} x 4096", peak, "GiB", at_most=2)


def _peak(results: Any) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    points, support = (torch.randn(n, 4096, generator=generator) for n in (POINTS, SUPPORT))
    nearest(points, support, K)
    # Not getrusage's ru_maxrss, which a new process takes over from the one that started it.
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    results.put(int(peak) / 2**20)


def embedding(data: BenchData) -> Iterator[Result]:
    """Every probe and the penultimate layer at once."""
    for width in (64, 16):
        run = open_run(data, width)
        order = np.arange(len(run.validation.truth))
        batches = [
            normalise(pixels, run.images.mean, run.images.std, run.memory_format)
            for pixels in run.validation.loader.batches(order)
        ]
        network = run.network.eval()
        layers = (*probes(network), "penultimate")

        def bare(network: torch.nn.Module = network, batches: list[torch.Tensor] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    network(batch)

        mine, other = best_of(
            3,
            lambda network=network, batches=batches, layers=layers: extract(
                network, batches, layers, max_features=2048
            ),
            bare,
        )
        yield Result(
            f"embedding images at {len(layers)} places against a bare forward pass, width {width}",
            other / mine,
            at_least=0.9,
        )


BENCHMARKS = (depth, memory, embedding)
