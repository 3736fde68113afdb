"""`seal-ray transfer` and `seal-ray fewshot` end to end, from a small sweep to its leaderboard."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from seal_ray import cli
from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source
from seal_ray.sweeps.tune import train_sweep
from tests.sweeps import screen, small_sweep


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained sweep, its YAML, and a target data set under data/."""
    folder = tmp_path_factory.mktemp("carry")
    prepare(open_source("digits", source=None), folder / "digits", classes=4, per_class=24)
    prepare(open_source("digits", source=None), folder / "data" / "others", classes=6, per_class=30, seed=3)
    axes = {"method": {"normal": "normal", "llf": "llf"}}
    runs = small_sweep(folder / "digits", folder / "runs", axes=axes, seeds=2)
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["seal-ray", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    found = capsys.readouterr()
    assert "Traceback" not in found.out + found.err
    return int(ended.value.code or 0), found.out + found.err


@pytest.mark.filterwarnings("ignore:.*did not converge:seal_ray.errors.SealRayWarning")
def test_both_land_in_the_leaderboard(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = (trained / "small.yaml", "--data", trained / "data", "--in-process")
    code, said = run(monkeypatch, capsys, "transfer", *here, "--to", "others")
    assert code == 0, said
    assert "4 computed" in said
    code, said = run(
        monkeypatch,
        capsys,
        "fewshot",
        *here,
        "--on",
        "others",
        "--shots",
        "1,5",
        "--episodes",
        "20",
        "--queries",
        "3",
    )
    assert code == 0, said
    folder = trained / "runs" / "sweeps" / "small"
    assert (folder / "transfer.md").exists()
    assert (folder / "fewshot.json").exists()
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["method"] for row in rows] == ["normal", "llf"]
    columns = [name for name in rows[0] if "others" in name]
    assert len(columns) == 3 * 7  # a probe and two numbers of shots
    means = [float(row[name]) for row in rows for name in columns if name.endswith("top1_mean")] or [0.0]
    assert all(0 <= mean <= 100 for mean in means)

    code, said = run(monkeypatch, capsys, "transfer", *here, "--to", "others")
    assert code == 0
    assert "4 known" in said
    code, said = run(monkeypatch, capsys, "sweep", trained / "small.yaml", "--in-process")
    assert code == 0  # the same command again keeps them
    assert [
        name for name in csv.DictReader((folder / "results.csv").open()).fieldnames or () if "others" in name
    ]


def test_fine_tuning_is_a_mode_of_transfer(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = (trained / "small.yaml", "--data", trained / "data", "--in-process", "--to", "others")
    tuned = ("transfer", *here, "--mode", "finetune", "--epochs", "1", "--lr", "0.1", "--fraction", "0.5")
    code, said = run(monkeypatch, capsys, *tuned)
    assert code == 0, said
    assert "4 computed" in said
    assert "small: finetune" in said
    assert run(monkeypatch, capsys, *tuned)[1].endswith("4 known\n")
    code, said = run(monkeypatch, capsys, "transfer", *here, "--mode", "finetune", "--layer", "layer3")
    assert (code, "--layer: layer: unknown field" in said) == (2, True)
    assert "finetune others %" in (trained / "runs/sweeps/small/results.md").read_text()


def test_a_plan_says_with_which_weights_a_run_begins(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (moment,) = (trained / "runs").glob("normal-s0-*/moments/g002-relearned")
    model = f"recipe.model={{arch: resnet18, width: 4, init_from: {moment}}}"
    plan = ["plan", "jobs/runs/quickstart/normal.yaml", "--storage", trained / "tuned", "--set", model]
    data = ["--set", f"recipe.data={{path: {trained / 'data/others'}}}"]
    code, said = run(monkeypatch, capsys, *plan, *data)
    assert code == 0, said
    text = "".join(said.split())
    assert f"beginswiththeweightsof{moment}(" in text
    assert "anewclassifierof6classesinplaceoftheirsof4" in text
    for wrong, message in (
        (model.replace("width: 4", "width: 8"), "does not fit resnet18 with stem imagenet, width 8"),
        ("recipe.model.init_from=nowhere.pth", "nowhere.pth: no such file"),
    ):
        code, said = run(monkeypatch, capsys, *plan[:-1], wrong, *data)
        assert code == 2
        assert message in said


def test_what_cannot_be_asked_is_said(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (("transfer", "--to", "x"), "give a run, a storage folder or a sweep; or --weights FILE"),
        (("transfer", trained / "runs"), "--to: name data sets"),
        (("fewshot", trained / "runs", "--on", "x", "--shots", "few"), "--shots few: are whole numbers"),
        (("fewshot", trained / "runs", "--on", "x", "--head", "big"), "--head: head: must be 'logistic'"),
        (("transfer", "--to", "x", "--weights", "w.pth"), "with --arch NAME"),
        (("transfer", trained / "runs", "--to", "x", "--trained-on", "y"), "--trained-on: is for --weights"),
        (("validate", "jobs/evaluations/transfer.yaml", "--set", "a=b"), "not for evaluations"),
    ):
        code, said = run(monkeypatch, capsys, *arguments)
        assert code == 2
        assert message in said
    code, said = run(monkeypatch, capsys, "transfer", trained / "runs", "--to", "flowers102", "--in-process")
    assert code == 1
    assert "seal-ray data prepare flowers102" in said


def test_the_shipped_evaluations_are_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(monkeypatch, capsys, "validate", "jobs/evaluations/transfer.yaml")
    assert (code, said) == (
        0,
        "jobs/evaluations/transfer.yaml: valid (cub200, aircraft, dogs, flowers102, mit67)\n",
    )
    for file in sorted(Path("jobs/evaluations").glob("*.yaml")):
        code, said = run(monkeypatch, capsys, "validate", file)
        assert (code, said.startswith(f"{file}: valid")) == (0, True)
