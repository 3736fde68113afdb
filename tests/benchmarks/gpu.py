"""`make bench-gpu`: what a GPU makes of training, as one table, in ten minutes at most.

`make bench-gpu DATA=FOLDER` ends with two minutes of SEAL on a prepared data set. For what there is no time
or no means the table says that it was skipped, and why. `--device cpu --tiny` goes in seconds through all
that a CPU can do; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from rich import box
from rich.console import Console
from rich.table import Table

from seal_ray.data.images import Images
from seal_ray.data.prepared import load_dataset
from seal_ray.device import prepare_process, usable_cores
from seal_ray.errors import SealRayError
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement, Recipe
from seal_ray.runs.folder import open_store
from seal_ray.tracking.environment import git_commit
from seal_ray.training.loop import fit
from seal_ray.training.run import Run
from seal_ray.training.step import cuda_graph, is_captured
from seal_ray.training.world import World
from tests.benchmarks.measure import Result, Skipped, happened
from tests.benchmarks.training import BenchData, epochs_of, synthetic_images, torchvision_loader

LIMIT = 440.0
"""Seconds after which no part begins; the longest takes two minutes."""
PAPER_IMAGES = 160e6
"""Training images of the paper's run of ResNet-50: 10 generations of 160 epochs of 100,000."""

Line = Result | Skipped


@dataclass(frozen=True)
class Bench:
    """What is measured with. networks: architecture, fields, batch size; each: images of a class."""

    device: torch.device
    data: BenchData
    networks: tuple[tuple[str, dict[str, Any], int], ...]
    repeats: int
    packed: tuple[int, ...]
    seconds: float
    real: Path | None

    def recipe(self, network: int, precision: str = "fp32", **changes: Any) -> Recipe:
        arch, fields, batch_size = self.networks[network]
        return Recipe.model_validate(
            {
                "data": {"path": str(self.data.dataset.folder)},
                "model": {"arch": arch, **fields},
                "method": "normal",
                "budget": {"epochs": 4, "generation_length": 4},
                "batch_size": batch_size,
                "precision": precision,
                **changes,
            }
        )

    def run(self, network: int, precision: str = "fp32", **placement: Any) -> Run:
        prepare_process(self.device, deterministic=True, precision=precision)
        images = Images.from_dataset(self.data.dataset, loader="torch")
        world = World(device=self.device)
        return Run(self.recipe(network, precision), images, None, world, Placement.model_validate(placement))

    def images_per_second(self, epoch: Callable[[], float]) -> float:
        """The most of some turns, after one that is not measured."""
        epoch()
        return max(epoch() for _ in range(self.repeats))

    def needs_cuda(self, what: str) -> None:
        if self.device.type != "cuda":
            raise SealRayError(f"{what} needs a GPU")


def name_of(bench: Bench, network: int) -> str:
    arch, _, batch_size = bench.networks[network]
    return f"{arch}, batch {batch_size}"


def replay(bench: Bench) -> Iterator[Line]:
    """Bits of weights after each epoch, replayed and one operation after the other."""
    bench.needs_cuda("a replay")
    images = Images.from_dataset(bench.data.dataset, loader="torch")
    found = []
    for graphs in ("auto", "off"):
        prepare_process(bench.device, deterministic=True, precision="fp32")
        placement = Placement.model_validate({"cuda_graphs": graphs})
        epochs = fit(bench.recipe(-1), images, world=World(device=bench.device), placement=placement)
        found.append([result.row["weights_sha256"] for result in epochs])
    same = sum(one == other for one, other in zip(*found, strict=True))
    yield Result("epochs of which a replay has the bits of single operations", same, "of 4", at_least=4)


def speeds(bench: Bench, network: int, precision: str) -> Iterator[Line]:
    """Images a second, and against three loops by hand."""
    name = f"{name_of(bench, network)}, {precision}"
    bare, limit = by_hand(bench, network, precision)
    yield Result(f"{name}: bare loop over batches on the device", bare, "images/s")
    if limit is not None:
        yield Result(f"{name}: the same, replayed", limit, "images/s")
    ways: dict[str, dict[str, Any]] = {
        "one operation after the other": {"cuda_graphs": "off"},
        "as shipped": {},
    }
    if precision == "bf16" and bench.device.type == "cuda":
        ways["compiled"] = {"compile": True}
    shipped = 0.0
    for way, placement in ways.items():
        run = bench.run(network, precision, **placement)
        ((_, phase),) = list(run.phases())[:1]
        captured = bench.device.type == "cuda" and way != "one operation after the other"
        happened(is_captured(run, phase) == captured, f"{name} {way}: captured is {not captured}")
        epoch = epochs_of(run)
        speed = bench.images_per_second(lambda epoch=epoch: epoch().images_per_second)
        yield Result(f"{name}: {way}", speed, "images/s")
        if way == "as shipped":
            shipped = speed
    if limit is not None:
        yield Result(f"{name}: as shipped against the replayed bare loop", shipped / limit, at_least=0.95)
    if network == 0 and precision == "bf16":
        hours = PAPER_IMAGES / shipped / 3600
        yield Result("the paper's run, 160 million images in bf16", hours, "hours", at_most=3)


