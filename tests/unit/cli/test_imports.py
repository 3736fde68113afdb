"""What is imported before a command knows whether it has anything to compute."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import torch

from seal_ray.networks import outline, resnet, stages
from seal_ray.phases.optimizers import OPTIMIZERS, REFUSED, TORCH

REPOSITORY = Path(__file__).parents[3]
HEAVY = ("torch", "torchvision", "ray", "wandb", "matplotlib")
COMMANDS = {
    "validate": ["validate", "jobs/runs/laptop/seal.yaml"],
    "validate adamw": ["validate", "jobs/runs/laptop/llf.yaml", "--set", "recipe.optimizer=adamw"],
    "validate analyses": ["validate", "jobs/runs/laptop/llf.yaml", "--set", "analyses=[depth, curvature]"],
    "validate sweep": ["validate", "jobs/sweeps/laptop.yaml"],
    "validate evaluation": ["validate", "jobs/evaluations/transfer.yaml"],
    "runs": ["runs", "--storage", "tests/data/release-0.1.0"],
    "optimizers": ["optimizers"],
    "train: field": ["train", "jobs/runs/laptop/seal.yaml", "--set", "recipe.optimizer.momentun=0.3"],
    "train: data": ["train", "jobs/runs/laptop/seal.yaml", "--set", "recipe.data.path=nowhere"],
    "plan: field": ["plan", "jobs/runs/laptop/seal.yaml", "--set", "recipe.method.ascent_raet=0.3"],
    "sweep: field": ["sweep", "jobs/sweeps/laptop.yaml", "--set", "seeds=many"],
    "sweep: data": ["sweep", "jobs/sweeps/laptop.yaml", "--set", "recipe.data.path=nowhere"],
}
PROGRAM = f"""
import contextlib, io, json, sys
from seal_ray.cli import app
from seal_ray.errors import SealRayError
ended = {{}}
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            app(words, standalone_mode=False)
            error = ""
        except SealRayError as raised:
            error = str(raised)
    ended[name] = [error, [module for module in {HEAVY} if module in sys.modules]]
print(json.dumps(ended))
"""


def test_what_only_reads_yaml_or_folders_imports_nothing_that_computes() -> None:
    words = [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    ended = json.loads(done.stdout.splitlines()[-1])
    assert {name: imported for name, (_, imported) in ended.items() if imported} == {}
    right = {name for name, (error, _) in ended.items() if not error}
    assert right == {name for name in COMMANDS if ":" not in name}
    assert "did you mean 'momentum'?" in ended["train: field"][0]
    assert "nowhere holds no data set" in ended["sweep: data"][0]


def test_the_table_of_optimizers_is_torchs() -> None:
    classes = {
        cls.__name__.lower(): cls
        for cls in vars(torch.optim).values()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    }
    assert {*OPTIMIZERS} == classes.keys() - REFUSED.keys() - {"optimizer"}
    for name, table in TORCH.items():
        arguments = inspect.signature(getattr(torch.optim, name)).parameters
        ours = {"params", "maximize", "foreach", "capturable", "differentiable", "fused"}
        assert table == {key: one.default for key, one in arguments.items() if key not in ours}, name


def test_the_table_of_stages_is_that_of_the_networks() -> None:
    for arch in resnet.RESNETS:
        assert stages(outline(arch, classes=2)) == resnet.STAGES
