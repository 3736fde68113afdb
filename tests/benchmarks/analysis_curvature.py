"""Hessian-vector products against pyhessian's, and what Lanczos adds to its products."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from seal_ray.analysis.hessian import HessianOperator, hessian_operator
from seal_ray.analysis.lanczos import lanczos
from seal_ray.networks import build
from tests.benchmarks.measure import Result, best_of, seconds

IMAGES, SIZE, WIDTH, BATCH, CLASSES = 200, 64, 16, 100, 10
STEPS = 100


def problem(seed: int = 0) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A ResNet-18 of 0.7 M parameters in eval mode, and images in two batches."""
    generator = torch.Generator().manual_seed(seed)
    network = build("resnet18", classes=CLASSES, stem="imagenet", width=WIDTH, generator=generator).eval()
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    return network, list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def ours(network: nn.Module, batches: list[tuple[Tensor, Tensor]], graph_bytes: int) -> HessianOperator:
    parameters = list(network.parameters())
    return hessian_operator(network, batches, nn.CrossEntropyLoss(), parameters, graph_bytes=graph_bytes)


def theirs(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], vector: Tensor
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A product by pyhessian: of one batch whose graph is kept, and of a data loader."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of backward(create_graph=True)
        single = hessian(copy.deepcopy(network), nn.CrossEntropyLoss(), data=(images, labels), cuda=False)
        loader = hessian(copy.deepcopy(network), nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    pieces = vector.split([p.numel() for p in network.parameters()])
    shaped = [piece.view_as(p) for piece, p in zip(pieces, network.parameters(), strict=True)]
    return (
        lambda: hessian_vector_product(single.gradsH, single.params, shaped),
        lambda: loader.dataloader_hv_product(shaped),
    )


def products(data: object) -> Iterator[Result]:
    network, batches = problem()
    kept, anew = ours(network, batches, 8 << 30), ours(network, batches, 0)
    vectors = torch.randn(4, kept.dim, generator=torch.Generator().manual_seed(1))
    single, loader = theirs(network, batches, vectors[0])
    times = best_of(3, lambda: kept.matvec(vectors[0]), lambda: anew.matvec(vectors[0]), single, loader)
    yield Result(
        "a Hessian product, graphs kept, against pyhessian's better mode",
        min(times[2:]) / times[0],
        at_least=1,
    )
    yield Result("  graphs built anew, against pyhessian's data loader", times[3] / times[1], at_least=1)
    for name, operator in (("kept", kept), ("built anew", anew)):
        one_by_one, together = best_of(
            2, lambda o=operator: [o.matvec(v) for v in vectors], lambda o=operator: o.products(vectors)
        )
        yield Result(f"  4 vectors in one pass against 4 passes, graphs {name}", one_by_one / together)


def orthogonalisation(data: object) -> Iterator[Result]:
    network, batches = problem()
    operator = ours(network, batches, 8 << 30)
    start = torch.randn(1, operator.dim, generator=torch.Generator().manual_seed(1))

    def plain() -> None:
        for _ in range(STEPS):
            operator.products(start)

    operator.products(start)
    one, full = seconds(plain), seconds(lambda: lanczos(operator, start, STEPS))
    yield Result(f"{STEPS} steps of Lanczos against {STEPS} products", full / one, at_most=1.15)


BENCHMARKS = (products, orthogonalisation)
