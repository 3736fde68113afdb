"""Transfer, fine-tuning and few-shot on Ray actors; workers that begin with given weights."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

import seal_ray.analysis.run
from seal_ray.analysis.evaluations import make_evaluation
from seal_ray.analysis.moments import Moment
from seal_ray.analysis.run import score_moments
from seal_ray.analysis.tasks import read_result
from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source
from seal_ray.data.sources.folder import folder
from seal_ray.distributed.launch import launch, prepare_job
from seal_ray.sweeps.results import SweepRuns
from seal_ray.sweeps.tune import train_sweep
from seal_ray.tracking.terminal import RunProgress
from tests.ray.conftest import small_job
from tests.runs import same_tensors
from tests.sweeps import screen, small_sweep

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:.* logistic regressions did not converge"),
]
ASKED: dict[str, dict[str, Any]] = {
    "transfer": {"fraction": 0.5},
    "finetune": {"epochs": 2, "batch_size": 16, "lr": 0.05},
    "fewshot": {"shots": [2, 5], "episodes": 20, "ways": 3, "queries": 4},
}


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepRuns:
    """Plain training and LLF on a few digits."""
    root = tmp_path_factory.mktemp("carried")
    axes = {"method": {"normal": "normal", "llf": "llf"}}
    trained = small_sweep(
        digits, root / "runs", axes=axes, recipe={"budget": {"epochs": 4, "generation_length": 2}}
    )
    train_sweep(trained, screen()[0], share=True, concurrent=None, in_process=True)
    return trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letters, and images in folders, as a user's own."""
    root = tmp_path_factory.mktemp("targets")
    source = open_source("letters")
    prepare(source, root / "data/letters", classes=5, per_class=12)
    for split, samples in (("train", source.train), ("val", source.val)):
        for sample in samples:
            font, letter, turn = sample.origin.split("/")
            if letter in "XYZ" and turn == "0":
                path = root / "images" / split / letter / f"{font}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample.read()).save(path)
    prepare(folder(root / "images/train", root / "images/val", 24), root / "data/mine")
    return root / "data"


def results(runs: SweepRuns, kind: str) -> list[dict[str, Any]]:
    moments = [Moment(one.store.folder, 1, "relearned") for one in runs.planned]
    held = [read_result(moment, f"{kind}-{label}") for moment in moments for label in ("letters", "mine")]
    return [one["result"] for one in held if one]


def scores(found: list[dict[str, Any]]) -> list[float]:
    """Accuracies, of few-shot one for each number of shots."""
    return [float(one["top1"]) for held in found for one in held.get("shots", {"": held}).values()]


@pytest.mark.parametrize("kind", ASKED)
def test_actors_find_what_one_process_finds_and_it_lands_in_the_leaderboard(
    kind: Any, runs: SweepRuns, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_ray.analysis.run, "ray_session", lambda *_: contextlib.nullcontext())
    file = runs.folder.parents[2] / "small.yaml"
    evaluation = make_evaluation(kind, targets=["letters", "mine"], **ASKED[kind])
    printed = io.StringIO()
    console = Console(file=printed, width=160)
    outcomes = score_moments(file, console, evaluation, data=data, workers=2)
    assert [one.status for one in outcomes] == ["computed"] * 4
    on_ray = results(runs, kind)
    assert len(on_ray) == 4
    assert f"small: {kind}" in printed.getvalue()

    for one in runs.planned:
        for path in (one.store.folder / "analysis").glob(f"{kind}-*.json"):
            path.unlink()
    for path in runs.folder.glob("results.*"):
        path.unlink()
    score_moments(file, console, evaluation, data=data, in_process=True)
    assert scores(results(runs, kind)) == pytest.approx(scores(on_ray))
    lines = json.loads((runs.folder / "results.json").read_text())["lines"]
    columns = {name for name in lines[0]["carried"] if name.startswith(kind)}
    assert len(columns) == (4 if kind == "fewshot" else 2)
    assert f"{kind} mine" in (runs.folder / "results.md").read_text()


def test_two_workers_begin_with_the_weights_of_a_moment(
    digits: Path, runs: SweepRuns, tmp_path: Path
) -> None:
    source = runs.planned[1].store
    model = {"arch": "resnet18", "width": 4, "init_from": str(source.folder / "moments/g001-relearned")}
    recipe = {"model": model, "budget": {"epochs": 2, "generation_length": 2}}
    keep = {"moments": ["init", "relearned"]}
    job = small_job(digits, tmp_path, "normal", recipe, keep=keep, loader="torch", tracking={"wandb": "off"})
    planned, text = prepare_job(job), io.StringIO()
    outcome = launch(planned, RunProgress(Console(file=text, width=300)))
    assert outcome == {"status": "finished", "reason": ""}
    assert "begins with the weights of " in text.getvalue()
    begun = planned.store.moment("init", 0).weights
    same_tensors(begun, source.moment("relearned", 1).weights, "weights")
    same = prepare_job(job)
    assert same.store.status()["status"] == "finished"
