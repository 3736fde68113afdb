"""How good frozen features are on another data set: a linear probe, or few-shot episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seal_ray.analysis.base import Result
from seal_ray.analysis.evaluations import Destination
from seal_ray.analysis.features import Features, extract
from seal_ray.analysis.fewshot import episodes, score_episodes, unit_length
from seal_ray.analysis.inputs import BATCH
from seal_ray.analysis.probe import probe
from seal_ray.data.augment import normalise
from seal_ray.data.dataset import Channels
from seal_ray.data.images import SPLITS, Split
from seal_ray.data.loaders import open_loader
from seal_ray.data.prepared import Dataset


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of RGB values in 0..1 that a network expects, and whose they are."""

    of: str
    mean: Channels
    std: Channels

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Normalisation:
        """That of networks trained on a prepared data set."""
        return cls(dataset.name, dataset.mean, dataset.std)


def score(
    network: nn.Module,
    destination: Destination,
    normalisation: Normalisation,
    settings: Mapping[str, Any],
    device: torch.device,
) -> Result:
    """What `settings`, the fields of a `seal_ray.analysis.evaluations.Evaluation`, ask of a network on
    `device`.

    The network is not trained: it embeds the images at the size that they were prepared in, in eval mode.
    Accuracies are in per cent. Heads are fitted on the CPU, so that the device decides nothing but features.
    Raises ConfigError for a layer that the network lacks, DataError as `probe` and `episodes` do.
    """
    dataset = destination.dataset
    embedded = [_embed(network, dataset, split, normalisation, settings, device) for split in SPLITS]
    layer = settings["layer"]
    (train, train_labels), (val, val_labels) = ((found.layers[layer], labels) for found, labels in embedded)
    made_of = {
        "target": destination.facts(),
        "normalised_with": asdict(normalisation),
        "features": train.shape[1],
        "shape": list(embedded[0][0].shapes[layer]),
    }
    if settings["kind"] == "transfer":
        numbers = _transfer(train, train_labels, val, val_labels, len(dataset.classes), settings)
        return Result({**made_of, **numbers})
    everything, labels = torch.cat([train, val]), torch.cat([train_labels, val_labels])
    numbers, arrays = _fewshot(everything, labels, settings)
    return Result({**made_of, **numbers}, arrays)


def _embed(
    network: nn.Module,
    dataset: Dataset,
    split: Split,
    normalisation: Normalisation,
    settings: Mapping[str, Any],
    device: torch.device,
) -> tuple[Features, Tensor]:
    """The features of all images of a split, in its order, and their labels (N,)."""
    loader = open_loader(dataset, split, kind="torch", batch_size=BATCH)
    mean, std = normalisation.mean, normalisation.std
    batches = (
        normalise(some, mean, std, torch.contiguous_format)
        for some in loader.batches(np.arange(len(loader.labels)))
    )
    size = settings["max_features"]
    found = extract(network, batches, (settings["layer"],), max_features=size, device=device)
    return found, torch.from_numpy(loader.labels)


def _transfer(
    train: Tensor,
    train_labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    classes: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    asked = {name: settings[name] for name in ("fraction", "holdout", "seed")}
    found = probe(train, train_labels, val, val_labels, classes=classes, **asked)
    return {
        "top1": 100 * found.top1,
        "per_class_top1": [100 * share for share in found.per_class.tolist()],
        "weight_decay": found.weight_decay,
        "holdout_top1": {f"{decay:.6g}": 100 * share for decay, share in found.holdout.items()},
        "iterations": found.iterations,
        "train_images": found.train_size,
    }


def _fewshot(
    features: Tensor, labels: Tensor, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracies by the number of shots, and those of each episode, which are the same for every network."""
    directions = unit_length(features)
    numbers: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for shots in settings["shots"]:
        drawn = episodes(
            labels,
            seed=settings["seed"],
            shots=shots,
            count=settings["episodes"],
            ways=settings["ways"],
            queries=settings["queries"],
        )
        found = score_episodes(directions, drawn, head=settings["head"])
        numbers[str(shots)] = {"top1": 100 * found.mean, "half_width": 100 * found.half_width}
        arrays[f"accuracies_{shots}"] = found.accuracies.numpy()
    return {"shots": numbers}, arrays
