"""Which changes of a recipe make it other work, which do not, and what exactly is hashed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, make_dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from seal_ray.data.prepared import Dataset
from seal_ray.distributed.launch import prepare_job
from seal_ray.errors import ConfigError
from seal_ray.methods import METHODS, Method
from seal_ray.methods.base import LEARN
from seal_ray.methods.seal import Seal
from seal_ray.phases import edits, losses, schedule, steps
from seal_ray.phases.schedule import Group, Phase
from seal_ray.recipe import Augment, Job, Placement, Recipe
from seal_ray.runs.lineage import _kind, generation_keys, run_id
from tests.runs import AS_LLF, CASES, tiny_recipe

BASE: dict[str, Any] = {
    "data": {"path": "here"},
    "model": {"arch": "resnet18", "width": 4},
    "method": {"name": "seal", "ascent_rate": 0.3},
    "budget": {"epochs": 12, "generation_length": 4},
    "optimizer": {},
    "loss": {},
    "averaging": {},
    "augment": {},
    "batch_size": 12,
}

CHANGES: dict[str, Any] = {
    "data.per_class": 8,
    "data.label_noise": 0.1,
    "data.holdout": 0.2,
    "model.arch": "resnet34",
    "model.stem": "cifar",
    "model.width": 8,
    "model.dropout": 0.1,
    "method.split_at": "layer2",
    "budget.generation_length": 6,
    "optimizer.lr": 0.2,
    "optimizer.momentum": 0.8,
    "optimizer.name": "adamw",
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "step",
    "optimizer.warmup_share": 0.5,
    "optimizer.clip_norm": 1.0,
    "loss.label_smoothing": 0.0,
    "averaging.name": "ema",
    "augment.then": ["cutout"],
    "augment.crop_padding": 2,
    "augment.flip": False,
    "batch_size": 24,
    "shards": 2,
    "precision": "bf16",
    "seed": 1,
}
"""Every field that training of the first generation reads, with another value."""

OTHERS = {
    "loss.name",  # of plugin files, below
    "data.path",  # data enters by identity
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
        elif is_dataclass(field.default):  # a choice by name
            yield from (f"{prefix}{name}.{key}" for key in ("name", *vars(field.default)))
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
    names = {"normal", "llf", "seal", "ke", "dsd", *AS_LLF}
    alike = [c for c in CASES if c["name"] in names]
    alike = [c for c in alike if c.get("schedule") != "long" and "split_at" not in c]
    assert {c["name"] for c in alike} == names
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
        ("ke", "part", "early"),
        ("zap", "every", 2),
        ("zap", "zap_share", 0.25),
        ("shrink_perturb", "shrink", 0.6),
        ("shrink_perturb", "perturb", 0.2),
        ("dnr", "share", 0.3),
        ("dnr", "batches", 4),
        ("swr", "share", 0.3),
        ("swr", "batches", 0),
        ("redo", "threshold", 0.2),
        ("redo", "batches", 4),
        ("dash", "floor", 0.2),
        ("dash", "batches", 4),
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


def told(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "fields": fields}


def phase(name: str, epochs: int, early: dict[str, Any] | None = None) -> dict[str, Any]:
    groups = [early or told("Group", part="early"), told("Group", part="late")]
    return told("Phase", name=name, epochs=epochs, groups=groups)


def test_a_run_id_is_the_hash_of_exactly_what_is_written_here() -> None:
    common = {
        "semantics": 2,
        "data": "images",
        "weights": None,
        "recipe": {
            "model": {"arch": "resnet18", "width": 4},
            "augment": {"flip": False},
            "optimizer": {"momentum": 0.8},
            "batch_size": 12,
            "shards": 2,
        },
        "split_at": "layer3",
        "carry": [],
    }
    # One epoch of warm-up, then half a cosine over three.
    rates = [0.1, *(0.05 * (1 + math.cos(math.pi * e / 3)) for e in range(3))]
    climbing = told("Group", part="early", lr=0.3, weight_decay=0.0, ascend=True)
    keys = [""]
    for phases in (
        [phase("learn", 4)],
        [phase("ascend", 1, climbing), phase("relearn", 3)],
        [phase("ascend", 1, climbing), phase("relearn", 3)],
    ):
        keys.append(sha({"before": keys[-1], "common": common, "phases": phases, "rates": rates}))
    # Written out or left out, a default is the same.
    fields = {"augment": {"flip": False, "crop_padding": 4}, "optimizer": {"momentum": 0.8}, "shards": 2}
    recipe = Recipe.model_validate({**BASE, **fields})
    assert [key(recipe, g) for g in range(3)] == keys[1:]
    digest = sha({"key": keys[-1], "epochs": 12, "length": 4})
    assert run_id(recipe, "images") == f"seal-s0-{digest[:10]}"


class CutoutAugment(Augment):
    cutout: int = 0


class CutoutRecipe(Recipe):
    augment: CutoutAugment = CutoutAugment()
    ema: float | None = None


@pytest.mark.parametrize("method", [{"name": "seal", "ascent_rate": 0.3}, {"name": "ban"}, {"name": "dsd"}])
def test_a_new_field_that_is_off_changes_no_id_and_one_that_is_on_does(method: dict[str, Any]) -> None:
    before = Recipe.model_validate({**BASE, "method": method})
    after = CutoutRecipe.model_validate({**BASE, "method": method})
    assert generation_keys(after, "images") == generation_keys(before, "images")
    for change in ({"augment": {"cutout": 8}}, {"ema": 0.999}):
        changed = CutoutRecipe.model_validate({**BASE, "method": method, **change})
        assert run_id(changed, "images") != run_id(before, "images")


def test_a_new_field_of_a_phase_that_is_off_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(value: int) -> tuple[str, ...]:
        named = {"__module__": Group.__module__, "__qualname__": "Group"}
        new = make_dataclass("Group", [("nesterov", int, 0)], bases=(Group,), frozen=True, namespace=named)
        groups = (new("early", nesterov=value), Group("late"))
        monkeypatch.setattr(Seal, "phases", lambda *_: (Phase("learn", 4, groups),))
        return generation_keys(Recipe.model_validate(BASE), "images")

    before = keys(0)
    monkeypatch.setattr(Seal, "phases", lambda *_: (Phase("learn", 4, LEARN),))
    assert generation_keys(Recipe.model_validate(BASE), "images") == before
    assert keys(1)[0] != before[0]


EDIT = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Scale:
    factor: float = 0.5

    def __call__(self, network, context):
        for parameter in network.parameters():
            parameter.data.mul_({how})
"""


