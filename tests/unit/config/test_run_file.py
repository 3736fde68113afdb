"""Run files over a base: the fields of both, the lines of both, plugin files each from its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from seal_ray.cli import app
from seal_ray.config.document import OF_SWEEPS
from seal_ray.errors import ConfigError
from seal_ray.jobs import training_spec
from seal_ray.recipe import Job, dump_job, load_job
from seal_ray.sweeps.file import SweepFile, load_sweep
from tests.plugins import FOCAL, plain_method

BASE = """\
name: base
recipe:
  data: {path: data/digits, per_class: 20}
  model: {arch: resnet18, width: 8}
  method: {name: seal, ascent_rate: 0.5}
  budget: {epochs: 6, generation_length: 3}
  optimizer: {lr: 0.05, clip_norm: 1.0}
placement: {storage: runs/first, tracking: {wandb: 'off', project: mine}}
analyses: [depth]
"""
OVER = """\
base: bases/base.yaml
recipe:
  model: {width: 4}
  method: {ascend: late}
  optimizer: {name: sgd, momentum: 0.5}
placement: {tracking: {project: ours}}
"""
MERGED = """\
name: over
recipe:
  data: {path: data/digits, per_class: 20}
  model: {arch: resnet18, width: 4}
  method: {name: seal, ascent_rate: 0.5, ascend: late}
  budget: {epochs: 6, generation_length: 3}
  optimizer: {name: sgd, momentum: 0.5}
placement: {storage: runs/first, tracking: {wandb: 'off', project: ours}}
analyses: [depth]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bases").mkdir()
    for place, text in {"bases/base.yaml": BASE, "over.yaml": OVER, "merged.yaml": MERGED}.items():
        Path(place).write_text(text)
    return tmp_path


def complaint(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_job(path, overrides)
    return str(caught.value).split("\n")


def test_fields_go_over_those_of_the_base_and_a_named_choice_in_place_of_it() -> None:
    assert load_job("over.yaml") == load_job("merged.yaml")
    changes = ["recipe.seed=3", "recipe.method=llf", "recipe.augment={flip: false}", "name=another"]
    assert load_job("over.yaml", changes) == load_job("merged.yaml", changes)
    Path("over.yaml").write_text("base: bases/base.yaml\nanalyses: []\n")
    assert load_job("over.yaml").analyses.what == ()
    done = CliRunner().invoke(app, ["validate", "over.yaml"])
    assert done.output == "over.yaml: valid (seal, 6 epochs)\n"


def test_what_is_stored_needs_no_base(here: Path) -> None:
    job = load_job("over.yaml")
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "job.yaml").write_text(dump_job(job))
    assert "base" not in yaml.safe_load(dump_job(job))
    assert load_job("elsewhere/job.yaml") == job


def test_a_base_may_have_a_base_and_be_given_on_the_command_line() -> None:
    Path("third.yaml").write_text("base: ./over.yaml\nrecipe: {seed: 5}\n")
    expected = load_job("merged.yaml", ["recipe.seed=5", "name=third"])
    assert load_job("third.yaml") == expected
    Path("third.yaml").write_text("recipe: {seed: 5}\n")
    assert load_job("third.yaml", ["base=over.yaml"]) == expected
    assert load_job("third.yaml", ["base=merged.yaml", "recipe.seed=6"]).recipe.seed == 6


def test_mistakes_are_said_of_the_file_in_which_they_stand() -> None:
    Path("bases/base.yaml").write_text(BASE.replace("per_class: 20", "per_klass: 20"))
    Path("over.yaml").write_text(OVER.replace("width: 4", "width: '4'"))
    first, second, third = complaint("over.yaml", "recipe.seed=-1")
    assert first.startswith("bases/base.yaml:3: recipe.data.per_klass: unknown field; did you mean 'per_cl")
    assert second.startswith("over.yaml:3: recipe.model.width: must be a whole number, not '4'")
    assert third.startswith("--set recipe.seed=-1: recipe.seed: must be at least 0")
    Path("bases/base.yaml").write_text("recipe: {a: [\n")
    [only] = complaint("over.yaml")
    assert only.startswith("over.yaml:1: base: bases/base.yaml:2:1: is not valid YAML")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"over.yaml": "base: missing.yaml\n"}, "over.yaml:1: base: missing.yaml: no such file"),
        ({"over.yaml": "base: 3\n"}, "over.yaml:1: base: must be a run's YAML file, beside this one, not 3"),
        ({"over.yaml": "base: over.yaml\n"}, "over.yaml:1: base: over.yaml begins with this file itself"),
        (
            {"over.yaml": "base: ./bases/base.yaml\n", "bases/base.yaml": "\nbase: ../over.yaml\n"},
            "over.yaml:1: base: bases/base.yaml:2: base: bases/../over.yaml begins with this file itself",
        ),
        (
            {"bases/base.yaml": "base: x.yaml\naxes: {seed: [1, 2]}\n"},
            "over.yaml:1: base: bases/base.yaml:2: has axes, so it is a sweep, not a run",
        ),
    ],
    ids=["missing", "number", "itself", "circle", "sweep"],
)
def test_what_cannot_be_a_base(files: dict[str, str], said: str) -> None:
    for place, text in files.items():
        Path(place).write_text(text)
    [only] = complaint("over.yaml")
    assert only.startswith(said)


