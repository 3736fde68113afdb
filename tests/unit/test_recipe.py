import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from seal_ray.config.document import dump, override, read
from seal_ray.errors import ConfigError
from seal_ray.methods import METHODS
from seal_ray.methods.llf import Llf
from seal_ray.methods.normal import Normal
from seal_ray.methods.seal import Seal
from seal_ray.networks import RESNETS
from seal_ray.phases.schedule import Budget, Rise, Schedule
from seal_ray.phases.steps import NoisyGradient
from seal_ray.recipe import MODELS, Job, Placement, Recipe, dump_job, load_job

ROOT = Path(__file__).parents[2]
STAGES = ("bn1", "layer1", "layer2", "layer3", "layer4", "fc")
MINIMAL = {"data": {"path": "x"}, "method": "seal", "budget": {"epochs": 16, "generation_length": 8}}

FULL = """\
name: tiny-imagenet-seal
recipe:
  data: {path: data/tiny-imagenet-200, per_class: null, label_noise: 0.0, holdout: 0.0}
  model: {arch: resnet50, stem: imagenet, width: 64, dropout: 0.0, init_from: null, init_sha256: null,
    new_head: false}
  method: {name: seal, split_at: layer3, ascent_share: 0.25, ascent_rate: 0.01}
  budget: {epochs: 1600, generation_length: 160}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4, schedule: cosine,
    warmup_share: 0.125, clip_norm: null, nesterov: false}
  loss: {name: ce, label_smoothing: 0.1}
  averaging: {name: none}
  augment: {crop_padding: 4, flip: true}
  batch_size: 32
  shards: 1
  precision: fp32
  seed: 0
placement:
  workers: 1
  use_gpu: auto
  gpus_per_worker: 1.0
  storage: runs
  loader: ffcv
  threads: auto
  channels_last: true
  compile: false
  deterministic: true
  resident: auto
  cuda_graphs: auto
  keep:
    moments: [ascended, relearned]
    checkpoints: 2
  checkpoint_every: {epochs: 1, seconds: null}
  eval_every: 1
  track_examples: false
  metrics: []
  retries: 3
  timeout_s: 1800
  tracking:
    wandb: auto
    project: null
    entity: null
    group: null
    tags: []
    setting: null
    system_metrics: true
    tensorboard: false
analyses: {what: [], moments: null, preset: quick, settings: {}}
"""


