"""Paths as people write them: `~` is the home folder in every field and option, variables are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from seal_ray.analysis.evaluations import load_evaluation
from seal_ray.cli import app
from seal_ray.config.document import at, dotted, override, read
from seal_ray.config.messages import parse
from seal_ray.errors import ConfigError
from seal_ray.recipe import Job
from seal_ray.storage.paths import storage_path

JOB = {
    "name": "x",
    "recipe": {
        "data": {"path": "data"},
        "method": "normal",
        "budget": {"epochs": 2, "generation_length": 2},
    },
}
NO_PATHS = ["name", *(f"placement.tracking.{one}" for one in ("project", "entity", "group", "setting"))]
"""Fields that take any text."""
CHOICES = ["recipe.model.arch", "recipe.model.init_sha256"]
"""Fields that take some texts alone."""


def text_fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[str]:
    """The fields of a model, and of those in it, that take text."""
    for name, field in model.model_fields.items():
        for kind in members(field.annotation):
            if kind is str:
                yield dotted((*path, name))
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from text_fields(kind, (*path, name))


def members(kind: Any) -> Iterator[Any]:
    """The types that a union or an annotated type is made of."""
    if get_origin(kind) in (Annotated, Union, types.UnionType):
        for one in get_args(kind):
            yield from members(one)
    else:
        yield kind


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", "/data")
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("field", list(text_fields(Job)))
def test_every_field_that_takes_any_text_is_no_path_or_has_the_home_folder_for_a_tilde(
    field: str, home: Path
) -> None:
    path = Path("job.yaml")
    path.write_text(yaml.safe_dump(JOB))

    def put(text: str) -> str:
        found = parse(override(read(path), [f"{field}={text}"]), Job)
        return str(at(found.model_dump(), tuple(field.split("."))))

    if field in CHOICES:
        with pytest.raises(ConfigError):
            put("~/x")
        return
    found = put("~/x")
    if field in NO_PATHS:
        assert found == "~/x"
        return
    assert found == str(home / "x")
    assert put("s3://bucket/~x") == "s3://bucket/~x"
    for text, name in {"$DATA/x": "$DATA", "/mnt/${DATA}/x": "${DATA}", "s3://bucket/$DATA": "$DATA"}.items():
        with pytest.raises(ConfigError) as caught:
            put(text)
        assert str(caught.value).startswith(f"--set {field}={text}: {field}: {text}: {name} is no folder's")
        assert "write the path out" in str(caught.value)
    assert put("/mnt/C$/5$") == "/mnt/C$/5$"
    with pytest.raises(ConfigError, match=r"~nobody-of-that-name: is nobody's home .* write \./~nobody"):
        put("~nobody-of-that-name")


def test_the_fields_that_are_paths_are_among_those_that_were_tried() -> None:
    assert {"recipe.data.path", "recipe.model.init_from", "placement.storage"} <= {*text_fields(Job)}


def test_data_sets_of_an_evaluation(home: Path) -> None:
    path = Path("evaluation.yaml")
    path.write_text("kind: transfer\ntargets:\n  - ~/flowers\n  - cub200\n")
    assert load_evaluation(path).targets == (str(home / "flowers"), "cub200")
    path.write_text("kind: transfer\ntargets:\n  - cub200\n  - $DATA/flowers\n")
    with pytest.raises(ConfigError, match=r"evaluation.yaml:4: targets.1: \$DATA/flowers: \$DATA is no fold"):
        load_evaluation(path)


def test_a_plugin_file_at_home_is_not_beside_the_yaml(home: Path) -> None:
    Path("job.yaml").write_text("plugins: [~/mine.py]\n" + yaml.safe_dump(JOB))
    done = CliRunner().invoke(app, ["validate", "job.yaml"])
    assert str(done.exception).startswith(f"job.yaml:1: plugins.0: {home}/mine.py: must be relative to the")


def test_a_path_from_python(home: Path) -> None:
    assert storage_path("~/runs") == home / "runs"
    assert storage_path("s3://bucket/~/runs").__str__() == "s3://bucket/~/runs"


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "--storage=~/runs"],
        ["clean", "--storage", "~/runs"],
        ["validate", "~/runs"],
        ["train", "~/runs"],
        ["sweep", "~/runs"],
        ["analyze", "~/runs", "--in-process"],
        ["report", "~/runs", "--output=~/page.html"],
        ["data", "prepare", "folder", "--to=~/to", "--source=~/runs", "--val-share=0.1"],
        ["jobs", "status", "~/runs", "--address=nowhere"],
    ],
    ids=lambda words: words[0],
)
def test_every_word_of_the_command_line_may_begin_with_a_tilde_and_holds_no_variable(
    words: list[str], home: Path
) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code != 0 or words[0] == "clean"
    assert "~" not in f"{done.output}{done.exception}"
    done = CliRunner().invoke(app, [word.replace("~", "$DATA") for word in words])
    assert isinstance(done.exception, ConfigError)
    assert "$DATA is no folder's name" in str(done.exception)
    assert not list(Path().iterdir())


def test_a_run_is_stored_at_home_by_a_real_process(home: Path, digits: Path) -> None:
    job = {
        "recipe": {**JOB["recipe"], "data": {"path": str(digits)}, "model": {"arch": "resnet18", "width": 4}},
        "axes": {"method": ["normal"]},
        "placement": {"storage": "~/runs", "loader": "torch", "tracking": {"wandb": "off"}},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "seal_ray", "sweep", "sweep.yaml", "--in-process"]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in Path().iterdir()] == ["sweep.yaml"]
    assert [path.name for path in home.glob("runs/normal-s0-*/status.json")] == ["status.json"]