def test_plugin_files_lie_beside_the_file_that_names_them() -> None:
    Path("bases/mine.py").write_text(plain_method())
    Path("focal.py").write_text(FOCAL)
    Path("bases/base.yaml").write_text(
        f"plugins: [./mine.py]\n{BASE}".replace("{name: seal, ascent_rate: 0.5}", "mine")
    )
    Path("over.yaml").write_text("base: bases/base.yaml\nplugins: [focal.py]\nrecipe: {loss: focal}\n")
    job = load_job("over.yaml")
    assert (job.recipe.method.name, job.recipe.loss.name) == ("mine", "focal")
    assert job.plugins == {"focal.py": FOCAL, "mine.py": plain_method()}


def test_the_base_of_a_sweep_may_have_a_base() -> None:
    Path("sweep.yaml").write_text("base: over.yaml\naxes: {seed: [0, 1]}\n")
    merged = load_job("merged.yaml", ["name=sweep"])
    jobs = [run.job for run in load_sweep("sweep.yaml").runs]
    assert jobs == [seeded(merged, 0), seeded(merged, 1)]


def seeded(job: Job, seed: int) -> Job:
    return job.model_copy(update={"recipe": job.recipe.model_copy(update={"seed": seed})})


def test_a_base_is_sent_with_the_run() -> None:
    changes = ["placement.storage=/mnt/runs", "recipe.data.path=/mnt/digits"]
    spec = training_spec("train", Path("over.yaml"), changes)
    assert {str(file) for file in spec.files} == {"over.yaml", "bases/base.yaml"}


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("grid: {seed: [1, 2]}", "grid: is no field of a run; those of a sweep are called `axes`"),
        ("axs: {seed: [1, 2]}", "axs: is no field of a run; those of a sweep are called `axes`"),
        ("serach: {samples: 3}", "serach: is no field of a run; those of a sweep are called `axes`"),
        ("seeds: 3", "seeds: is a field of sweeps, which need `axes` as well"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "train", "plan"])
def test_a_sweep_without_axes_is_told_what_it_lacks(command: str, field: str, said: str) -> None:
    Path("over.yaml").write_text(f"base: bases/base.yaml\n{field}\n")
    error = CliRunner().invoke(app, [command, "over.yaml"]).exception
    name = field.partition(":")[0]
    remedy = "for a sweep over this base write `axes: {method: [normal, seal]}`, for a run over it remove"
    assert str(error) == f"over.yaml:2: {said}; {remedy} {name}"


def test_the_fields_that_only_sweeps_have_are_known() -> None:
    assert set(OF_SWEEPS) == SweepFile.model_fields.keys() - Job.model_fields.keys() - {"base", "tracking"}


def test_a_field_of_a_network_is_unset_over_a_base() -> None:
    over = "base: bases/base.yaml\nrecipe:\n  model: {arch: timm/test_convnext%s}\n"
    Path("over.yaml").write_text(over % "")
    [only] = complaint("over.yaml")
    assert only.startswith("bases/base.yaml:4: recipe.model.width: is a field of ")
    assert "; remove it, or unset that of a base by `width: null` (fields: " in only
    Path("over.yaml").write_text(over % ", width: null")
    assert "width" not in load_job("over.yaml").recipe.model.arguments
    Path("over.yaml").write_text(over % "")
    assert load_job("over.yaml", ["recipe.model.width=null"]).recipe.model.arch == "timm/test_convnext"
    Path("over.yaml").write_text(over % ", width: null, widht: null")
    assert "widht: unknown field" in complaint("over.yaml")[0]
    Path("over.yaml").write_text("base: bases/base.yaml\nrecipe: {model: {width: null}}\n")
    assert "must be a whole number" in complaint("over.yaml")[0]
