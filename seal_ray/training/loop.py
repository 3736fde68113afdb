"""Training: `fit`, the loop, as a generator of epochs; one epoch; evaluation.

Everything random or scheduled is a pure function of the position, so going on after a crash needs the
last checkpoint and nothing else. What happens to an epoch's result (a report to Ray, W&B, a line in the
terminal) is the business of whoever consumes it.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from seal_ray.data.images import Images
from seal_ray.data.loaders import on_device
from seal_ray.data.prepared import open_dataset
from seal_ray.data.subset import steps_per_epoch
from seal_ray.device import intra_op_threads
from seal_ray.errors import Diverged, SealRayWarning
from seal_ray.phases.schedule import Phase, Position, Row, learning_rate
from seal_ray.runs.weights import pinned
from seal_ray.training.averaging import average_epoch, averaged_network, averaged_parameters
from seal_ray.training.optimizer import set_learning_rate, signed_rate
from seal_ray.training.run import EVALUATION_BATCH, Evaluated, Run
from seal_ray.training.step import TrainStep, measured, training_step
from seal_ray.training.world import World

if TYPE_CHECKING:
    from seal_ray.metrics import Metric
    from seal_ray.recipe import Placement, Recipe
    from seal_ray.runs.folder import Store


@dataclass(frozen=True)
class EpochResult:
    """An epoch: where it was, its metrics, and how the run now stands."""

    position: Position
    row: Row
    status: str  # "running" | "finished" | "stopped"


def fit(
    recipe: Recipe,
    images: Images | None = None,
    *,
    store: Store | None = None,
    world: World | None = None,
    placement: Placement | None = None,
) -> Generator[EpochResult]:
    """Train `recipe` on `images` from wherever `store` says it stands; yield each epoch.

    images: by default those prepared at recipe.data.path, read by `placement.loader`. Every worker of `world`
    runs this with the same arguments. Without a store nothing is saved. An epoch is being written when it is
    yielded, if it is due; one that was yielded is committed when the generator is closed. After a kill those
    that were not are computed and yielded again, to the same bits. A run that has finished yields nothing.
    placement: by default `Placement(loader="torch")`, which needs no FFCV; what it says of processes, storage
    and tracking is the caller's business. Raises Diverged when a metric becomes non-finite (the last
    checkpoint stays), ConfigError for a recipe that these workers cannot compute.
    """
    from seal_ray.recipe import Placement

    recipe, world, placement = pinned(recipe), world or World(), placement or Placement(loader="torch")
    images = images or Images.from_dataset(open_dataset(recipe.data.path), loader=placement.loader)
    threads = placement.cpu_threads
    with intra_op_threads(threads):  # not over the yield: the threads between are the caller's
        run = Run(recipe, images, store, world, placement)
    epochs = _epochs(run)
    with run.leaving():
        while True:
            with intra_op_threads(threads):
                result = next(epochs, None)
            if result is None:
                return
            yield result


def _epochs(run: Run) -> Iterator[EpochResult]:
    """The loop of `fit`."""
    recipe = run.recipe
    for generation, phase in run.phases():
        if run.enters_phase:
            run.edit(phase, generation)
        optimizer = run.optimizer_for(phase)
        begin = training_step(run, optimizer, phase)
        for position in run.epochs(phase):
            lr = learning_rate(recipe.optimizer.rates, phase, position, recipe.budget)
            set_learning_rate(optimizer, phase, lr, run.rows, position.epoch - run.first)
            trained = train_epoch(run, optimizer, begin(), phase, position)
            scores = evaluate(run) if run.evaluates(phase, position) else {}
            row = describe(run, optimizer, phase, position, trained, scores)
            yield EpochResult(position, row, run.commit(row, optimizer, phase, position))
            if run.stopped:
                return


@dataclass(frozen=True)
class Trained:
    """What one epoch of training measured, the same on every worker but for the seconds."""

    train_loss: float  # mean over the epoch's shards of the phase's loss, nats
    train_top1: float  # per cent, of the augmented images as they were seen
    train_memorised: float | None  # per cent of the wrongly labelled images; None where there is none
    grad_norm_early: float  # root mean square over the steps, after reduction, before clipping
    grad_norm_late: float
    images_per_second: float
    seconds_data: float  # waiting for batches
    seconds_compute: float


def train_epoch(
    run: Run, optimizer: torch.optim.Optimizer, step: TrainStep, phase: Phase, position: Position
) -> Trained:
    """One pass over the training images in this epoch's order. No step waits for the device."""
    run.network.train()
    recipe, zeros = run.recipe, functools.partial(torch.zeros, dtype=run.dtype, device=run.world.device)
    steps, size = steps_per_epoch(len(run.indices), recipe.batch_size), recipe.batch_size // recipe.shards
    outcomes = zeros(steps, recipe.shards, 1 + size)
    mine = outcomes[:, run.world.rank * run.accumulation :][:, : run.accumulation]
    parts = [len(parameters) for parameters in measured(run)]
    norms = zeros(steps, sum(parts))

    started, waited = time.perf_counter(), 0.0
    batches = run.batches(position)
    for index in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        run.step = index
        mine[index], norms[index] = step(batch)
    # Each entry is set by one worker and 0 on the others, so the sum is exact whoever computed it.
    results = run.world.total(outcomes).double().cpu()
    seconds = time.perf_counter() - started
    run.world.from_leader(run.network.buffers())
    run.hash_weights()
    average_epoch(run, position)
    losses, right = results[..., 0], results[..., 1:]
    if not losses.isfinite().all():
        raise diverged(run, optimizer, phase, position, "train_loss")
    seen = right.numel()
    early, late = (
        torch.linalg.vector_norm(part, dim=1).double().square().mean().sqrt().item()
        for part in norms.split(parts, dim=1)
    )
    return Trained(
        train_loss=losses.mean().item(),
        train_top1=100 * right.sum().item() / seen,
        train_memorised=_memorised(run, position, right),
        grad_norm_early=early,
        grad_norm_late=late,
        images_per_second=round(seen / seconds, 1),
        seconds_data=round(waited, 3),
        seconds_compute=round(seconds - waited, 3),
    )