def file(folder, text, name="trial.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def minimal(folder, extra=""):
    text = "recipe:\n  data: {path: x}\n  method: seal\n  budget: {epochs: 16, generation_length: 8}\n"
    return file(folder, text + extra)


def numbers(low, high):
    return st.floats(low, high, exclude_min=True, exclude_max=True) | st.just((low + high) / 2)


SHARES = st.floats(0.001, 0.4)
FIELDS = {
    "normal": {"schedule": st.sampled_from(["restart", "long"])},
    "seal": {
        "ascent_share": SHARES,
        "ascent_rate": numbers(0, 10)
        | st.builds(
            Rise, rise=numbers(0, 9), start=numbers(0, 1), factor=numbers(1, 10), cap=numbers(0, 1e20)
        ),
        "ascend": st.sampled_from(["early", "late", "all"]),
        "head_ascends": st.booleans(),
        "others": st.sampled_from(["descend", "freeze"]),
        "ascent_weight_decay": st.sampled_from(["none", "decay", "growth"]),
        "forget": st.sampled_from(["none", "llf"]),
        "ascent_loss": st.sampled_from(["ce", "confident_error"]),
        "direction": st.sampled_from(["gradient", "random"]) | st.builds(NoisyGradient, noise=numbers(0, 9)),
        "rate_cooling": st.floats(0.5, 1),
        "share_cooling": st.floats(0.5, 1),
    },
    "llf": {
        "init": st.sampled_from(["reference", "model"]),
        "part": st.sampled_from(["late", "early"]),
    },
    "sam": {"rho": numbers(0, 1), "part": st.sampled_from(["all", "early", "late", "head", *STAGES])},
    "asam": {"rho": numbers(0, 1), "part": st.sampled_from(["all", "early", "late", "head", *STAGES])},
    "gsam": {"rho": numbers(0, 1), "alpha": st.floats(0, 1)},
    "ban": {"weight": st.floats(0, 10), "temperature": numbers(0, 10)},
    "dsd": {"prune_share": numbers(0, 1), "dense_share": SHARES, "sparse_share": SHARES},
    "ke": {
        "keep": numbers(0, 1),
        "mask": st.sampled_from(["kels", "wels"]),
        "part": st.sampled_from(["all", "early", "late"]),
    },
    "rifle": {},
    "zap": {"every": st.integers(1, 99), "zap_share": SHARES},
    "shrink_perturb": {"shrink": st.floats(0, 1, exclude_max=True), "perturb": st.floats(0, 10)},
    "layerwise": {},
    "dnr": {"share": numbers(0, 1), "batches": st.integers(1, 99)},
    "swr": {"share": numbers(0, 1), "batches": st.integers(0, 99)},
    "redo": {"threshold": st.floats(0, 1, exclude_max=True), "batches": st.integers(1, 99)},
    "dash": {"floor": st.floats(0, 1, exclude_max=True), "batches": st.integers(1, 99)},
    "cold": {},
}


PLACES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$~:"), min_size=1)
"""Paths in which nothing is replaced."""


@st.composite
def recipes(draw):
    name = draw(st.sampled_from(sorted(METHODS)))
    method = draw(st.builds(METHODS[name], split_at=st.sampled_from(STAGES), **FIELDS[name]))
    if name == "seal":  # the one combination in which nothing would ascend is refused
        assume(method.split_at != "fc" or method.ascend != "late" or method.head_ascends)
    length, shards = draw(st.integers(8, 200)), draw(st.integers(1, 64))
    return Recipe(
        data={
            "path": draw(PLACES),
            "per_class": draw(st.none() | st.integers(1, 500)),
            "label_noise": draw(st.floats(0, 1, exclude_max=True)),
        },
        model={
            "arch": draw(st.sampled_from(sorted(RESNETS))),
            "stem": draw(st.sampled_from(["imagenet", "cifar"])),
            "width": draw(st.integers(1, 128)),
            "dropout": draw(st.floats(0, 1, exclude_max=True)),
            "init_from": draw(st.none() | PLACES),
        },
        method=method,
        budget=Budget(length * draw(st.integers(1, 12)), length),
        optimizer={
            "lr": draw(numbers(0, 1e9)),
            "momentum": draw(st.floats(0, 1, exclude_max=True)),
            "weight_decay": draw(st.floats(0, 1)),
            "schedule": draw(st.sampled_from(["cosine", "step", "constant"])),
            "warmup_share": draw(st.floats(0, 0.9)),
            "clip_norm": draw(st.none() | numbers(0, 100)),
        },
        loss={"label_smoothing": draw(st.floats(0, 1, exclude_max=True))},
        augment={"crop_padding": draw(st.integers(0, 64)), "flip": draw(st.booleans())},
        batch_size=shards * draw(st.integers(1, 64)),
        shards=shards,
        precision=draw(st.sampled_from(["fp32", "tf32", "bf16", "fp64"])),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


def test_strategies_cover_every_method():
    assert set(FIELDS) == set(METHODS)
    for name, method in METHODS.items():
        assert set(FIELDS[name]) | {"split_at"} == {field.name for field in fields(method)}


INDICATORS = [*"?:-,[]{}#&*!|>'\"%@` \t0a", "\x85", "\u2028", "\xe9"]


@pytest.mark.parametrize("first", INDICATORS)
def test_text_that_begins_like_yaml_is_read_back(tmp_path: Path, first: str) -> None:
    texts = [first, *(f"{first}{second}{end}" for second in INDICATORS for end in ("", "0"))]
    path = tmp_path / "texts.yaml"
    path.write_text(dump({"nested": {"texts": texts, "mapping": {str(i): t for i, t in enumerate(texts)}}}))
    assert read(path).value["nested"]["mapping"] == {str(i): text for i, text in enumerate(texts)}
    assert read(path).value["nested"]["texts"] == texts


@settings(max_examples=60)
@given(recipe=recipes())
def test_any_recipe_survives_json_and_yaml(recipe, folder):
    dumped = recipe.model_dump(mode="json")
    assert Recipe(**dumped) == recipe
    assert Recipe(**json.loads(json.dumps(dumped))) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe(**YAML(typ="safe", pure=True).load(recipe.to_yaml())) == recipe
    job = Job(name="trial", recipe=recipe)
    assert load_job(file(folder, dump_job(job))) == job
    assert hash(Recipe(**dumped)) == hash(recipe)


def test_the_full_yaml_is_the_defaults_written_out(tmp_path):
    job = load_job(file(tmp_path, FULL))
    assert job.name == "tiny-imagenet-seal"
    assert YAML(typ="safe", pure=True).load(dump_job(job)) == {
        **(full := YAML(typ="safe", pure=True).load(FULL)),
        "recipe": {
            **full["recipe"],
            "method": {
                **full["recipe"]["method"],
                "ascend": "early",
                "head_ascends": False,
                "others": "descend",
                "ascent_weight_decay": "none",
                "forget": "none",
                "ascent_loss": "ce",
                "direction": "gradient",
                "rate_cooling": 1.0,
                "share_cooling": 1.0,
            },
        },
    }
    short = Recipe(
        data={"path": "data/tiny-imagenet-200"},
        method={"name": "seal"},
        budget={"epochs": 1600, "generation_length": 160},
    )
    assert job.recipe == short
    assert job.placement == Placement()


def test_typed_values_of_a_recipe():
    recipe = Recipe(**MINIMAL, optimizer={"schedule": "step", "lr": 1, "warmup_share": 0.25})
    assert recipe.method == Seal(split_at="layer3")
    assert recipe.budget == Budget(16, 8)
    assert recipe.optimizer.rates == Schedule("step", 1.0, 0.25)
    assert isinstance(recipe.optimizer.lr, float)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("llf", Llf()),
        ({"name": "normal", "schedule": "long"}, Normal(schedule="long")),
        ({"name": "seal", "ascent_rate": {"rise": 0.5}}, Seal(ascent_rate=Rise(0.5))),
        ({"name": "seal", "ascent_rate": Rise(0.5, 0.1)}, Seal(ascent_rate=Rise(0.5, 0.1))),
        ({"name": "seal", "direction": {"noise": 2}}, Seal(direction=NoisyGradient(2.0))),
        (Seal(ascent_rate=3), Seal(ascent_rate=3.0)),
    ],
)
def test_ways_to_give_a_method(method, expected):
    recipe = Recipe(**{**MINIMAL, "method": method})
    assert recipe.method == replace(expected, split_at="layer3")
    assert type(recipe.method) is type(expected)


