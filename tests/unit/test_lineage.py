"""Which changes of a recipe make it other work, which do not, and what exactly is hashed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from seal_ray.data.beton import Dataset
from seal_ray.errors import ConfigError
from seal_ray.launch import prepare_job
from seal_ray.lineage import generation_keys, run_id
from seal_ray.methods import METHODS
from seal_ray.recipe import Job, Placement, Recipe
from tests.runs import CASES, tiny_recipe

BASE: dict[str, Any] = {
    "data": {"path": "here"},
    "model": {"arch": "resnet18", "width": 4},
    "method": {"name": "seal", "ascent_rate": 0.3},
    "budget": {"epochs": 12, "generation_length": 4},
    "optimizer": {},
    "loss": {},
    "augment": {},
    "batch_size": 12,
}

CHANGES: dict[str, Any] = {
    "data.per_class": 8,
    "data.label_noise": 0.1,
    "model.arch": "resnet34",
    "model.stem": "cifar",
    "model.width": 8,
    "model.dropout": 0.1,
    "method.split_at": "layer2",
    "budget.generation_length": 6,
    "optimizer.lr": 0.2,
    "optimizer.momentum": 0.8,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "step",
    "optimizer.warmup_share": 0.5,
    "optimizer.clip_norm": 1.0,
    "loss.label_smoothing": 0.0,
    "augment.crop_padding": 2,
    "augment.flip": False,
    "batch_size": 24,
    "shards": 2,
    "precision": "bf16",
    "seed": 1,
}
"""Every field that training of the first generation reads, with another value."""

OTHERS = {
    "data.path",  # data enters by identity
    "optimizer.name",  # there is one
    "budget.epochs",  # more generations leave the earlier ones as they were
    "method",  # by what its phases say, below
    "model.init_from",  # initial weights enter by digest, below
    "model.init_sha256",
    "model.new_head",
}


def changed(field: str, value: Any) -> Recipe:
    fields: dict[str, Any] = json.loads(json.dumps(BASE))
    *sections, last = field.split(".")
    inside = fields
    for section in sections:
        inside = inside[section]
    inside[last] = value
    return Recipe.model_validate(fields)


def key(recipe: Recipe, generation: int = 0, identity: str = "images") -> str:
    return generation_keys(recipe, identity)[generation]


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        elif name == "budget":
            yield from ("budget.epochs", "budget.generation_length")
        else:
            yield f"{prefix}{name}"


def test_the_cases_below_cover_every_field_of_a_recipe() -> None:
    assert set(leaves(Recipe)) == (set(CHANGES) - {"method.split_at"}) | OTHERS


@pytest.mark.parametrize("field", CHANGES)
def test_what_training_reads_changes_the_first_generation_and_the_run(field: str) -> None:
    base, other = Recipe.model_validate(BASE), changed(field, CHANGES[field])
    assert key(base) != key(other)
    assert run_id(base, "images") != run_id(other, "images")


def test_no_two_changes_are_taken_for_the_same_work() -> None:
    recipes = [Recipe.model_validate(BASE), *(changed(f, v) for f, v in CHANGES.items())]
    keys = [key(recipe, g) for recipe in recipes for g in range(2)]
    assert all(one != two for one, two in combinations(keys, 2))


def test_data_enters_by_identity_and_never_by_path() -> None:
    here, there = Recipe.model_validate(BASE), changed("data.path", "elsewhere")
    assert run_id(here, "images") == run_id(there, "images")
    assert key(here) != key(here, identity="other images")


def test_initial_weights_enter_by_digest_and_never_by_path() -> None:
    def begun_with(path: str, digest: str) -> Recipe:
        model = {"arch": "resnet18", "width": 4, "init_from": path, "init_sha256": digest}
        return Recipe.model_validate({**BASE, "model": model})

    here, there = begun_with("a.pth", "0" * 64), begun_with("b", "0" * 64)
    other = begun_with("a.pth", "1" * 64)
    assert run_id(here, "images") == run_id(there, "images")
    assert len({key(recipe, g) for recipe in (Recipe.model_validate(BASE), here, other) for g in (0, 1)}) == 6
    with pytest.raises(ConfigError, match=r"model.init_from: a.pth is not read yet"):
        run_id(changed("model.init_from", "a.pth"), "images")


def test_more_generations_leave_the_earlier_ones_as_they_were() -> None:
    short, long = Recipe.model_validate(BASE), changed("budget.epochs", 20)
    assert [key(short, g) for g in range(3)] == [key(long, g) for g in range(3)]
    assert len({key(long, g) for g in range(5)}) == 5
    assert run_id(short, "images") != run_id(long, "images")


def test_one_long_schedule_depends_on_the_whole_budget() -> None:
    recipes = [
        tiny_recipe({"name": "normal", "schedule": schedule}, budget={"epochs": e, "generation_length": 4})
        for schedule in ("restart", "long")
        for e in (12, 20)
    ]
    restart, restart_longer, long, longer = (key(recipe) for recipe in recipes)
    assert restart == restart_longer
    assert len({restart, long, longer}) == 3


def test_methods_that_start_alike_share_their_first_generation() -> None:
    alike = [c for c in CASES if c["name"] in ("normal", "llf", "seal", "ke", "dsd")]
    alike = [c for c in alike if c.get("schedule") != "long" and "split_at" not in c]
    assert {c["name"] for c in alike} == {"normal", "llf", "seal", "ke", "dsd"}
    assert len({key(tiny_recipe(c)) for c in alike}) == 1
    apart = ["normal", "sam", "ban", {"name": "normal", "schedule": "long"}, {"name": "sam", "rho": 0.1}]
    assert len({key(tiny_recipe(c)) for c in apart}) == len(apart)


def test_every_setting_of_every_method_is_another_run() -> None:
    ids = [run_id(tiny_recipe(c), "images") for c in CASES]
    assert len({name.split("-")[-1] for name in ids}) == len(CASES)
    seconds = [key(tiny_recipe(c), 1) for c in CASES]
    assert len(set(seconds)) == len(CASES)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("seal", "ascent_share", 0.5),
        ("seal", "ascent_rate", 0.02),
        ("seal", "ascent_rate", {"rise": 0.5}),
        ("seal", "ascend", "late"),
        ("seal", "head_ascends", True),
        ("seal", "others", "freeze"),
        ("seal", "ascent_weight_decay", "growth"),
        ("seal", "forget", "llf"),
        ("seal", "ascent_loss", "confident_error"),
        ("llf", "init", "model"),
        ("ke", "keep", 0.5),
        ("ke", "mask", "wels"),
        ("dsd", "prune_share", 0.5),
        ("dsd", "dense_share", 0.5),
        ("dsd", "sparse_share", 0.5),
        ("ban", "weight", 0.5),
        ("ban", "temperature", 2.0),
    ],
)
def test_a_setting_of_forgetting_changes_the_generations_that_forget(
    name: str, field: str, value: Any
) -> None:
    one, other = tiny_recipe(name), tiny_recipe({"name": name, field: value})
    assert key(one, 0) == key(other, 0)
    assert key(one, 1) != key(other, 1)
    assert key(one, 2) != key(other, 2)


def test_a_run_is_called_by_its_method_and_seed() -> None:
    for name in METHODS:
        recipe = tiny_recipe(name, seed=12)
        method, seed, digits = run_id(recipe, "images").split("-")
        assert (method, seed) == (name, "s12")
        assert len(digits) == 10
        assert int(digits, 16) >= 0


def sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def group(part: str, **fields: Any) -> dict[str, Any]:
    plain = {"type": "Group", "part": part, "lr": 1.0, "weight_decay": 1.0, "ascend": False, "loss": None}
    return {**plain, **fields}


def phase(name: str, epochs: int, early: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "Phase",
        "name": name,
        "epochs": epochs,
        "groups": [early or group("early"), group("late")],
        "edit": None,
        "loss": {"type": "CrossEntropy"},
        "step": {"type": "Descend"},
        "fresh": True,
        "cycle": "generation",
    }


def test_a_run_id_is_the_hash_of_exactly_what_is_written_here() -> None:
    common = {
        "semantics": 1,
        "data": ["images", None, 0.0],
        "model": {"arch": "resnet18", "stem": "imagenet", "width": 4, "dropout": 0.0},
        "augment": {"crop_padding": 4, "flip": True},
        "optimizer": ["sgd", 0.9, 5e-4, None],
        "loss": {"label_smoothing": 0.1},
        "batch": [12, 1],
        "precision": "fp32",
        "seed": 0,
        "split_at": "layer3",
        "carry": [],
    }
    # One epoch of warm-up, then half a cosine over three.
    rates = [0.1, *(0.05 * (1 + math.cos(math.pi * e / 3)) for e in range(3))]
    climbing = group("early", lr=0.3, weight_decay=0.0, ascend=True)
    keys = [""]
    for phases in (
        [phase("learn", 4)],
        [phase("ascend", 1, climbing), phase("relearn", 3)],
        [phase("ascend", 1, climbing), phase("relearn", 3)],
    ):
        keys.append(sha({"before": keys[-1], "common": common, "phases": phases, "rates": rates}))
    recipe = Recipe.model_validate(BASE)
    assert [key(recipe, g) for g in range(3)] == keys[1:]
    digest = sha({"key": keys[-1], "epochs": 12, "length": 4})
    assert run_id(recipe, "images") == f"seal-s0-{digest[:10]}"


def test_another_process_gives_the_same_ids() -> None:
    code = (
        "from tests.runs import CASES, tiny_recipe; from seal_ray.lineage import run_id; "
        "print([run_id(tiny_recipe(c), 'images') for c in CASES])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == str([run_id(tiny_recipe(c), "images") for c in CASES])


def test_a_recipe_that_went_through_yaml_is_the_same_run() -> None:
    import yaml

    for case in CASES:
        recipe = tiny_recipe(case)
        back = Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))
        assert run_id(back, "images") == run_id(recipe, "images")


PLACEMENTS: dict[str, Any] = {
    "workers": 2,
    "use_gpu": True,
    "storage": "elsewhere",
    "loader": "torch",
    "threads": 3,
    "channels_last": False,
    "compile": True,
    "deterministic": False,
    "keep": {"moments": (), "checkpoints": 7},
    "eval_every": 5,
    "track_examples": True,
    "retries": 0,
    "tracking": {"wandb": "off", "project": "p", "entity": "e"},
}


@pytest.mark.parametrize("field", Placement.model_fields)
def test_where_a_run_is_executed_never_changes_which_it_is(
    field: str, prepared: Callable[[str], Dataset]
) -> None:
    recipe = tiny_recipe(data={"path": str(prepared("raw").folder)})
    usual = Job(name="one", recipe=recipe)
    other = Job(name="two", recipe=recipe, placement=Placement.model_validate({field: PLACEMENTS[field]}))
    assert usual.placement != other.placement
    assert prepare_job(usual).run_id == prepare_job(other).run_id


def test_how_images_are_stored_changes_the_run(prepared: Callable[[str], Dataset]) -> None:
    raw, jpeg = (
        prepare_job(Job(name="x", recipe=tiny_recipe(data={"path": str(prepared(encoding).folder)})))
        for encoding in ("raw", "jpeg")
    )
    assert raw.run_id != jpeg.run_id


def test_a_whole_number_is_the_same_as_its_float() -> None:
    for whole, point in ((1, 1.0), (2, 2.0)):
        ids = {
            run_id(
                tiny_recipe(
                    {"name": "ban", "weight": number, "temperature": number},
                    optimizer={"lr": number, "weight_decay": number, "momentum": 0 * number},
                    data={"path": "x", "label_noise": 0 * number},
                ),
                "images",
            )
            for number in (whole, point)
        }
        assert len(ids) == 1