def _memorised(run: Run, position: Position, right: Tensor) -> float | None:
    """Per cent of an epoch's wrongly labelled images whose wrong label was predicted, as they were seen.

    right: (steps, shards, shard size) of 0 or 1: where the label was predicted. None where there is no wrong
    label, or labels are mixed with those of other images. Source: Liu et al., Early-Learning Regularization,
    NeurIPS 2020 (arXiv 2007.00151), figure 1.
    """
    if run.mislabelled is None:
        return None
    wrong = torch.from_numpy(run.mislabelled[run.epoch_order(position)])
    return 100 * right[wrong].mean().item() if wrong.any() else None


@torch.inference_mode()
def evaluate(run: Run) -> dict[str, Any]:
    """Plain cross entropy (nats) and accuracies (per cent) over the validation images, each counted once.

    Then the metrics that the placement asks for, on the leader, and what averaged weights score, if there are
    any yet. Where validation images are held out of the training images, the last epoch of a run is evaluated
    on the data set's own val images too: `test_*`, and `test_averaged_*` of the averaged weights.
    """
    started, metrics = time.perf_counter(), run.placement.metrics
    totals, logits = _judged(run, run.validation, logits=bool(metrics))
    run.right = totals[:, 1] > 0
    scores: dict[str, Any] = _means("val", totals)
    if metrics:
        labels = run.validation.truth.cpu()
        scores |= run.world.lead(lambda: {f"val_{m.name}": _measured(m, logits, labels) for m in metrics})
    last = run.next.global_epoch(run.recipe.budget) + 1 == run.recipe.budget.epochs
    test = run.test if last else None
    if averaged_parameters(run):
        with averaged_network(run):
            run.averaged = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
            for split, images in (("val", run.validation), ("test", test)):
                if images is not None:
                    found = _means(f"{split}_averaged", _judged(run, images)[0])
                    scores |= {name: found[name] for name in found if not name.endswith("top5")}
    if test is not None:
        scores |= _means("test", _judged(run, test)[0])
    return {**scores, "seconds_eval": round(time.perf_counter() - started, 3)}


def _means(split: str, totals: Tensor) -> dict[str, float]:
    loss, top1, top5 = totals.double().cpu().mean(dim=0).tolist()
    return {f"{split}_loss": loss, f"{split}_top1": 100 * top1, f"{split}_top5": 100 * top5}