def test_a_method_is_written_with_its_name_first():
    dumped = Recipe(**{**MINIMAL, "method": "ke"}).model_dump(mode="json")["method"]
    assert list(dumped.items()) == [
        ("name", "ke"),
        ("split_at", "layer3"),
        ("keep", 0.8),
        ("mask", "kels"),
        ("part", "all"),
    ]


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"method": Seal(ascent_share=7)}, ("method", "seal", "ascent_share")),
        ({"method": Seal(ascent_share=0.99)}, ("method", "ascent_share")),
        ({"method": "sael"}, ("method", "name")),
        ({"method": 3}, ("method", "name")),
        ({"budget": {"epochs": 9, "generation_length": 8}}, ("budget",)),
        ({"budget": {"epochs": 16.0, "generation_length": 8}}, ("budget", "epochs")),
        ({"optimizer": {"warmup_share": 0.99}}, ("optimizer", "warmup_share")),
        ({"optimizer": {"lr": "0.1"}}, ("optimizer", "sgd", "lr")),
        ({"seed": True}, ("seed",)),
        ({"epochs": 3}, ("epochs",)),
    ],
)
def test_from_python_an_unusable_recipe_is_a_validation_error_at_its_field(change, location):
    with pytest.raises(ValidationError) as caught:
        Recipe(**{**MINIMAL, **change})
    assert [problem["loc"] for problem in caught.value.errors()] == [location]


def test_the_cores_own_words_arrive_unwrapped():
    with pytest.raises(ValidationError) as caught:
        Recipe(**{**MINIMAL, "budget": {"epochs": 9, "generation_length": 8}})
    with pytest.raises(ConfigError) as core:
        Budget(9, 8)
    assert f"budget: {caught.value.errors()[0]['msg']}" == str(core.value)


