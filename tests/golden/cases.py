"""Set-ups in which SEAL's published code and `fit` are compared, and their images."""

from __future__ import annotations

from typing import Any

import numpy as np

from seal_ray.data.images import Images
from seal_ray.recipe import Placement, Recipe

CLASSES, WIDTH = 5, 8

PLACEMENT = Placement(channels_last=False)  # as theirs, so that last bits agree
SHARED_FLAGS = {
    "num_generations": 3,
    "epochs": 8,
    "lr": 0.02,
    "batch_size": 16,
    "warmup_length": 1,
    "ascending_epochs": 2,
    "ascenders_lr_multiplier": -0.3,
    "arch": "ResNet18",
    "exp_mode": "ascend",
}
ONE_CYCLE = {"exp_mode": "normal", "num_generations": 1, "epochs": 24, "warmup_length": 3}
SEAL = {"name": "seal", "ascent_rate": 0.3}
CS_KD = {"loss": {"name": "cs_kd"}}
PREACT = {"model": {"arch": "preact18"}}
LONG = {"name": "normal", "schedule": "long"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "normal": ({"method": {"name": "normal"}}, {"exp_mode": "normal"}),
    "long": ({"method": LONG}, ONE_CYCLE),
    "long-step": ({"method": LONG, "optimizer": {"schedule": "step"}}, {**ONE_CYCLE, "lr_policy": "step_lr"}),
    "llf": ({"method": {"name": "llf"}}, {"exp_mode": "fortuitous"}),
    "llf-layer4": (
        {"method": {"name": "llf", "split_at": "layer4"}},
        {"exp_mode": "fortuitous", "layer_threshold": "layer4"},
    ),
    "llf-layer3.1": (
        {"method": {"name": "llf", "split_at": "layer3.1"}},
        {"exp_mode": "fortuitous", "layer_threshold": "layer3.1"},
    ),
    "llf-early": ({"method": {"name": "llf", "part": "early"}}, {"exp_mode": "fortuitous", "reverse": 1}),
    "seal": ({"method": SEAL}, {}),
    "seal-layer2": ({"method": {**SEAL, "split_at": "layer2"}}, {"layer_threshold": "layer2"}),
    "seal-layer4": ({"method": {**SEAL, "split_at": "layer4"}}, {"layer_threshold": "layer4"}),
    "seal-layer3.1": ({"method": {**SEAL, "split_at": "layer3.1"}}, {"layer_threshold": "layer3.1"}),
    "seal-half": ({"method": {**SEAL, "ascent_share": 0.5}}, {"ascending_epochs": 4}),
    "seal-weaker": ({"method": {**SEAL, "ascent_rate": 0.1}}, {"ascenders_lr_multiplier": -0.1}),
    "seal-late-head-ascends": ({"method": {**SEAL, "ascend": "late", "head_ascends": True}}, {"reverse": 1}),
    "seal-late-head-descends": ({"method": {**SEAL, "ascend": "late"}}, {"reverse": 1, "fc_never_ascend": 1}),
    # No layer of theirs has that name, so none is beyond it.
    "seal-all-head-ascends": (
        {"method": {**SEAL, "ascend": "all", "head_ascends": True}},
        {"layer_threshold": "none"},
    ),
    "seal-all-head-descends": ({"method": {**SEAL, "ascend": "all"}}, {"layer_threshold": "fc"}),
    "seal-freeze": ({"method": {**SEAL, "others": "freeze"}}, {"freeze_descenders": 1}),
    # A negative learning rate turns their decay into growth.
    "seal-growth": ({"method": {**SEAL, "ascent_weight_decay": "growth"}}, {"ascenders_wd_multiplier": 1}),
    "seal-decay": ({"method": {**SEAL, "ascent_weight_decay": "decay"}}, {"ascenders_wd_multiplier": -1}),
    "seal-llf": ({"method": {**SEAL, "forget": "llf"}}, {"exp_mode": "fortuitous+ascend"}),
    "seal-constant": (
        {"method": SEAL, "optimizer": {"schedule": "constant"}},
        {"lr_policy": "constant_lr"},
    ),
    "seal-plain": (
        {
            "method": SEAL,
            "optimizer": {"momentum": 0.0, "weight_decay": 0.0},
            "loss": {"label_smoothing": 0.0},
        },
        {"momentum": 0, "weight_decay": 0, "label_smoothing": 0},
    ),
    "cs-kd": ({"method": {"name": "normal"}, **CS_KD}, {"exp_mode": "normal", "criterion": "cs_kd"}),
    "cs-kd-seal": ({"method": SEAL, **CS_KD}, {"criterion": "cs_kd"}),
    "preact18": ({"method": {"name": "normal"}, **PREACT}, {"exp_mode": "normal"}),
    # Theirs re-initialises no convolution of a shortcut, which this block has not.
    "preact18-llf-layer4.1": (
        {"method": {"name": "llf", "split_at": "layer4.1"}, **PREACT},
        {"exp_mode": "fortuitous", "layer_threshold": "layer4.1"},
    ),
    # Theirs finds norms by name before it looks for the threshold, so that the one in front of layer3's first
    # convolution is early.
    "preact18-seal": ({"method": {**SEAL, "split_at": "layer3.0.conv1"}, **PREACT}, {}),
    # At this size ResNet-50 multiplies a difference by about 10 a step, hence few of them.
    "seal-resnet50": (
        {
            "method": SEAL,
            "model": {"arch": "resnet50"},
            "budget": {"epochs": 6, "generation_length": 2},
            "batch_size": 48,
        },
        {"arch": "ResNet50", "epochs": 2, "ascending_epochs": 1, "batch_size": 48},
    ),
}
"""By name: what is special of our recipe, and the flags by which their code does the same."""


def recipe_of(name: str) -> Recipe:
    """A case: three generations of 8 epochs of 3 steps, unless it says otherwise, in float64."""
    own = CASES[name][0]
    fields: dict[str, Any] = {
        "data": {"path": "unused"},
        "budget": {"epochs": 24, "generation_length": 8},
        "batch_size": 16,
        "precision": "fp64",
        **own,
        "model": {"arch": "resnet18", "width": WIDTH, **own.get("model", {})},
        "optimizer": {"lr": 0.02, **own.get("optimizer", {})},
    }
    return Recipe.model_validate(fields)


def golden_images() -> Images:
    """Waves whose direction is that of their class, under noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % CLASSES
        angle = (np.pi * labels / CLASSES)[:, None, None]
        wave = 128 + 60 * np.sin(0.7 * (np.cos(angle) * x + np.sin(angle) * y))
        noise = rng.integers(-60, 60, (count, 32, 32, 3))
        return (wave[..., None] + noise).astype(np.uint8), labels.astype(np.int64)

    return Images.from_arrays(split(48), split(25), identity="waves", classes=CLASSES)
