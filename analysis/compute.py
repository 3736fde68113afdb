"""From a piece of work to its result: what each analysis reads, and what it keeps of what it finds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

import seal_ray
from seal_ray.analysis.calibration import (
    expected_calibration_error,
    forgetting_events,
    negative_log_likelihood,
    per_class_accuracy,
)
from seal_ray.analysis.curvature import Curvature, measure_curvature
from seal_ray.analysis.depth import Depths, Points, balanced_subset, measure_depth
from seal_ray.analysis.examples import Example, picture
from seal_ray.analysis.features import extract
from seal_ray.analysis.finetune import finetune
from seal_ray.analysis.inputs import Data, Material
from seal_ray.analysis.moments import Moment, tracked_epochs
from seal_ray.analysis.results import FOLDER, Computed, write_result
from seal_ray.analysis.scoring import Normalisation, judge
from seal_ray.analysis.shards import sharding
from seal_ray.analysis.similarity import linear_cka, loss_barrier, movement, weight_norms
from seal_ray.analysis.tasks import Piece, verify_weights
from seal_ray.data.dataset import Labels
from seal_ray.networks import Parts, stages
from seal_ray.phases.schedule import Position
from seal_ray.runs.checkpoint import State, weights_sha256
from seal_ray.runs.folder import Store
from seal_ray.storage.paths import AnyPath

GRAPH_BYTES = 2 << 30
"""What a process's second derivatives may keep in memory, if there is as much."""


def work_off(piece: Piece, material: Material, *, processes: int = 1) -> float:
    """Compute a piece and write its result; returns the seconds it took.

    processes: how many share this machine's memory. Raises SealRayErrors for what is wrong with the
    moment, its data or the settings.
    """
    started = time.perf_counter()
    weights = piece.moment.weights()
    verify_weights(piece, weights_sha256(weights))
    analyses: Mapping[str, Callable[[], Computed]] = {
        "depth": lambda: _depth(piece, weights, material),
        "curvature": lambda: _curvature(piece, weights, material, processes),
        "similarity": lambda: _similarity(piece, weights, material),
        "calibration": lambda: _calibration(piece, weights, material),
    }
    computed = _carried(piece, weights, material) if piece.destination else analyses[piece.what]()
    seconds = round(time.perf_counter() - started, 3)
    made = made_by(material.device, seconds)
    write_result(piece.moment, piece.what, {**piece.head(), **made}, computed)
    return seconds


def made_by(device: torch.device, seconds: float) -> dict[str, Any]:
    """What of a result says how it was made."""
    return {"versions": versions(), "device": _device(device), "seconds": seconds}