def test_everything_is_frozen():
    job = Job(name="x", recipe=MINIMAL)
    for model in (job, job.recipe, job.placement, job.recipe.data, job.placement.keep):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, next(iter(type(model).model_fields)), 1)
    with pytest.raises(FrozenInstanceError):
        job.recipe.method.split_at = "fc"


def all_models(model):
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_models(field.annotation)


def test_every_field_is_described_and_every_model_closed():
    models = list(all_models(Job))
    assert len(models) == 10
    for model in models:
        assert model.model_config["extra"] == "forbid"
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


@pytest.mark.parametrize("arch", sorted(RESNETS))
def test_every_architecture_can_be_named(arch):
    assert MODELS[arch](arch=arch).arch == arch


def test_a_job_without_a_name_is_called_like_its_file(tmp_path):
    assert load_job(minimal(tmp_path)).name == "trial"
    assert load_job(minimal(tmp_path, "name: other\n")).name == "other"
    assert load_job(minimal(tmp_path), ["name=third"]).name == "third"


def test_recipe_load_is_the_recipe_of_the_job(tmp_path):
    path = minimal(tmp_path)
    assert Recipe.load(path) == load_job(path).recipe == Recipe(**MINIMAL)
    assert Recipe.load(str(path), ["recipe.seed=3"]).seed == 3


@pytest.mark.parametrize(("written", "read"), [("off", "off"), ("'off'", "off"), ("online", "online")])
def test_wandb_off_needs_no_quotes(tmp_path, written, read):
    path = minimal(tmp_path, f"placement: {{tracking: {{wandb: {written}}}}}\n")
    assert load_job(path).placement.tracking.wandb == read


@pytest.mark.parametrize(("written", "read"), [("auto", "auto"), ("true", True), ("false", False)])
def test_use_gpu(tmp_path, written, read):
    assert load_job(minimal(tmp_path, f"placement: {{use_gpu: {written}}}\n")).placement.use_gpu is read


def test_moments_may_be_none(tmp_path):
    job = load_job(minimal(tmp_path), ["placement.keep.moments=[]"])
    assert job.placement.keep.moments == ()
    assert job.placement.keep.checkpoints == 2


def test_overrides_merge_fields_and_replace_what_they_name(tmp_path):
    path = file(tmp_path, FULL)
    base = load_job(path)

    def overridden(*assignments):
        return load_job(path, assignments).recipe

    assert overridden("recipe.data.path=DIR").data.path == "DIR"
    assert overridden("recipe.method.ascent_rate=0.1").method == replace(base.recipe.method, ascent_rate=0.1)
    assert overridden("recipe.method.ascent_rate={rise: 2}").method.ascent_rate == Rise(2)
    assert overridden("recipe.method.ascent_rate.rise=2").method.ascent_rate == Rise(2)
    assert overridden("recipe.method=llf").method == Llf(split_at="layer3")
    assert overridden("recipe.method={name: llf, init: model}").method == Llf(split_at="layer3", init="model")
    assert overridden("recipe.method=llf", "recipe.method.init=model").method == Llf(
        split_at="layer3", init="model"
    )
    assert overridden("recipe.budget={epochs: 8, generation_length: 8}").budget == Budget(8, 8)
    assert overridden("recipe.optimizer.clip_norm=1", "recipe.optimizer.clip_norm=2").optimizer.clip_norm == 2
    assert overridden("recipe.data.path=a=b").data.path == "a=b"
    assert overridden() == base.recipe


def test_an_override_extends_a_bare_method_name_and_makes_missing_sections(tmp_path):
    path = minimal(tmp_path)
    assert load_job(path, ["recipe.method.ascent_rate=0.1"]).recipe.method == Seal(
        split_at="layer3", ascent_rate=0.1
    )
    assert load_job(path, ["recipe.optimizer.lr=0.5"]).recipe.optimizer.lr == 0.5
    assert load_job(path, ["placement.keep.checkpoints=5"]).placement.keep.checkpoints == 5


def test_an_override_reaches_one_alias_alone(tmp_path):
    document = read(file(tmp_path, "a: &shared {x: 1}\nb: *shared\n"))
    assert override(document, ["a.x=2"]).value == {"a": {"x": 2}, "b": {"x": 1}}
    assert document.value == {"a": {"x": 1}, "b": {"x": 1}}


