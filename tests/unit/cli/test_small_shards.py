"""Shards of one image, of which batch norm may see a single value: refused where the data is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from seal_ray.networks import build
from tests.unit.conftest import Command


def refused_by_torch(stem: str) -> bool:
    """Whether torch trains on one image of the digits' size."""
    network = build("resnet18", classes=2, generator=torch.Generator(), width=4, stem=stem).train()
    try:
        network(torch.zeros(1, 3, 32, 32))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("command", ["validate", "plan", "sweep"])
def test_one_image_a_shard_is_refused_where_torch_refuses_it(
    command: str, stem: str, digits: Path, tmp_path: Path, run: Command
) -> None:
    fields = {
        "recipe": {
            "data": {"path": str(digits), "per_class": 2},
            "model": {"arch": "resnet18", "width": 4, "stem": stem},
            "method": "normal",
            "budget": {"epochs": 1, "generation_length": 1},
            "batch_size": 4,
            "shards": 4,
        },
        "placement": {"storage": str(tmp_path / "runs"), "loader": "torch", "tracking": {"wandb": "off"}},
        "axes": {"seed": [0]},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(fields))
    code, _, err = run(command, tmp_path / "one.yaml", *(["--in-process"] if command == "sweep" else []))
    if not refused_by_torch(stem):
        assert (code, err) == (0, "")
        return
    assert code == 2
    assert err.startswith(
        "error: recipe.shards: shards of one image cannot train this network at 32 x 32 pixels"
    )
    assert "use fewer shards, or a larger batch_size" in err
    assert not (tmp_path / "runs").exists()
