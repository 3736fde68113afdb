"""Fine-tuning on another data set: a run of the training loop that begins with the weights of a moment.

The protocol: a new classifier, and every weight trained by SGD with momentum 0.9 under one cosine without
warm-up, at one learning rate for all targets (Kornblith et al., CVPR 2019, arXiv 1805.08974, choose it for
each). Images are normalised as those that the weights were trained on, as for probes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seal_ray.analysis.base import Result
from seal_ray.analysis.evaluations import Destination
from seal_ray.analysis.probe import training_share
from seal_ray.analysis.scoring import Normalisation
from seal_ray.data.dataset import Labels
from seal_ray.data.images import Images, Split
from seal_ray.data.loaders import Loader, Order
from seal_ray.data.prepared import Dataset
from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.networks import RESNETS
from seal_ray.phases.schedule import Row
from seal_ray.recipe import MODELS, Job, Keep, Model, Placement, Recipe, check_images, check_shards, dump_job
from seal_ray.runs.export import Loaded
from seal_ray.runs.folder import Store, open_store
from seal_ray.runs.weights import pinned
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.lease import hold_lease, owns
from seal_ray.storage.paths import AnyPath
from seal_ray.training.loop import fit
from seal_ray.training.world import World

CURVE = ("train_loss", "train_top1", "val_loss", "val_top1")
"""What of each epoch is part of the result."""


@dataclass(frozen=True, eq=False)
class Some:
    """A loader of the images `used` of another one."""

    loader: Loader
    used: Labels

    @property
    def labels(self) -> Labels:
        """See `Loader`."""
        return self.loader.labels[self.used]

    def batches(self, order: Order) -> Iterator[Tensor]:
        """See `Loader`."""
        return self.loader.batches(self.used[order])


def finetune(
    source: Model,
    destination: Destination,
    normalisation: Normalisation,
    settings: Mapping[str, Any],
    device: torch.device,
    folder: AnyPath,
) -> Result:
    """The accuracy (per cent) on a data set that all weights of `source` were trained on.

    source: a network with `init_from`. settings: the fields of an
    `seal_ray.analysis.evaluations.FineTune`. The run lies in `<folder>/<run id>/`, and goes on there if it
    was killed. The result is that of the last epoch. Raises as `fit`; ClusterError when the run is being
    trained elsewhere.
    """
    check_images(source, destination.dataset.size)
    recipe = pinned(recipe_of(source, destination.dataset, settings))
    check_shards(recipe, destination.dataset.size)
    images = images_of(destination.dataset, normalisation, settings["fraction"], settings["seed"])
    store = open_store(folder, recipe, images, checkpoints=1)
    rows = store.rows()
    if len(rows) < settings["epochs"]:
        job = dump_job(Job(name=destination.label, recipe=recipe))
        rows = _train(store, recipe, images, job, device)
    last = rows[-1]
    return Result(
        {
            "target": destination.facts(),
            "normalised_with": asdict(normalisation),
            "top1": last["val_top1"],
            "best_top1": max(row["val_top1"] for row in rows),
            "train_images": len(images.open("train", 1).labels),
            "epochs": [{name: row[name] for name in CURVE} for row in rows],
            "run": f"{store.folder.parent.name}/{store.run_id}",
            "finetuned_sha256": last["weights_sha256"],
        }
    )


def _train(store: Store, recipe: Recipe, images: Images, job: str, device: torch.device) -> list[Row]:
    """Train what is left of the run, as its owner; returns its metrics."""
    with hold_lease(store.folder) as token:
        with saving(store.folder):
            write_durably(store.folder / "job.yaml", job.encode())
        store.clear_stop()
        owned = replace(store, owned=lambda: owns(store.folder, token))
        placement = Placement(keep=Keep(moments=()))
        for _ in fit(recipe, images, store=owned, world=World(device=device), placement=placement):
            pass
    rows = store.rows()
    if len(rows) < recipe.budget.epochs:
        raise CheckpointError(f"{store.folder}: was stopped; the same command goes on")
    return rows


def recipe_of(source: Model, dataset: Dataset, settings: Mapping[str, Any]) -> Recipe:
    """What is trained."""
    epochs = settings["epochs"]
    return Recipe.model_validate(
        {
            "data": {"path": str(dataset.folder)},
            "model": source.model_copy(update={"dropout": 0.0, "new_head": True}),
            "method": "normal",
            "budget": {"epochs": epochs, "generation_length": epochs},
            "optimizer": {
                "lr": settings["lr"],
                "weight_decay": settings["weight_decay"],
                "schedule": "cosine",
                "warmup_share": 0.0,
            },
            "loss": {"label_smoothing": settings["label_smoothing"]},
            "augment": settings["augment"],
            "batch_size": settings["batch_size"],
            "seed": settings["seed"],
        }
    )


def images_of(dataset: Dataset, normalisation: Normalisation, fraction: float, seed: int) -> Images:
    """A share of the train images, the same as probes use, and all val images, normalised as given."""
    mean, std = normalisation.mean, normalisation.std
    whole = replace(Images.from_dataset(dataset, loader="torch"), mean=mean, std=std)
    facts = [dataset.identity, dataset.encoding, mean, std]
    if fraction == 1:
        return replace(whole, identity=_digest(facts))
    used = training_share(torch.from_numpy(whole.open("train", 1).labels), fraction, seed).numpy()

    def opened(split: Split, size: int) -> Loader:
        loader = whole.open(split, size)
        return Some(loader, used) if split == "train" else loader

    return replace(whole, identity=_digest([*facts, fraction, seed]), open=opened)


def _digest(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def model_in(file: Path, loaded: Loaded) -> Model:
    """The network in a file of weights, to be tuned. ConfigError for one that seal-ray does not train."""
    fields: dict[str, Any] = {"arch": loaded.arch, "init_from": str(file)}
    if loaded.arch in RESNETS:
        width, _, kernel, _ = loaded.network.state_dict()["conv1.weight"].shape
        fields |= {"stem": "cifar" if kernel == 3 else "imagenet", "width": width}
    try:
        return MODELS[loaded.arch].model_validate(fields)
    except ConfigError as error:
        raise ConfigError(f"{loaded.arch}: is only probed; to be trained it {error}") from None