def versions() -> dict[str, str]:
    """What a result was computed with."""
    return {"seal_ray": seal_ray.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _device(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.machine()
    return {"name": name, "threads": torch.get_num_threads()}


def _depth(piece: Piece, weights: State, material: Material) -> Computed:
    run, settings = piece.moment.run, dict(piece.settings)
    data, network = material.data(run), material.network(run, weights)
    listed = settings.pop("listed")
    depths = measure_depth(
        network, data.examples("train"), data.examples("val"), device=material.device, **settings
    )
    indices = {"train": data.used[depths.train.indices.numpy()], "val": depths.val.indices.numpy()}
    ends = {split: _ends(points, indices[split], data, listed) for split, points in _splits(depths)}
    numbers = {
        **depths.summary(),
        "listed": {
            split: {end: [asdict(example) for example in some] for end, some in both.items()}
            for split, both in ends.items()
        },
    }
    arrays: dict[str, Any] = {}
    for split, points in _splits(depths):
        arrays |= {
            f"{split}_indices": indices[split],
            f"{split}_depths": points.depths.numpy().astype(np.int16),
            f"{split}_predictions": points.predictions.numpy().astype(np.int32),
            f"{split}_labels": points.labels.numpy().astype(np.int32),
            f"{split}_probe_predictions": points.probe_predictions.numpy().astype(np.int32),
        }
    chosen = torch.tensor([example.index for end in ends["val"].values() for example in end])
    shown = data.pixels("val", chosen).numpy()
    arrays["val_listed_pixels"] = shown
    return Computed(numbers, arrays, picture(ends["val"], shown, len(depths.probes)))


def _splits(depths: Depths) -> tuple[tuple[str, Points], ...]:
    return ("train", depths.train), ("val", depths.val)


def _ends(points: Points, indices: Labels, data: Data, count: int) -> dict[str, list[Example]]:
    """The `count` deepest and shallowest points of a split, by (depth, index)."""

    def example(i: int) -> Example:
        return Example(
            index=int(indices[i]),
            depth=int(points.depths[i]),
            label=data.class_name(int(points.labels[i])),
            prediction=data.class_name(int(points.predictions[i])),
        )

    order = {
        "deepest": points.depths.argsort(stable=True, descending=True),
        "shallowest": points.depths.argsort(stable=True),
    }
    return {end: [example(int(i)) for i in some[:count]] for end, some in order.items()}


def _curvature(piece: Piece, weights: State, material: Material, processes: int) -> Computed:
    run, settings = piece.moment.run, piece.settings
    recipe, data = material.recipe(run), material.data(run)
    network = material.network(run, weights)
    batches, labels = data.training_subset(settings["images"], settings["seed"])
    images, labels = torch.cat(batches).to(material.device), labels.to(material.device)
    before = piece.others["before"].weights() if "before" in piece.others else None
    room = psutil.virtual_memory().available // (4 * processes)
    numbers: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    for part in settings["parts"]:
        with sharding(settings["shards"]) as make:
            found = measure_curvature(
                network,
                images,
                labels,
                parts=Parts(stages(network), recipe.method.split_at),
                part=part,
                label_smoothing=recipe.loss.label_smoothing,
                steps=settings["steps"],
                probes=settings["probes"],
                top=settings["top"],
                seed=settings["seed"],
                batch=settings["batch"],
                graph_bytes=min(GRAPH_BYTES, room),
                make=make,
            )
        numbers[part], some = _kept(found)
        arrays |= {f"{part}_{name}": array for name, array in some.items()}
        if before is not None:
            numbers[part]["ascent_within_top"] = {
                "share": found.movement_share(before, weights),
                "of_a_random_direction": settings["top"] / found.dim,
            }
    return Computed({"parts": numbers}, arrays)


def _kept(found: Curvature) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of a spectrum, and its density as arrays."""
    numbers = found.to_json()
    density = numbers.pop("density")
    numbers["density_sigma"] = density.pop("sigma")
    return numbers, {name: np.asarray(values) for name, values in density.items()}


def _similarity(piece: Piece, weights: State, material: Material) -> Computed:
    run, settings, others = piece.moment.run, piece.settings, piece.others
    data, network = material.data(run), material.network(run, weights)
    size = min(settings["images"], len(data.val_labels))
    indices = balanced_subset(data.val_labels, size, settings["seed"])
    numbers: dict[str, Any] = {"weight_norms": weight_norms(network, weights), "cka_images": size, "cka": {}}
    if "before" in others:
        earlier = others["before"].weights()
        moved = movement(network, earlier, weights)
        numbers["movement"] = {stage: asdict(one) for stage, one in moved.items()}

    def features(moment: Moment, state: State) -> dict[str, Tensor]:
        return material.stage_features(moment.run, state, indices, settings["max_features"]).layers

    own = features(piece.moment, weights)
    for role in ("before", "baseline"):
        if role in others:
            theirs = features(others[role], others[role].weights())
            numbers["cka"][role] = {stage: linear_cka(own[stage], theirs[stage]) for stage in own}
    if "generation" in others:
        batches, labels = data.training_subset(settings["barrier_images"], settings["seed"])
        start, points = others["generation"].weights(), settings["barrier_points"]
        numbers["barrier"] = asdict(
            loss_barrier(_line_loss(network, batches, labels, material.device), start, weights, points=points)
        )
    return Computed(numbers)


def _line_loss(
    network: nn.Module, batches: Iterable[Tensor], labels: Tensor, device: torch.device
) -> Callable[[State], float]:
    """Mean cross entropy (nats) of a state on fixed images, its running statistics estimated anew on them."""
    moved, truth = [batch.to(device) for batch in batches], labels.to(device)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    @torch.inference_mode()
    def loss(state: State) -> float:
        network.load_state_dict(state)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches
        network.train()
        for batch in moved:
            network(batch)
        network.eval()
        return float(F.cross_entropy(torch.cat([network(batch) for batch in moved]).double(), truth))

    return loss


def _calibration(piece: Piece, weights: State, material: Material) -> Computed:
    run = piece.moment.run
    data, network = material.data(run), material.network(run, weights)
    everything = torch.arange(len(data.val_labels))
    batches = data.batches("val", everything)
    logits = extract(network, batches, (), max_features=1, device=material.device).logits
    confidence, predictions = logits.double().softmax(dim=1).max(dim=1)
    accuracy = per_class_accuracy(predictions, data.val_labels, data.images.classes)
    numbers = {
        "images": len(everything),
        "top1": 100 * float((predictions == data.val_labels).double().mean()),
        "ece": expected_calibration_error(logits, data.val_labels, bins=piece.settings["bins"]),
        "nll": negative_log_likelihood(logits, data.val_labels),
        "confidence": float(confidence.mean()),
        "per_class_top1": [100 * share for share in accuracy.tolist()],
    }
    arrays: dict[str, Any] = {
        "confidence": confidence.numpy().astype(np.float32),
        "predictions": predictions.numpy().astype(np.int32),
        "labels": data.val_labels.numpy().astype(np.int32),
    }
    positions = tracked_epochs(run, material.recipe(run).budget, piece.epochs)
    if positions:
        numbers["forgetting"], arrays["forgetting_events"] = _forgetting(run, positions)
    return Computed(numbers, arrays)


def _carried(piece: Piece, weights: State, material: Material) -> Computed:
    """Images are normalised as those that the network was trained on."""
    assert piece.destination is not None
    run = piece.moment.run
    trained_on = Normalisation.of_dataset(material.data(run).dataset)
    if piece.settings["kind"] == "finetune":
        named = {"init_from": str(piece.moment.path), "init_sha256": piece.weights_sha256}
        source = material.recipe(run).model.model_copy(update=named)
        folder = run / FOLDER / f"{piece.what}-{piece.moment.label}"
        return finetune(source, piece.destination, trained_on, piece.settings, material.device, folder)
    network = material.network(run, weights)
    return judge(network, piece.destination, trained_on, piece.settings, material.device)


FORGOTTEN_LISTED = 16


def _forgetting(run: AnyPath, positions: Sequence[Position]) -> tuple[dict[str, Any], Any]:
    """How often validation images went from right to wrong between the epochs that were tracked."""
    store = Store(run, run.name)
    kept = [right for right in map(store.examples, positions) if right is not None]
    found = forgetting_events(torch.from_numpy(np.stack(kept)))
    order = found.events.argsort(stable=True, descending=True)[:FORGOTTEN_LISTED]
    numbers = {
        "epochs": len(kept),
        "mean_events": float(found.events.double().mean()),
        "never_learned": float((~found.learned).double().mean()),
        "unforgettable": float(found.unforgettable.double().mean()),
        "most_forgotten": [{"index": int(i), "events": int(found.events[i])} for i in order],
    }
    return numbers, found.events.numpy().astype(np.int32)
