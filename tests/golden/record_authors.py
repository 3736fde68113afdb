"""Record what SEAL's published code computes in the set-ups of `cases.py`: writes authors.json.

    git clone https://github.com/amiiir-sarfi/SEAL AUTHORS && git -C AUTHORS checkout 0a14db4
    python -m tests.golden.record_authors AUTHORS

What the file has is kept: remove a case from it to record that one again.

Their loop, optimizers, schedules, losses, reverse, freeze and forgetting code and their network run as they
are, in float64 on the CPU. Put in from here are what they draw at random (initial weights, the weights that
LLF draws, the order of images, crops and flips), images for Tiny-ImageNet, and an eighth of the channels.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from seal_ray.data.augment import normalise
from seal_ray.networks import weighted_layers
from seal_ray.phases.schedule import Position
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.golden.cases import (
    CASES,
    CLASSES,
    PLACEMENT,
    SHARED_FLAGS,
    WIDTH,
    golden_images,
    recipe_of,
)

SOURCE = "https://github.com/amiiir-sarfi/SEAL"
NARROWER = 64 // WIDTH
Batch = tuple[Tensor, Tensor]


class Conv2d(nn.Conv2d):
    """A convolution with fewer channels than it is asked for, the colours apart."""

    def __init__(self, channels: int, out: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(max(3, channels // NARROWER), out // NARROWER, *args, **kwargs)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of fewer channels than it is asked for."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels // NARROWER, **kwargs)


class Linear(nn.Linear):
    """A classifier of fewer features than it is asked for."""

    def __init__(self, features: int, out: int, **kwargs: Any) -> None:
        super().__init__(features // NARROWER, out, **kwargs)


NARROW = SimpleNamespace(**{**vars(nn), "Conv2d": Conv2d, "BatchNorm2d": BatchNorm2d, "Linear": Linear})


class Epochs:
    """Our batches of one epoch after the other, each time it is iterated, with partners behind."""

    def __init__(self, run: Run) -> None:
        self.run, self.done = run, 0

    def __iter__(self) -> Iterator[Batch]:
        position = Position(*divmod(self.done, self.run.recipe.budget.length))
        self.done += 1
        for shards in self.run.training_epoch(position):
            images, labels, _ = zip(*shards, strict=True)
            yield torch.cat(images), torch.cat(labels)


def validation(run: Run) -> list[Batch]:
    """All validation images, in one batch."""
    labels = run.validation.truth
    (pixels,) = run.validation.loader.batches(torch.arange(len(labels)).numpy())
    return [(normalise(pixels, run.images.mean, run.images.std, run.memory_format, run.dtype), labels)]


def plain_loss(network: nn.Module, batches: list[Batch]) -> float:
    """The cross entropy without the smoothing that theirs has when it validates too."""
    ((x, y),) = batches
    with torch.no_grad():
        return F.cross_entropy(network(x), y).item()


def forgotten(run: Run) -> Iterator[Tensor]:
    """The weights that our LLF draws, in the order in which theirs asks for them."""
    next(run.phases())
    for generation in range(1, run.recipe.budget.generations):
        phase = run.recipe.method.phases(generation, run.recipe.budget)[0]
        run.edit(phase, generation)
        for name, layer in weighted_layers(run.network) if phase.edit else ():
            if run.parts.holds(getattr(run.recipe.method, "part", "late"), name):
                yield layer.weight.detach().clone()


def record(name: str, folder: str) -> list[dict[str, float]]:
    """Train a case by their code: for each epoch its losses and the size of the weights."""
    recipe, images = recipe_of(name), golden_images()
    run, ours = (Run(recipe, images, None, World(), PLACEMENT) for _ in range(2))
    drawn, seen, rows = list(forgotten(ours)), validation(run), []
    flags = {**SHARED_FLAGS, **CASES[name][1], "num_cls": CLASSES, "val_interval": 1, "no_wandb": 1}
    arguments = [f"--{flag}={value}" for flag, value in {**flags, "exp_dir": folder}.items()]
    config, core, resnet = (importlib.import_module(module) for module in ("config", "core", "models.resnet"))

    def draw(weight: Tensor, a: float) -> Tensor:
        assert a == math.sqrt(5)
        return weight.copy_(drawn.pop(0))

    def log(_: Any, summary: dict[str, float], stage: Any) -> None:
        if stage.name == "TRAIN":
            rows.append({"train_loss": summary["Train/Loss"]})
        else:
            rows[-1] |= {"val_top1": summary["Val/Acc1"], "val_loss": plain_loss(network, seen)}
            for part in ("early", "late"):
                norms = [parameter.norm() for parameter in run.parts.parameters(network, part)]
                rows[-1][f"weight_norm_{part}"] = torch.stack(norms).norm().item()

    replaced = {
        "load_dataset": lambda cfg: (Epochs(run), seen, None),
        "summary_logging": log,
        "save_checkpoint": lambda *_, **__: None,
    }
    with (
        mock.patch.multiple(core, **replaced),
        mock.patch.object(resnet, "nn", NARROW),
        mock.patch.object(nn.Module, "cuda", lambda module: module),
        mock.patch.object(Tensor, "cuda", lambda tensor: tensor),
    ):
        cfg = config.Config().parse(arguments)
        if recipe.model.arch == "preact18":  # which no flag of theirs names
            cfg.arch, network = "CIFAR_ResNet18", resnet.CIFAR_ResNet18(num_classes=CLASSES)
        else:
            network = core.get_model(cfg)
        network = network.double()
        network.load_state_dict(run.network.state_dict())
        with mock.patch.object(nn.init, "kaiming_uniform_", draw):
            core.IterativeTrainer(cfg, network).fit(progressbar=False)
    assert drawn == []
    return rows


def main() -> None:
    """Record the cases that the file beside this one lacks."""
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    file = Path(__file__).with_name("authors.json")
    held = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = {name: held[name] if name in held else record(name, folder) for name in CASES}
    lines = ",\n".join(
        f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in found.items()
    )
    header = f'"source": "{SOURCE}, commit 0a14db4, recorded by record_authors.py"'
    file.write_text(f"{{\n{header},\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