def _judged(run: Run, split: Evaluated, *, logits: bool = False) -> tuple[Tensor, Tensor]:
    """Of each image: its cross entropy, whether the label was predicted, whether among five, (N, 3).

    Then, where they are asked for, the logits (N, K), on the CPU. The images are cut into the same batches
    for any number of workers, and reduced in index order.
    """
    run.network.eval()
    device, truths = run.world.device, split.truth
    batches = torch.arange(len(truths)).split(EVALUATION_BATCH)
    mine = batches[run.world.rank :: run.world.workers]
    results = torch.zeros(len(truths), 3, dtype=run.dtype, device=device)
    kept = results.new_zeros(len(truths), run.images.classes if logits else 0)
    order = torch.cat(mine) if mine else torch.arange(0)
    if device.type == "cuda" or run.placement.compile:  # one shape, hence one graph: some images come again
        order = F.pad(order, (0, -len(order) % len(batches[0])))
    for indices, pixels in zip(mine, split.loader.batches(order.numpy()), strict=True):
        seen = slice(int(indices[0]), int(indices[-1]) + 1)
        images, truth = run.normaliser.of_bytes(on_device(pixels, device)), truths[seen]
        with run.autocast():
            found = run.forward(images)
        found = found[: len(indices)].to(run.dtype)
        best = found.topk(min(5, run.images.classes), dim=1).indices == truth[:, None]
        loss = F.cross_entropy(found, truth, reduction="none")
        scores = torch.stack([loss, best[:, 0].float(), best.any(dim=1).float()], dim=1)
        results[seen] = scores
        if logits:
            kept[seen] = found
    totals = run.world.total(results)
    return totals, run.world.total(kept).cpu() if logits else kept


def _measured(metric: Metric, logits: Tensor, labels: Tensor) -> float | None:
    """What a metric gives; None, with a warning, where it fails or is not finite: training goes on."""
    try:
        value = float(metric(logits, labels))
        problem = f"is {value}"
    except Exception as error:
        value, problem = math.nan, f"fails: {type(error).__name__}: {error}"
    if math.isfinite(value):
        return value
    text = f"the metric {metric.name} {problem}; val_{metric.name} is null there"
    warnings.warn(text, SealRayWarning, stacklevel=2)
    return None


NOT_EVALUATED: dict[str, Any] = {"val_loss": None, "val_top1": None, "val_top5": None, "seconds_eval": 0.0}
NOT_AVERAGED: dict[str, Any] = {"val_averaged_loss": None, "val_averaged_top1": None}


def describe(
    run: Run,
    optimizer: torch.optim.Optimizer,
    phase: Phase,
    position: Position,
    trained: Trained,
    scores: dict[str, Any],
) -> Row:
    """The metrics of an epoch as one row. Raises Diverged when a number in it is not finite."""
    row = {
        "run_id": run.id,
        "trained_by": run.id,
        "generation": position.generation,
        "epoch": position.epoch,
        "global_epoch": position.global_epoch(run.recipe.budget),
        "phase": phase.name,
        **_rates(run, optimizer, phase),
        **{key: value for key, value in asdict(trained).items() if value is not None},
        **NOT_EVALUATED,
        **(NOT_AVERAGED if run.averages else {}),
        **{f"val_{metric.name}": None for metric in run.placement.metrics},
        **scores,
        "weight_norm_early": _norm(run.parts.parameters(run.network, "early")),
        "weight_norm_late": _norm(run.parts.parameters(run.network, "late")),
        "weights_sha256": run.weights_sha256(),
        "workers": run.world.workers,
    }
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise diverged(run, optimizer, phase, position, name)
    return row


def diverged(
    run: Run, optimizer: torch.optim.Optimizer, phase: Phase, position: Position, metric: str
) -> Diverged:
    """Record and describe a non-finite metric: where it happened and at which learning rates."""
    rates = _rates(run, optimizer, phase)
    at = {"generation": position.generation, "epoch": position.epoch, "phase": phase.name}
    reason = (
        f"{metric} is not finite in generation {position.generation}, epoch {position.epoch}, phase "
        f"{phase.name}, at lr_early {rates['lr_early']:g} and lr_late {rates['lr_late']:g}; lower "
        "optimizer.lr or the ascent rate, or set optimizer.clip_norm"
    )
    run.set_status("diverged", reason=reason, metric=metric, **at, **rates)
    return Diverged(f"run {run.id}: {reason}")


def _rates(run: Run, optimizer: torch.optim.Optimizer, phase: Phase) -> dict[str, float]:
    firsts = {"lr_early": run.parts.stages[0], "lr_late": run.parts.split_at}
    return {name: signed_rate(optimizer, phase, run.parts, stage) for name, stage in firsts.items()}


def _norm(parameters: list[nn.Parameter]) -> float:
    return float(nn.utils.get_total_norm([p.detach() for p in parameters]))