def edit_from(folder: Path, how: str) -> Any:
    """The class `Scale` of a file of the user's, as a plugin is loaded: a module of its own name."""
    file = folder / "scale.py"
    folder.mkdir()
    file.write_text(EDIT.format(how=how))
    spec = importlib.util.spec_from_file_location(f"scale_{folder.name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Scale


def test_edits_of_one_name_from_different_files_are_different_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_with(edit: Any) -> str:
        monkeypatch.setattr(Seal, "phases", lambda *_: (Phase("learn", 4, LEARN, edit=edit),))
        return key(Recipe.model_validate(BASE))

    here, again = edit_from(tmp_path / "here", "0.5"), edit_from(tmp_path / "copy", "0.5")
    changed = edit_from(tmp_path / "changed", "0.6")
    assert key_with(here()) == key_with(again())
    assert len({key_with(edit) for edit in (None, here(), here(0.4), changed())}) == 4

    heirs = [make_dataclass("Heir", [], bases=(base,), frozen=True) for base in (here, changed)]
    for heir in heirs:
        heir.__module__ = __name__
    assert key_with(heirs[0]()) != key_with(heirs[1]())  # what they inherit differs

    @dataclass(frozen=True)
    class Made(here):  # type: ignore[misc, valid-type]
        pass

    with pytest.raises(
        ConfigError, match=r"Made is defined inside a function, on whose values it may depend"
    ):
        key_with(Made())


def test_a_users_module_that_is_called_as_one_of_python_is_told_by_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kind(name: str, how: str) -> Any:
        edit = edit_from(tmp_path / name, how)
        monkeypatch.setitem(sys.modules, "profile", sys.modules[edit.__module__])
        edit.__module__ = "profile"
        return _kind(edit)

    one, other = kind("a", "0.5"), kind("b", "0.6")
    assert one != other
    assert [one[0], other[0]] == ["Scale", "Scale"]


NOTEBOOK = """
import linecache
from dataclasses import dataclass
from seal_ray.errors import ConfigError
from seal_ray.runs.lineage import _source_sha256

def cell(name, value, kept=True):
    lines = ["FACTOR = " + str(value), "@dataclass(frozen=True)", "class Scale:", "    def __call__(self):"]
    lines.append("        return FACTOR")
    if kept:
        linecache.cache[name] = (0, None, [line + chr(10) for line in lines], name)
    exec(compile(chr(10).join(lines), name, "exec"), globals())
    return Scale

one, same, other = cell("<cell 1>", 1), cell("<cell 2>", 1), cell("<cell 3>", 2)
print(_source_sha256(one) == _source_sha256(same), _source_sha256(one) == _source_sha256(other))
try:
    _source_sha256(cell("<gone>", 1, kept=False))
except ConfigError as error:
    print(error)
"""


def test_classes_of_a_notebook_are_told_apart_by_their_functions() -> None:
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=True, cwd=root
    )
    compared, refused = run.stdout.splitlines()
    assert compared == "True False"
    assert "the source of Scale cannot be read" in refused
    assert "define it in a file" in refused


@pytest.mark.parametrize(
    "value", [print, Phase, {1: 2}, np.zeros(3)], ids=["function", "class", "keys", "array"]
)
def test_what_cannot_be_told_apart_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seal, "phases", lambda *_: (Phase("learn", 4, LEARN, edit=value),))
    with pytest.raises(
        ConfigError, match=r"a phase holds .*, of which it cannot be told whether two are the same"
    ):
        key(Recipe.model_validate(BASE))


def test_no_two_classes_of_the_package_that_phases_hold_have_one_name() -> None:
    modules = [edits, losses, schedule, steps, *(sys.modules[m.__module__] for m in METHODS.values())]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
        if not issubclass(value, Method)
    }
    assert len({cls.__qualname__ for cls in classes}) == len(classes) > 12


def test_another_process_gives_the_same_ids() -> None:
    code = (
        "from tests.runs import CASES, tiny_recipe; from seal_ray.runs.lineage import run_id; "
        "print([run_id(tiny_recipe(c), 'images') for c in CASES])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parents[3],
    )
    assert run.stdout.strip() == str([run_id(tiny_recipe(c), "images") for c in CASES])


def test_a_recipe_that_went_through_yaml_is_the_same_run() -> None:
    for case in CASES:
        recipe = tiny_recipe(case)
        back = Recipe.model_validate(YAML(typ="safe", pure=True).load(recipe.to_yaml()))
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
    "resident": "off",
    "timeout_s": 60,
    "cuda_graphs": "off",
    "keep": {"moments": (), "checkpoints": 7},
    "gpus_per_worker": 0.25,
    "checkpoint_every": {"seconds": 60},
    "eval_every": 5,
    "track_examples": True,
    "metrics": ("ece",),
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