def by_hand(bench: Bench, network: int, precision: str) -> tuple[float, float | None]:
    """Images a second of a loop over batches that lie on the device: as it is, and as a CUDA graph."""
    run = bench.run(network, precision, cuda_graphs="off")
    batches = [(x.clone(), y.clone()) for ((x, y, _),) in run.training_epoch(Position(0, 1))]
    model = run.network.train()
    fused = bench.device.type == "cuda"
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=fused)
    x, y = (tensor.clone() for tensor in batches[0])

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    def epoch(step: Callable[[], object]) -> float:
        began = time.perf_counter()
        for pixels, labels in batches:
            x.copy_(pixels)
            y.copy_(labels)
            step()
        wait(bench.device)
        return len(batches) * len(y) / (time.perf_counter() - began)

    bare = bench.images_per_second(lambda: epoch(step))
    if bench.device.type != "cuda":
        return bare, None
    _, again = cuda_graph(step, [])
    return bare, bench.images_per_second(lambda: epoch(again))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def published(bench: Bench) -> Iterator[Line]:
    """Decoding workers, one operation after the other, `item()` at each step: the published code's style."""
    for network in range(len(bench.networks)):
        run = bench.run(network)
        model = run.network.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        loader = torchvision_loader(bench.data, min(4, usable_cores()), bench.networks[network][2])

        def epoch(model: Any = model, optimizer: Any = optimizer, loader: Any = loader) -> float:
            began, seen, total = time.perf_counter(), 0, 0.0
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x.to(bench.device)), y.to(bench.device), label_smoothing=0.1)
                loss.backward()
                optimizer.step()
                total, seen = total + loss.item(), seen + len(y)
            return seen / (time.perf_counter() - began)

        plain = bench.images_per_second(epoch)
        ours = epochs_of(bench.run(network))
        ratio = bench.images_per_second(lambda ours=ours: ours().images_per_second) / plain
        name = name_of(bench, network)
        yield Result(f"{name}, fp32: loop in the published code's style", plain, "images/s")
        yield Result(f"{name}, fp32: as shipped against that", ratio, at_least=5)


def kernels(bench: Bench) -> Iterator[Line]:
    """The time of a step against that of its kernels, which cannot be less."""
    bench.needs_cuda("the time of kernels")
    for network in range(len(bench.networks)):
        epoch = epochs_of(bench.run(network, "bf16"))
        epoch()
        torch.cuda.reset_peak_memory_stats(bench.device)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            trained = epoch()
        device_time = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        happened(device_time > 0, "the profiler saw no kernels")
        name = f"{name_of(bench, network)}, bf16"
        ratio = trained.seconds_compute / device_time
        yield Result(f"{name}: time of an epoch's steps against its kernels", ratio, at_most=1.3)
        memory = torch.cuda.max_memory_allocated(bench.device) / 2**30
        yield Result(f"{name}: peak memory", memory, "GiB")


def between_epochs(bench: Bench) -> Iterator[Line]:
    """Of a whole run with checkpoints and evaluations, without its first epoch."""
    images = Images.from_dataset(bench.data.dataset, loader="torch")
    prepare_process(bench.device, deterministic=True, precision="fp32")
    with tempfile.TemporaryDirectory(dir=bench.data.folder) as folder:
        recipe = bench.recipe(0)
        store = open_store(folder, recipe, images)
        times, steps = [time.perf_counter()], []
        for result in fit(recipe, images, store=store, world=World(device=bench.device)):
            times.append(time.perf_counter())
            steps.append(result.row["seconds_data"] + result.row["seconds_compute"])
        happened(len(store.rows()) == 4, "the run did not end")
    whole, stepped = times[-1] - times[1], sum(steps[1:])
    name = f"{name_of(bench, 0)}, fp32"
    yield Result(f"{name}: of an epoch what is no step", 100 * (1 - stepped / whole), "%", at_most=5)


