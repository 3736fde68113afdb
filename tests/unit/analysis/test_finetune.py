"""Fine-tuning: the training loop's own run of a moment's weights, made once, resumed, compared in a sweep."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import seal_ray.analysis.finetune
from seal_ray.analysis.evaluations import load_evaluation, make_evaluation, transfer_kind
from seal_ray.analysis.finetune import images_of
from seal_ray.analysis.moments import Moment
from seal_ray.analysis.probe import training_share
from seal_ray.analysis.run import score_moments, score_weights
from seal_ray.analysis.scoring import Normalisation
from seal_ray.analysis.tasks import TaskOutcome, read_result
from seal_ray.data.images import Images
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import Dataset, load_dataset
from seal_ray.data.sources import open_source
from seal_ray.errors import ConfigError
from seal_ray.recipe import Recipe, load_job
from seal_ray.runs.export import export
from seal_ray.runs.sharing import RunIndex
from seal_ray.runs.summary import list_runs
from seal_ray.sweeps.file import load_sweep
from seal_ray.sweeps.results import prepare_sweep, write_results
from seal_ray.training.loop import fit
from tests.runs import without_speeds
from tests.unit.analysis.conftest import run_of

TUNED = {"epochs": 3, "lr": 0.05, "batch_size": 8, "seed": 2, "augment": {"crop_padding": 2, "flip": False}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with letters that the runs were not trained on: as many classes, 12 train images of each."""
    root = tmp_path_factory.mktemp("targets")
    prepare(open_source("letters"), root / "letters", classes=4, per_class=12)
    return root


def ask(path: Path, data: Path, fields: Any = TUNED, **asked: Any) -> tuple[list[TaskOutcome], str]:
    printed = io.StringIO()
    evaluation = make_evaluation("finetune", targets=["letters"], **fields)
    console = Console(file=printed, width=120, soft_wrap=True)
    return score_moments(path, console, evaluation, data=data, in_process=True, **asked), printed.getvalue()


def statuses(outcomes: Sequence[TaskOutcome]) -> Counter[str]:
    return Counter(outcome.status for outcome in outcomes)


def result(moment: Moment) -> dict[str, Any]:
    held = read_result(moment, "finetune-letters")
    assert held is not None
    return held


