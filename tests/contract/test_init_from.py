"""Runs that begin with weights from elsewhere: which ones they are, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.networks import build
from seal_ray.recipe import Recipe
from seal_ray.runs.checkpoint import weights_sha256
from seal_ray.runs.lineage import run_id
from seal_ray.runs.weights import beginning, pinned
from seal_ray.streams import stream
from seal_ray.training.loop import fit
from tests.contract.test_branching import same_run, train_in
from tests.runs import (
    checkpoint,
    on_ranks,
    open_store,
    same_state,
    same_tensors,
    tiny_images,
    tiny_recipe,
    train_run,
)

SEAL = {"name": "seal", "ascent_rate": 0.3, "forget": "llf"}
BUDGET = {"epochs": 6, "generation_length": 3}


def weights(classes: int = 3, seed: int = 7, width: int = 4) -> dict[str, Tensor]:
    """A network's weights that no seed of a test draws, its running statistics moved."""
    network = build("resnet18", classes=classes, stem="imagenet", width=width, generator=stream(seed, "x"))
    network.train()
    network(torch.randn(4, 3, 16, 16, generator=stream(seed, "images")))
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def begun(file: Path | str, method: Any = "normal", **changes: Any) -> Recipe:
    model = {"arch": "resnet18", "width": 4, "init_from": str(file), **changes.pop("model", {})}
    return tiny_recipe(method, model=model, budget=BUDGET, **changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def initial(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    """The weights before the first step."""
    train_run(recipe, folder, epochs=1)
    return open_store(pinned(recipe), folder).moment("init", 0).weights


def test_a_run_begins_with_a_state_dict_or_the_moment_of_another_run(file: Path, tmp_path: Path) -> None:
    same_tensors(initial(begun(file), tmp_path / "of file"), weights(), "weights")
    torch.save({"state_dict": {f"module.{n}": t for n, t in weights().items()}}, tmp_path / "theirs.pth")
    same_tensors(initial(begun(tmp_path / "theirs.pth"), tmp_path / "of pth"), weights(), "weights")

    source = tiny_recipe(budget=BUDGET)
    train_run(source, tmp_path / "source")
    moment = tmp_path / "source/moments/g001-relearned"
    learned = open_store(source, tmp_path / "source").moment("relearned", 1).weights
    same_tensors(initial(begun(moment), tmp_path / "of moment"), learned, "weights")
    assert pinned(begun(moment)).model.init_sha256 == weights_sha256(learned)


def test_a_classifier_of_another_number_of_classes_is_drawn_from_the_seed(tmp_path: Path) -> None:
    save_file(weights(classes=5), tmp_path / "five.safetensors")
    recipe = begun(tmp_path / "five.safetensors", seed=3)
    found = initial(recipe, tmp_path / "run")
    drawn = initial(tiny_recipe(seed=3), tmp_path / "plain")
    theirs = weights(classes=5)
    for name, tensor in found.items():
        expected = drawn if name.startswith("fc.") else theirs
        assert torch.equal(tensor, expected[name]), name
    said = beginning(pinned(recipe).model, 3)
    assert said.endswith("; a new classifier of 3 classes in place of theirs of 5")
    assert weights_sha256(theirs)[:10] in said
    assert "a new classifier" not in beginning(pinned(recipe).model, 5)


def test_a_new_head_is_drawn_on_demand_and_another_run(file: Path, tmp_path: Path) -> None:
    recipe = begun(file, seed=3, model={"new_head": True})
    found = initial(recipe, tmp_path / "run")
    drawn, theirs = initial(tiny_recipe(seed=3), tmp_path / "plain"), weights()
    for name, tensor in found.items():
        assert torch.equal(tensor, (drawn if name.startswith("fc.") else theirs)[name]), name
    kept, images = begun(file, seed=3), tiny_images()
    assert run_id(pinned(kept), images.identity) != run_id(pinned(recipe), images.identity)


def undisturbed_and_interrupted(file: str, folder: str) -> None:
    recipe = begun(file, SEAL)
    train_run(recipe, f"{folder}/undisturbed")
    train_run(recipe, f"{folder}/interrupted", epochs=1)
    for _ in range(1, recipe.budget.epochs):
        train_run(pinned(recipe), f"{folder}/interrupted", epochs=1)


def test_such_a_run_resumed_at_every_epoch_boundary_is_bit_identical(file: Path, tmp_path: Path) -> None:
    on_ranks(2, undisturbed_and_interrupted, str(file), str(tmp_path))
    identity = open_store(begun(file, SEAL), tmp_path).run_id
    assert identity != open_store(tiny_recipe(SEAL, budget=BUDGET), tmp_path).run_id
    for generation in range(2):
        for epoch in range(3):
            same_state(
                checkpoint(tmp_path / "undisturbed", identity, generation, epoch),
                checkpoint(tmp_path / "interrupted", identity, generation, epoch),
            )


def test_workers_share_the_beginning_too(file: Path, tmp_path: Path) -> None:
    recipe = begun(file, SEAL)
    for workers in (1, 2):
        on_ranks(workers, train_run, recipe, str(tmp_path / str(workers)))
    found = [open_store(pinned(recipe), tmp_path / name).moment("relearned", 1).weights for name in "12"]
    same_tensors(*found, "weights")


def test_runs_that_begin_alike_share_a_generation_and_others_do_not(file: Path, tmp_path: Path) -> None:
    leader, follower = pinned(begun(file)), pinned(begun(file, SEAL))
    train_in(tmp_path / "shared", leader)
    taken = train_in(tmp_path / "shared", follower)
    assert taken is not None
    assert taken.generation == 0
    train_in(tmp_path / "alone", follower, share=False)
    same_run(follower, tmp_path / "shared", tmp_path / "alone")
    assert train_in(tmp_path / "shared", tiny_recipe(SEAL, budget=BUDGET), epochs=1) is None


def test_what_is_forgotten_is_drawn_from_the_seed_and_not_from_the_weights(
    file: Path, tmp_path: Path
) -> None:
    llf = {"name": "llf", "init": "model"}
    found = []
    for name, recipe in (("begun", begun(file, llf)), ("drawn", tiny_recipe(llf, budget=BUDGET))):
        train_run(recipe, tmp_path / name, epochs=4)
        found.append(open_store(recipe, tmp_path / name).moment("forgotten", 1).weights)
    ours, theirs = found
    assert torch.equal(ours["layer4.0.conv1.weight"], theirs["layer4.0.conv1.weight"])
    assert not torch.equal(ours["conv1.weight"], theirs["conv1.weight"])


def test_a_run_that_has_begun_needs_the_weights_no_longer(file: Path, tmp_path: Path) -> None:
    recipe = pinned(begun(file))
    train_run(recipe, tmp_path / "run", epochs=2)
    file.unlink()
    assert [result.position.epoch for result in train_run(recipe, tmp_path / "run", epochs=1)] == [2]


def test_weights_that_do_not_fit_or_are_others_are_refused(file: Path, tmp_path: Path) -> None:
    def refused(recipe: Recipe, kind: type[Exception], said: str) -> None:
        with pytest.raises(kind, match=said):
            next(iter(fit(recipe, tiny_images())))

    wide = (
        r"does not fit resnet18 .* width 8: it has conv1.weight of shape \(4, 3, 7, 7\), not \(8, 3, 7, 7\)"
    )
    refused(begun(file, model={"width": 8}), CheckpointError, wide)
    refused(begun(file, model={"stem": "cifar"}), CheckpointError, r"stem cifar, .* not \(4, 3, 3, 3\)")
    refused(begun(file, model={"arch": "resnet50"}), CheckpointError, "it lacks layer1.0.conv3.weight")
    refused(begun(tmp_path / "gone.pth"), CheckpointError, "gone.pth: no such file")
    refused(begun(tmp_path / "net.h5"), ConfigError, "weights are read from .safetensors")
    (tmp_path / "empty").mkdir()
    refused(begun(tmp_path / "empty"), CheckpointError, "empty: no manifest.json")
    known = pinned(begun(file))
    save_file(weights(seed=8), file)
    refused(known, CheckpointError, "theirs.safetensors: holds the weights .* but model.init_sha256 is")
    train_run(tiny_recipe(budget=BUDGET), tmp_path / "source", epochs=3)
    moment = tmp_path / "source/moments/g000-relearned"
    data = (moment / "weights.safetensors").read_bytes()
    (moment / "weights.safetensors").write_bytes(data[:-1] + b"\x7f")
    refused(begun(moment), CheckpointError, "weights.safetensors: truncated or altered")
