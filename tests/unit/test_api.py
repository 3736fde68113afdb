"""The public API: what it returns is what lies in the folders, and what the trained network really does."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import seal_ray as sr
from seal_ray.data.prepared import load_dataset
from seal_ray.distributed.launch import prepare_job
from seal_ray.errors import CheckpointError, ClusterError, ConfigError
from seal_ray.recipe import Placement
from tests.runs import without_speeds
from tests.sweeps import small_sweep

QUIET = Console(quiet=True)
LATER = ("1-ascended", "1-relearned", "2-ascended", "2-relearned")


@pytest.fixture(scope="module")
def file(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three methods, trained in this process."""
    folder = tmp_path_factory.mktemp("api")
    small_sweep(digits, folder / "runs", folder / "small.yaml")
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def board(file: Path) -> sr.Leaderboard:
    return sr.sweep(file, in_process=True, console=QUIET)


@pytest.fixture
def recipe(digits: Path) -> sr.Recipe:
    fields: dict[str, Any] = {
        "data": {"path": str(digits)},
        "model": {"arch": "resnet18", "width": 4},
        "method": "llf",
        "budget": {"epochs": 4, "generation_length": 2},
    }
    return sr.Recipe(**fields)


def test_a_leaderboard_is_what_the_sweep_wrote(board: sr.Leaderboard) -> None:
    folder = board.folder
    assert isinstance(folder, Path)
    assert board.rows == json.loads((folder / "results.json").read_text())["lines"]
    assert board.to_markdown() == repr(board) == (folder / "results.md").read_text()
    written = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    table = board.to_pandas()
    assert list(table["method"]) == [row["method"] for row in written] == ["normal", "llf", "seal"]
    assert list(table["top1"]) == pytest.approx([float(row["top1"]) for row in written])


def test_a_run_is_what_lies_in_its_folder(board: sr.Leaderboard) -> None:
    folder = board.folder.parents[1] / board.runs[-1].run_id
    run = sr.load(str(folder))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (run.status, run.rows, run.recipe.method.name) == ("finished", rows, "seal")
    assert repr(run) == f"<run {folder.name}: finished>"
    assert list(run.to_pandas()["val_top1"]) == [row["val_top1"] for row in rows]
    assert run.moments == (
        "g000-relearned",
        "g001-ascended",
        "g001-relearned",
        "g002-ascended",
        "g002-relearned",
    )


def test_the_network_of_a_run_is_as_good_as_was_measured(board: sr.Leaderboard) -> None:
    run = sr.load(board.folder.parents[1] / board.runs[0].run_id)
    images = sr.Images.from_dataset(load_dataset(Path(run.recipe.data.path)), loader="torch")
    val = images.open("val", 16)
    pixels = torch.cat(list(val.batches(np.arange(len(val.labels)))))
    mean, std = (torch.tensor(value)[:, None, None] for value in (images.mean, images.std))
    network = run.network()
    assert not network.training
    with torch.no_grad():
        logits = network((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    top1 = 100 * (logits.argmax(1).numpy() == val.labels).mean()
    assert top1 == pytest.approx(run.rows[-1]["val_top1"])
    first = run.network("g000-relearned").state_dict()
    assert any(not torch.equal(first[name], held) for name, held in network.state_dict().items())
    with pytest.raises(ConfigError, match="has no moment g009-relearned"):
        run.network("g009-relearned")


def test_fit_with_a_storage_keeps_the_run_where_the_command_line_would(
    recipe: sr.Recipe, tmp_path: Path
) -> None:
    alone = [epoch.row for epoch in sr.fit(recipe)]
    epochs = sr.fit(recipe, storage=tmp_path)
    first = next(epochs)
    with pytest.raises(ClusterError, match="already"):
        next(sr.fit(recipe, storage=tmp_path))
    epochs.close()  # as if the notebook had been closed
    rest = [epoch.row for epoch in sr.fit(recipe, storage=tmp_path)]
    assert without_speeds([first.row, *rest]) == without_speeds(alone)
    kept = yaml.safe_load((tmp_path / first.row["run_id"] / "job.yaml").read_text())["placement"]
    assert (kept["loader"], kept["keep"]["moments"]) == ("torch", ["ascended", "relearned"])
    planned = prepare_job(sr.Job(name="x", recipe=recipe, placement=Placement(storage=str(tmp_path))))
    run = sr.load(planned.store.folder)
    assert (run.id, run.status, run.moments) == (
        *(alone[0]["run_id"], "finished"),
        ("g000-relearned", "g001-relearned"),
    )
    assert list(sr.fit(recipe, storage=tmp_path)) == []
    with pytest.raises(ConfigError, match="leave images"):
        next(sr.fit(recipe, sr.Images.from_dataset(planned.dataset, loader="torch"), storage=tmp_path))


def test_fit_does_of_a_placement_what_one_process_can(recipe: sr.Recipe, tmp_path: Path) -> None:
    fields = {"loader": "torch", "eval_every": 2, "keep": {"moments": ["init"]}}
    asked = sr.Placement.model_validate({**fields, "workers": 2, "storage": "elsewhere"})
    rows = [epoch.row for epoch in sr.fit(recipe, storage=tmp_path, placement=asked)]
    assert [row["val_top1"] is None for row in rows] == [True, False, True, False]
    run = sr.load(tmp_path / rows[0]["run_id"])
    assert run.moments == ("g000-init",)
    held = run.job.placement
    assert (held.workers, held.storage, held.tracking.wandb) == (1, str(tmp_path), "off")


def test_analyses_are_found_by_moment(recipe: sr.Recipe, tmp_path: Path) -> None:
    list(sr.fit(recipe, storage=tmp_path))
    (folder,) = tmp_path.glob("llf-*")
    run = sr.load(folder)
    assert run.results("depth") == {}
    options: dict[str, Any] = {"in_process": True, "console": QUIET}
    done = sr.analyze(run, ["depth"], ["depth.k=3"], **options)
    assert [one.status for one in done] == ["computed", "computed"]
    assert [one.status for one in sr.analyze(str(folder), ["depth"], ["depth.k=3"], **options)] == [
        "known"
    ] * 2
    written = {
        path.stem.removeprefix("depth-"): json.loads(path.read_text())["result"]
        for path in folder.glob("analysis/depth-*.json")
    }
    assert run.results("depth") == written
    assert list(written) != []
    judged = sr.transfer(run, [run.recipe.data.path], fraction=0.5, **options)
    assert [(one.what, one.status) for one in judged] == [("transfer-digits", "computed")]
    assert 0 <= run.results("transfer-digits")["g001-relearned"]["top1"] <= 100
    drawn = sr.fewshot(run, [run.recipe.data.path], shots=(2,), episodes=3, ways=2, queries=2, **options)
    assert [one.status for one in drawn] == ["computed"]
    path, study = sr.report(run, tmp_path / "page.html")
    assert (path, len(study.runs)) == (tmp_path / "page.html", 1)
    assert folder.name in path.read_text()


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"is no run's folder, it has no job\.yaml"):
        sr.load(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    with pytest.raises(ConfigError, match="pip install pandas"):
        sr.Leaderboard("x", (), (), tmp_path).to_pandas()
