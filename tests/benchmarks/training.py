"""The loaders, an epoch and an evaluation against their bare counterparts, in this process."""

from __future__ import annotations

import multiprocessing as mp
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from seal_ray.data.augment import normalise
from seal_ray.data.images import Images
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import Dataset
from seal_ray.data.sources import open_source
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.training.loop import Trained, evaluate, train_epoch
from seal_ray.training.optimizer import set_learning_rate
from seal_ray.training.run import EVALUATION_BATCH, Run
from seal_ray.training.step import training_step
from seal_ray.training.world import World
from tests.benchmarks.measure import Result, best_of

SIZE, CLASSES, EACH = 64, 4, 512
BATCH = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BenchData:
    """The same images as files in class folders and as a prepared data set."""

    folder: Path
    dataset: Dataset


def synthetic_images(folder: Path, each: int = EACH) -> BenchData:
    """Smooth random JPEG images of 64 px, as compressible as photographs; so many of a class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", each), ("val", each // 2)):
        for label in range(CLASSES):
            place = folder / "images" / split / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(
                    place / f"{i:04d}.JPEG", quality=90
                )
    images = folder / "images"
    source = open_source("folder", source=None, train=images / "train", val=images / "val", size=SIZE)
    return BenchData(images, prepare(source, folder / "prepared"))


def recipe(width: int, shards: int = 1) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"path": "unused"},
            "model": {"arch": "resnet18", "width": width},
            "method": "normal",
            "budget": {"epochs": 4, "generation_length": 4},
            "batch_size": BATCH,
            "shards": shards,
        }
    )


def open_run(data: BenchData, width: int, shards: int = 1, loader: Any = "ffcv") -> Run:
    images = Images.from_dataset(data.dataset, loader=loader)
    return Run(recipe(width, shards), images, None, World.current(), Placement())


def epochs_of(run: Run) -> Callable[..., Trained]:
    """`epoch(number)`: an epoch of the first phase as `fit` runs it."""
    ((_, phase),) = list(run.phases())[:1]
    run.first = 0
    optimizer = run.optimizer_for(phase)
    begin = training_step(run, optimizer, phase)
    set_learning_rate(optimizer, phase, 0.01, [], 0)
    return lambda number=1: train_epoch(run, optimizer, begin(), phase, Position(0, number))


def torchvision_loader(data: BenchData, workers: int, batch_size: int = BATCH) -> DataLoader[Any]:
    """The published code's pipeline: decode, random crop, flip, to tensor, normalise."""
    steps = [
        transforms.RandomCrop(SIZE, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    dataset = ImageFolder(str(data.folder / "train"), transforms.Compose(steps))
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )


def loading(data: BenchData) -> Iterator[Result]:
    images = Images.from_dataset(data.dataset, loader="ffcv")
    run = Run(recipe(16), images, None, World(), Placement())
    plain = torchvision_loader(data, 2)

    def ours() -> None:
        for _ in run.training_epoch(Position(0, 1)):
            pass

    def theirs() -> None:
        for _ in plain:
            pass

    mine, other = best_of(5, ours, theirs)
    yield Result(
        "FFCV, crop, flip, normalise against ImageFolder + DataLoader, 2 workers", other / mine, at_least=4
    )
    yield Result("  images/s of the FFCV path", CLASSES * EACH / mine / 1000, "thousand")


def bare_epoch(data: BenchData, width: int) -> Iterator[Result]:
    run = open_run(data, width)
    batches = [(x.clone(), y) for ((x, y, _),) in run.training_epoch(Position(0, 1))]
    network = open_run(data, width).network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def bare() -> None:
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x), y, label_smoothing=0.1).backward()
            optimizer.step()

    mine, other = best_of(3 if width == 64 else 5, epochs_of(run), bare)
    yield Result(
        f"an epoch against a bare loop over batches in memory, width {width}", other / mine, at_least=0.98
    )


def published_style(data: BenchData) -> Iterator[Result]:
    run = open_run(data, 64)
    network = resnet18(num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loaders = [torchvision_loader(data, workers) for workers in (0, 1, 2)]

    def published(loader: DataLoader[Any]) -> None:
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            total += loss.item()

    mine, *others = best_of(
        2, epochs_of(run), *(lambda loader=loader: published(loader) for loader in loaders)
    )
    yield Result(
        "an epoch against a loop in the published code's style, width 64", min(others) / mine, at_least=1
    )


def evaluation(data: BenchData) -> Iterator[Result]:
    for width in (64, 16):
        run = open_run(data, width)
        order = np.arange(len(run.validation.truth))
        batches = [
            normalise(pixels, run.images.mean, run.images.std, run.memory_format)
            for pixels in run.validation.loader.batches(order)
        ]
        assert len(batches[0]) == EVALUATION_BATCH
        network: nn.Module = run.network

        def bare(network: nn.Module = network, batches: list[torch.Tensor] = batches) -> None:
            network.eval()
            with torch.inference_mode():
                for batch in batches:
                    network(batch)

        mine, other = best_of(3, lambda run=run: evaluate(run), bare)
        yield Result(f"evaluation against a bare forward pass, width {width}", other / mine, at_least=0.97)


def workers(data: BenchData) -> Iterator[Result]:
    """Two gloo workers of one thread against one, on the same epochs of two shards."""
    for width, target in ((64, 1.6), (16, None)):
        one, two = (min(_epoch_seconds(data, width, count)) for count in (1, 2))
        yield Result(f"2 workers of 1 thread against 1 of 1, width {width}", one / two, at_least=target)


def _epoch_seconds(data: BenchData, width: int, count: int) -> list[float]:
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    rendezvous = data.folder / f"rendezvous-{width}-{count}-{time.monotonic_ns()}"
    processes = [
        context.Process(target=_worker, args=(data, width, rank, count, str(rendezvous), results))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        times: list[float] = results.get(timeout=300)
    except queue.Empty:
        raise RuntimeError("a benchmark worker died") from None
    for process in processes:
        process.join()
    return times


def _worker(data: BenchData, width: int, rank: int, count: int, rendezvous: str, results: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    run = open_run(data, width, shards=2)
    epoch, times = epochs_of(run), []
    for number in range(4):
        started = time.perf_counter()
        epoch(number)
        times.append(time.perf_counter() - started)
    if rank == 0:
        results.put(times[1:])
    dist.destroy_process_group()


BENCHMARKS = (
    loading,
    lambda data: bare_epoch(data, 64),
    lambda data: bare_epoch(data, 16),
    published_style,
    evaluation,
    workers,
)