def tuned_by_hand(moment: Moment, target: Dataset, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of the recipe that the protocol is, on images normalised as the run's own."""
    source = load_job(moment.run / "job.yaml").recipe
    trained_on = load_dataset(Path(source.data.path))
    recipe = Recipe.model_validate(
        {
            "data": {"path": str(target.folder)},
            "model": {"arch": "resnet18", "width": 4, "init_from": str(moment.path), "new_head": True},
            "method": "normal",
            "budget": {"epochs": 3, "generation_length": 3},
            "optimizer": {"lr": 0.05, "weight_decay": 5e-4, "warmup_share": 0.0},
            "loss": {"label_smoothing": 0.0},
            "augment": {"crop_padding": 2, "flip": False},
            "batch_size": 8,
            "seed": 2,
            **changes,
        }
    )
    images = replace(Images.from_dataset(target, loader="torch"), mean=trained_on.mean, std=trained_on.std)
    return [result.row for result in fit(recipe, images)]


def test_it_is_a_run_of_the_training_loop_from_the_moment_s_weights(storage: Path, data: Path) -> None:
    run = run_of(storage, "seal")
    outcomes, printed = ask(run, data)
    assert statuses(outcomes) == {"computed": 1}
    moment = Moment(run, 2, "relearned")
    rows = tuned_by_hand(moment, load_dataset(data / "letters"))
    held = result(moment)
    numbers = held["result"]
    assert [epoch["train_loss"] for epoch in numbers["epochs"]] == [row["train_loss"] for row in rows]
    assert [epoch["val_top1"] for epoch in numbers["epochs"]] == [row["val_top1"] for row in rows]
    assert numbers["top1"] == rows[-1]["val_top1"]
    assert numbers["best_top1"] == max(row["val_top1"] for row in rows)
    assert numbers["finetuned_sha256"] == rows[-1]["weights_sha256"]
    assert numbers["train_images"] == 48
    assert numbers["normalised_with"]["of"] == "digits"
    assert numbers["target"]["label"] == "letters"
    assert (held["what"], held["epochs"], held["settings"]["lr"]) == ("finetune-letters", 6, 0.05)
    assert f"{numbers['top1']:.2f}" in printed
    folder = run / "analysis" / numbers["run"]
    assert folder.parent.name == "finetune-letters-g002-relearned"
    tuned = load_job(folder / "job.yaml").recipe
    assert tuned.model.init_sha256 == held["weights_sha256"]


def test_its_run_is_no_run_of_the_storage_and_nothing_branches_from_it(storage: Path, data: Path) -> None:
    before = [run["id"] for run in list_runs(storage)]
    index = RunIndex(storage)
    index.refresh()
    keys = {name: index.keys(name) for name in index.folders}
    run = run_of(storage, "llf")
    ask(run, data)
    assert [found["id"] for found in list_runs(storage)] == before
    index.refresh()
    assert {name: index.keys(name) for name in index.folders} == keys
    (tuned,) = list_runs(run / "analysis/finetune-letters-g002-relearned")
    assert (tuned["status"], tuned["epochs_done"], tuned["name"]) == ("finished", 3, "letters")


def test_only_what_is_missing_or_asked_otherwise_is_trained(
    storage: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(storage, "normal")
    assert statuses(ask(run, data)[0]) == {"computed": 1}
    first = result(Moment(run, 2, "relearned"))["result"]
    assert statuses(ask(run, data)[0]) == {"known": 1}
    assert statuses(ask(run, data, {**TUNED, "lr": 0.1})[0]) == {"computed": 1}
    other = result(Moment(run, 2, "relearned"))["result"]
    assert other["finetuned_sha256"] != first["finetuned_sha256"]
    # Back to the first settings, whose run is still there: its metrics are read, nothing is trained.
    monkeypatch.setattr(seal_ray.analysis.finetune, "fit", None)
    assert statuses(ask(run, data)[0]) == {"computed": 1}
    assert result(Moment(run, 2, "relearned"))["result"] == first


def test_one_that_was_killed_goes_on(storage: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trained = run_of(storage, "seal"), []

    def dying(*arguments: Any, **options: Any) -> Any:
        for epoch in fit(*arguments, **options):
            trained.append(epoch.row)
            if len(trained) == 2:
                raise KeyboardInterrupt
            yield epoch

    monkeypatch.setattr(seal_ray.analysis.finetune, "fit", dying)
    assert statuses(ask(run, data)[0]) == {"stopped": 1}
    assert statuses(ask(run, data)[0]) == {"computed": 1}
    assert [row["global_epoch"] for row in trained] == [0, 1, 2]
    by_hand = tuned_by_hand(Moment(run, 2, "relearned"), load_dataset(data / "letters"))
    left_out = ("run_id", "trained_by")  # the images have no name of their own in a recipe by hand
    assert without_speeds(trained, *left_out) == without_speeds(by_hand, *left_out)


def test_a_fraction_trains_on_the_images_that_a_probe_would(storage: Path, data: Path) -> None:
    dataset = load_dataset(data / "letters")
    own = Normalisation.of_dataset(dataset)
    whole, part = images_of(dataset, own, 1.0, 0), images_of(dataset, own, 0.25, 5)
    loader, some = whole.open("train", 100), part.open("train", 100)
    kept = training_share(torch.from_numpy(loader.labels), 0.25, 5).numpy()
    assert len(kept) == 12
    assert some.labels.tolist() == loader.labels[kept].tolist()
    order = np.arange(11, -1, -1)
    (expected,), (found,) = loader.batches(kept[order]), some.batches(order)
    assert torch.equal(found, expected)
    assert part.open("val", 7).labels.tolist() == whole.open("val", 7).labels.tolist()
    asked = ((1.0, 0), (1.0, 1), (0.25, 5), (0.25, 6))
    identities = {images_of(dataset, own, fraction, seed).identity for fraction, seed in asked}
    assert len(identities) == 3
    run = run_of(storage, "normal")
    ask(run, data, {**TUNED, "fraction": 0.25})
    assert result(Moment(run, 2, "relearned"))["result"]["train_images"] == 12


def test_it_lands_in_the_sweep_s_leaderboard_beside_probes(trained: Path, storage: Path, data: Path) -> None:
    file, where = trained.parent / "small.yaml", str(storage)
    runs = prepare_sweep(load_sweep(file, [f"placement.storage={json.dumps(where)}"]))
    outcomes, printed = ask(file, data, storage=where)
    assert statuses(outcomes) == {"computed": 3}
    assert "small: finetune" in printed
    console = Console(file=io.StringIO())
    probe = make_evaluation("transfer", targets=["letters"])
    lines, _ = write_results(runs)
    found = {one.store.run_id: result(Moment(one.store.folder, 2, "relearned")) for one in runs.planned}
    rows = list(csv.DictReader(io.StringIO((runs.folder / "finetune.csv").read_text())))
    assert [float(row["top1"]) for row in rows] == [
        found[one.store.run_id]["result"]["top1"] for one in runs.planned
    ]
    score_moments(file, console, probe, data=data, storage=where, in_process=True)
    written = json.loads((runs.folder / "results.json").read_text())
    carried = [line["carried"] for line in written["lines"]]
    assert [set(one) for one in carried] == [{"finetune_letters", "transfer_letters"}] * 3
    means = [float(row["top1"]) for row in rows]
    assert [one["finetune_letters"]["top1"]["mean"] for one in carried] == means
    llf = carried[1]["finetune_letters"]["difference"]["mean"]
    assert llf == pytest.approx(float(rows[1]["top1"]) - float(rows[0]["top1"]))
    own = [line.top1.mean for line in lines if line.top1]
    assert [line["top1"]["mean"] for line in written["lines"]] == own
    heading, _, *shown = (runs.folder / "results.md").read_text().splitlines()
    columns = [cell.strip() for cell in heading.strip("|").split("|")]
    assert columns[-4:] == ["finetune letters %", "difference", "transfer letters %", "difference"]
    cells = [cell.strip() for cell in shown[1].strip("|").split("|")]
    assert cells[-4] == f"{float(rows[1]['top1']):.2f}"
    assert float(cells[-3]) == pytest.approx(llf, abs=0.006)
    wide = list(csv.DictReader(io.StringIO((runs.folder / "results.csv").read_text())))
    assert float(wide[1]["finetune_letters_difference"]) == pytest.approx(llf)


def test_weights_from_elsewhere_are_tuned_alike(storage: Path, data: Path, tmp_path: Path) -> None:
    run = run_of(storage, "seal")
    ask(run, data)
    file = tmp_path / "theirs.safetensors"
    export(run, file)
    trained_on = load_job(run / "job.yaml").recipe.data.path
    evaluation = make_evaluation("finetune", targets=["letters"], **TUNED)
    for expected in ("computed", "known"):
        outcomes = score_weights(
            file, "resnet18", evaluation, Console(file=io.StringIO()), data=data, trained_on=trained_on
        )
        assert statuses(outcomes) == {expected: 1}
    ours = result(Moment(run, 2, "relearned"))["result"]
    theirs = json.loads((tmp_path / "theirs-finetune-letters.json").read_text())["result"]
    assert theirs["epochs"] == ours["epochs"]
    assert theirs["run"].split("/")[1] == ours["run"].split("/")[1]
    assert (tmp_path / theirs["run"] / "metrics.jsonl").is_file()


def test_it_is_tracked_as_transfer(storage: Path, data: Path) -> None:
    run = run_of(storage, "normal")
    job = (run / "job.yaml").read_text()
    (run / "job.yaml").write_text(re.sub(r"wandb: '?off'?", "wandb: offline", job))
    ask(run, data)
    (log,) = (run / "analysis/wandb").glob(f"offline-run-*/run-{run.name}-transfer.wandb")
    assert b"finetune/letters" in log.read_bytes()


def test_what_cannot_be_tuned_fails_alone_and_faults_are_said(
    storage: Path, data: Path, tmp_path: Path
) -> None:
    run = run_of(storage, "normal")
    outcomes, _ = ask(run, data, {**TUNED, "batch_size": 100})
    assert statuses(outcomes) == {"failed": 1}
    assert "48" in outcomes[0].reason
    with pytest.raises(ConfigError, match=r"--layer: layer: unknown field"):
        make_evaluation("finetune", targets=["a"], layer="layer3")
    with pytest.raises(ConfigError, match=r"--epochs: epochs: unknown field"):
        make_evaluation("transfer", targets=["a"], epochs=3)
    file = tmp_path / "mine.yaml"
    file.write_text("kind: finetune\ntargets: [a]\naugment: {flip: maybe}")
    with pytest.raises(ConfigError, match=r"mine.yaml:3: augment.flip: must be true or false"):
        load_evaluation(file)
    file.write_text("kind: finetune\ntargets: [a]\nepochs: 7")
    assert load_evaluation(file) == make_evaluation("finetune", targets=["a"], epochs=7)
    assert [transfer_kind(mode, file) for mode in (None, "probe", "finetune")] == [
        *("finetune", "transfer", "finetune")
    ]
    assert [transfer_kind(mode, None) for mode in (None, "finetune")] == ["transfer", "finetune"]
    with pytest.raises(ConfigError, match="kind finetune; give it to `seal-ray transfer --mode finetune`"):
        make_evaluation("fewshot", file)