def packed(bench: Bench) -> Iterator[Line]:
    """Several processes on the device at once, each with a run of its own."""
    alone = 0.0
    for count in bench.packed:
        context = mp.get_context("spawn")
        start, results = context.Barrier(count), context.Queue()
        processes = [context.Process(target=_beside, args=(bench, start, results)) for _ in range(count)]
        for process in processes:
            process.start()
        total = sum(results.get(timeout=300) for _ in processes)
        for process in processes:
            process.join()
        alone = alone or total
        yield Result(f"{name_of(bench, -1)}, fp32: {count} runs at once, together", total, "images/s")
    yield Result(f"  {bench.packed[-1]} runs against one", total / alone)


def _beside(bench: Bench, start: Any, results: Any) -> None:
    torch.set_num_threads(1)
    epoch = epochs_of(bench.run(-1))
    epoch()
    start.wait(300)
    began, seen = time.perf_counter(), 0.0
    while (spent := time.perf_counter() - began) < bench.seconds:
        trained = epoch()
        seen += trained.images_per_second * (trained.seconds_data + trained.seconds_compute)
    results.put(seen / spent)


def real_run(bench: Bench) -> Iterator[Line]:
    """SEAL for two minutes."""
    if bench.real is None:
        raise SealRayError("no data; give DATA=FOLDER, of a prepared data set")
    images = Images.from_dataset(load_dataset(bench.real), loader="torch")
    recipe = bench.recipe(
        0,
        data={"path": str(bench.real)},
        method={"name": "seal", "ascent_rate": {"rise": 0.5}},
        budget={"epochs": 1000, "generation_length": 10},
        optimizer={"lr": 0.05},
    )
    prepare_process(bench.device, deterministic=True, precision="fp32")
    began, rows = time.perf_counter(), []
    for result in fit(recipe, images, world=World(device=bench.device)):
        rows.append(result.row)
        if time.perf_counter() - began > 20 * bench.seconds:
            break
    yield Result(f"SEAL on {bench.real.name}: epochs", len(rows), "epochs")
    yield Result("  best accuracy on its validation images", max(row["val_top1"] for row in rows), "%")


PRECISIONS = ("fp32", "tf32", "bf16")
PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "a replay's bits": replay,
    **{
        f"speed of network {network}, {precision}": (
            lambda bench, network=network, precision=precision: speeds(bench, network, precision)
        )
        for network in (0, 1)
        for precision in PRECISIONS
    },
    "the published style": published,
    "kernels and memory": kernels,
    "what is no step": between_epochs,
    "several runs": packed,
    "a real run": real_run,
}


def measure(bench: Bench, show: Callable[[Line], None], limit: float) -> bool:
    """Show every line; whether all parts that could be measured were."""
    began, whole = time.perf_counter(), True
    for name, part in PARTS.items():
        if time.perf_counter() - began > limit:
            show(Skipped(name, f"{limit:.0f} s are over"))
            continue
        try:
            for line in part(bench):
                show(line)
        except SealRayError as error:
            show(Skipped(name, str(error)))
        except Exception as error:  # the others are worth their lines
            show(Skipped(name, f"FAILED: {type(error).__name__}: {error}"))
            whole = False
    return whole


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU here; `seal-ray doctor` says why")
    console = Console(width=118, highlight=False)
    lines: list[Line] = []

    def show(line: Line) -> None:
        lines.append(line)
        console.print(f"  {line.what}: {line.shown}", markup=False)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            device=device,
            data=synthetic_images(Path(folder), *((8,) if given.tiny else ())),
            networks=(
                (("resnet18", {"width": 4}, 8), ("resnet18", {"width": 4}, 16))
                if given.tiny
                else (("resnet50", {}, 32), ("resnet18", {}, 128))
            ),
            repeats=1 if given.tiny else 3,
            packed=(2,) if given.tiny else (1, 2, 4, 8),
            seconds=0.1 if given.tiny else 6.0,
            real=given.data,
        )
        whole = measure(bench, show, LIMIT)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    title = f"{card}, torch {torch.__version__}, commit {git_commit()}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("what", "measured", "target", ""):
        table.add_column(heading)
    for line in lines:
        table.add_row(line.what, line.shown, line.target, line.verdict)
    console.print(table)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
