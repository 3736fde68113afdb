"""`seal-ray check`, `seal-ray methods`, and what is said of code that is loaded."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from seal_ray.augmentations import AUGMENTATIONS
from seal_ray.methods import METHODS
from seal_ray.metrics import METRICS
from seal_ray.phases.losses import LOSSES
from seal_ray.phases.optimizers import OPTIMIZERS
from seal_ray.recipe import load_job
from seal_ray.testing import tiny_images
from seal_ray.training.loop import fit
from tests.plugins import FOCAL, method_of_docs, of_docs, plain_method, write_job
from tests.unit.cli.test_commands import Ended
from tests.unit.cli.test_commands import run as run
from tests.unit.test_plugins import forget_files as forget_files


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


@pytest.mark.docs
def test_the_method_of_the_readme_is_a_short_file_that_keeps_its_promises_and_trains(tmp_path: Path) -> None:
    file = tmp_path / "weight_noise.py"
    file.write_text(method_of_docs())
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 32
    checked = subprocess.run(
        [sys.executable, "-m", "seal_ray", "check", str(file)], capture_output=True, text=True, timeout=250
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert [line.split(": ")[0] for line in checked.stdout.splitlines()] == ["ok      weight_noise"] * 4
    assert checked.stderr == f"code: {file} sha256 {digest(file)}\n"

    recipe = load_job(write_job(tmp_path / "run.yaml", "weight_noise", ("./weight_noise.py",))).recipe
    rows = [epoch.row for epoch in fit(recipe, tiny_images())]
    assert [row["phase"] for row in rows] == ["learn"] * 4 + ["relearn"] * 8
    assert rows[4]["weight_norm_late"] > 1.05 * rows[3]["weight_norm_late"]  # by sqrt(1.25) at first


@pytest.mark.docs
def test_the_augmentation_of_the_readme_and_a_loss_keep_their_promises(run: object, tmp_path: Path) -> None:
    for name, code in {"noise": of_docs("augmentation"), "focal": FOCAL}.items():
        (tmp_path / f"{name}.py").write_text(code)
        ended: Ended = run("check", tmp_path / f"{name}.py")  # type: ignore[operator]
        assert ended.code == 0, ended.out + ended.err
        assert {line.split(": ")[0] for line in ended.out.splitlines()} == {f"ok      {name}"}
        assert ended.out.splitlines()[-1] == f"ok      {name}: two shards in one process are two processes"


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        ("augmentations", AUGMENTATIONS),
        ("losses", LOSSES),
        ("optimizers", OPTIMIZERS),
        ("metrics", METRICS),
    ],
)
def test_other_choices_are_listed_as_methods_are(run: object, command: str, registry: Any) -> None:
    ended: Ended = run(command)  # type: ignore[operator]
    parts = dict(re.findall(r"^(\w+)\n((?:  .*\n)+)", ended.out, re.MULTILINE))
    assert list(parts) == list(registry)
    for name, cls in registry.items():
        assert re.findall(r"^    (\w+)", parts[name], re.MULTILINE) == [field.name for field in fields(cls)]
    if command == "optimizers":
        assert "    betas = [0.9, 0.999]  (list of number, number)\n" in parts["adamw"]
        assert "    clip_norm = null  (number > 0 or null)\n" in parts["sgd"]


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_each_file_is_named_with_its_digest_before_it_runs(run: object, command: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(plain_method() + "\nprint('the code runs')\nraise ValueError('and fails')\n")
    ended: Ended = run(command, write_job(tmp_path / "run.yaml"))  # type: ignore[operator]
    assert ended.code == 2
    line = len(file.read_text().splitlines())
    assert ended.err.splitlines() == [
        f"code: {file} sha256 {digest(file)}",
        f"error: {file}:{line}: fails: ValueError: and fails",
    ]
    assert ended.out == "the code runs\n"


def test_a_file_may_be_named_on_the_command_line(run: object, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(plain_method())
    job = write_job(tmp_path / "sub" / "run.yaml", plugins=None)
    ended: Ended = run("validate", job, "--plugin", tmp_path / "mine.py")  # type: ignore[operator]
    assert (ended.code, ended.out) == (0, f"{job}: valid (mine, 12 epochs)\n")
    sweep = write_job(tmp_path / "sub" / "sweep.yaml", plugins=None, axes={"seed": [1, 2]})
    ended = run("validate", sweep, "--plugin", tmp_path / "mine.py")  # type: ignore[operator]
    assert (ended.code, ended.out) == (0, f"{sweep}: valid (2 runs, 24 epochs)\n")


def test_check_says_which_promise_is_broken(run: object, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(plain_method(body="return (Phase('learn', budget.length - generation, LEARN),)"))
    ended: Ended = run("check", file)  # type: ignore[operator]
    assert ended.code == 1
    assert ended.out == (
        "BROKEN  mine: phases fill every generation: generation 1 of 4 epochs: the phases have [3] epochs\n"
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\n", "registers nothing; decorate it with one of @seal_ray.method, @seal_ray.network"),
        (plain_method().replace("] = 0.5", "]"), "non-default argument 'strength' follows default argument"),
        (
            plain_method()
            .replace("dataclass(frozen=True)", "dataclass(frozen=True, kw_only=True)")
            .replace("] = 0.5", "]"),
            "give every field of Mine a default",
        ),
    ],
)
def test_check_refuses_what_it_cannot_check(run: object, code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    ended: Ended = run("check", tmp_path / "mine.py")  # type: ignore[operator]
    assert ended.code == 2
    assert said in ended.err.splitlines()[-1]


def test_methods_lists_each_with_its_parameters_and_where_it_is_from(run: object, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(plain_method())
    ended: Ended = run("methods", "--plugin", file)  # type: ignore[operator]
    assert ended.code == 0
    parts = dict(re.findall(r"^(\w+)\n((?:  .*\n)+)", ended.out, re.MULTILINE))
    assert list(parts) == [*METHODS, "mine"]
    for name, method in METHODS.items():
        assert re.findall(r"^    (\w+)", parts[name], re.MULTILINE) == [
            field.name for field in fields(method)
        ]
        assert f"methods/{name}.py" in parts[name]
    assert "ascent_share = 0.25  (number > 0, < 1)" in parts["seal"]
    assert "head_ascends = false  (true or false)" in parts["seal"]
    assert "CVPR 2023, arXiv 2304.04858" in parts["seal"]
    assert "mask = kels  (kels, wels)" in parts["ke"]
    assert parts["mine"] == (
        "  A method for tests (nowhere, 2024).\n  What it does.\n    split_at = null  (text or null)\n"
        f"    strength = 0.5  (number > 0)\n  {file} (sha256 {digest(file)})\n"
    )
    one: Ended = run("methods", "mine", "--plugin", file)  # type: ignore[operator]
    assert "And more of it." in one.out
    networks: Ended = run("networks", "resnet18")  # type: ignore[operator]
    assert "    stem = imagenet  (imagenet, cifar)\n    width = 64  (whole number >= 1)\n" in networks.out
    assert "    drop_path_rate  (number or null)\n" in run("networks", "timm/test_convnext").out  # type: ignore[operator]
    assert run("networks").out.endswith("timm.list_models()\n")  # type: ignore[operator]
    assert "did you mean 'resnet18'?" in run("networks", "resnet8").err  # type: ignore[operator]
    missing: Ended = run("methods", "none")  # type: ignore[operator]
    assert missing.err == f"error: none: is no method; there are {', '.join(METHODS)}\n"