def test_aliases_and_merge_keys(tmp_path):
    text = """\
recipe:
  data: {path: &here data/x}
  method: {name: seal, ascent_rate: &rise {rise: 0.5, start: 0.1}}
  budget: {epochs: &length 8, generation_length: *length}
  optimizer: {<<: {lr: 0.3, momentum: 0.5}, lr: 0.2}
  loss: {<<: [{label_smoothing: 0.2}, {label_smoothing: 0.3}]}
placement: {storage: *here}
"""
    job = load_job(file(tmp_path, text))
    assert job.recipe.budget == Budget(8, 8)
    assert job.placement.storage == "data/x"
    assert (job.recipe.optimizer.lr, job.recipe.optimizer.momentum) == (0.2, 0.5)
    assert job.recipe.loss.label_smoothing == 0.2
    merged = load_job(file(tmp_path, text), ["recipe.optimizer.weight_decay=0"]).recipe.optimizer
    assert (merged.lr, merged.momentum, merged.weight_decay) == (0.2, 0.5, 0)


def test_a_date_is_a_fine_name(tmp_path):
    assert load_job(minimal(tmp_path, "name: 2024-01-31\n")).name == "2024-01-31"


def test_json_files_and_byte_order_marks_are_read(tmp_path):
    job = load_job(minimal(tmp_path))
    dumped = json.dumps(job.model_dump(mode="json"), indent=1)
    assert load_job(file(tmp_path, "\ufeff" + dumped)) == job


SHIPPED = sorted((ROOT / "jobs/runs").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_jobs_load_and_begin_with_what_they_are_for(path):
    assert load_job(path).recipe.method.name in METHODS
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("folder_name", ["laptop", "tiny-imagenet"])
def test_jobs_are_named_after_folder_and_file_and_show_their_command(folder_name):
    for path in (ROOT / "jobs/runs" / folder_name).iterdir():
        assert load_job(path).name == f"{folder_name}-{path.stem}"
        assert path.read_text().startswith(f"# seal-ray train {path.relative_to(ROOT)}\n")


def warming_alike(recipe):
    """A recipe with the share of a generation that it warms up, where its one schedule spans them all."""
    if recipe.method != Normal(split_at="layer3", schedule="long"):
        return recipe
    share = recipe.optimizer.warmup_share * recipe.budget.generations
    return recipe.model_copy(update={"optimizer": replace(recipe.optimizer, warmup_share=share)})


def test_shipped_jobs_of_a_folder_differ_in_the_method_alone():
    """And a schedule of many generations in its share of warm-up: as many epochs."""
    folders = {path.parent.name for path in SHIPPED}
    assert {"laptop", "tiny-imagenet"} <= folders
    for name in folders:
        jobs = [load_job(path) for path in SHIPPED if path.parent.name == name]
        assert len({job.recipe.method for job in jobs}) == len(jobs)
        same = {warming_alike(job.recipe).model_copy(update={"method": Normal()}) for job in jobs}
        assert len(same) == 1


def test_the_papers_jobs_are_the_defaults():
    for path in (ROOT / "jobs/runs/tiny-imagenet").glob("*.yaml"):
        recipe = Recipe.load(path)
        defaults = Recipe(data=recipe.data, method=recipe.method, budget=Budget(1600, 160))
        assert warming_alike(recipe) == defaults
    assert Recipe.load(ROOT / "jobs/runs/tiny-imagenet/seal.yaml").method == Seal(split_at="layer3")


def test_importing_recipes_starts_neither_ray_nor_wandb_nor_ffcv():
    code = "import sys, seal_ray.recipe; print(sorted({'ray', 'wandb', 'ffcv'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_recipes_whose_network_has_lists_are_told_apart(tmp_path):
    """Sweeps and plans look recipes up."""
    model = "  model: {{arch: timm/convnext_atto, depths: [1, 1, 1, {last}], dims: [8, 16, 32, 64]}}\n"
    one, other = (load_job(minimal(tmp_path, model.format(last=last))).recipe for last in (1, 2))
    assert {one: "one", other: "other"}[one.model_copy(update={"seed": 0})] == "one"
    assert {one.model: "one", other.model: "other"}[one.model.model_copy()] == "one"
    assert one != other
