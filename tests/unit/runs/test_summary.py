"""The list of runs, read from what real runs leave behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seal_ray.cli.tables import runs_table
from seal_ray.errors import CheckpointError, Diverged
from seal_ray.recipe import Job, dump_job
from seal_ray.runs.folder import Store
from seal_ray.runs.summary import ascents, generation_ends, list_runs, summarise
from seal_ray.storage.lease import hold_lease
from tests.runs import keeping, open_store, tiny_recipe, train_run

MOMENTS = keeping(())


def make_run(storage: Path, method: Any = "normal", epochs: int | None = None, **changes: Any) -> Store:
    """A run of 2 generations of 2 epochs in the storage, trained for `epochs` of them."""
    changes.setdefault("budget", {"epochs": 4, "generation_length": 2})
    placement = changes.pop("placement", MOMENTS)
    recipe = tiny_recipe(method, **changes)
    name = open_store(recipe, storage).run_id
    folder = storage / name
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(dump_job(Job(name="trial", recipe=recipe)))
    if epochs != 0:
        train_run(recipe, folder, epochs, 2, placement=placement)
    return Store(folder, name)


def status(store: Store) -> str:
    return str(summarise(store.folder)["status"])


def test_a_finished_run_says_how_well_it_did(tmp_path: Path) -> None:
    store = make_run(tmp_path, {"name": "seal", "ascent_rate": 0.5}, seed=3)
    rows = store.rows()
    (run,) = list_runs(tmp_path)
    scores = [row["val_top1"] for row in rows]
    assert run == summarise(store.folder)
    assert run["id"] == store.run_id
    assert (run["name"], run["method"], run["seed"], run["status"]) == ("trial", "seal", 3, "finished")
    assert (run["generation"], run["epoch"], run["epochs_done"], run["epochs"]) == (1, 1, 4, 4)
    assert (run["top1"], run["best_top1"]) == (scores[-1], max(scores))
    assert run["weights_sha256"] == rows[-1]["weights_sha256"]
    assert run["images_per_second"] == pytest.approx(sum(r["images_per_second"] for r in rows) / 4, abs=0.1)
    assert run["ascents"] == [
        {"generation": 1, "loss_before": rows[1]["val_loss"], "loss_after": rows[2]["val_loss"]}
    ]
    assert run["reason"] == ""
    wanted = ["id", "method", "seed", "generation", "epoch", "status", "top1", "best_top1", "weights_sha256"]
    assert set(wanted) <= json.loads(json.dumps(run)).keys()


def test_the_headline_is_the_last_and_not_the_best(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    path = store.folder / "metrics.jsonl"
    rows = [dict(row, val_top1=score) for row, score in zip(store.rows(), range(4), strict=True)]
    rows[1]["val_top1"], rows[3]["val_top1"] = 90.0, None  # the last epoch was not evaluated
    shutil.rmtree(store.folder / "checkpoints")  # which would contradict
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = summarise(store.folder)
    assert (run["top1"], run["best_top1"]) == (2, 90.0)


def test_the_ends_of_generations_are_those_that_came() -> None:
    rows = [
        {"generation": epoch // 3, "epoch": epoch % 3, "val_top1": None if epoch % 3 == 1 else float(epoch)}
        for epoch in range(8)  # two generations of three epochs, and two epochs of another
    ]
    assert generation_ends(rows, 3) == (2.0, 5.0)
    assert generation_ends(rows[:2], 3) == ()


def test_a_run_that_was_left_is_interrupted_unless_someone_holds_it(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=3)
    run = summarise(store.folder)
    assert (run["status"], run["generation"], run["epoch"], run["epochs_done"]) == ("interrupted", 1, 0, 3)
    with hold_lease(store.folder):
        assert status(store) == "running"
    assert status(store) == "interrupted"


def test_a_run_whose_process_was_killed_is_interrupted(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=1)
    code = (
        "import os, signal; from pathlib import Path; from seal_ray.storage.lease import hold_lease\n"
        f"with hold_lease(Path({str(store.folder)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (store.folder / "lease.json").exists()
    assert status(store) == "interrupted"


def test_a_run_that_was_asked_to_stop_is_stopped(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=2)
    store.request_stop("Ctrl-C")
    recipe = tiny_recipe(budget={"epochs": 4, "generation_length": 2})
    results = train_run(recipe, store.folder, placement=MOMENTS)
    assert [(r.row["global_epoch"], r.status) for r in results] == [(2, "stopped")]
    assert status(store) == "stopped"
    assert summarise(store.folder)["reason"] == "Ctrl-C; the same command goes on"
    store.clear_stop()
    train_run(recipe, store.folder, placement=MOMENTS)
    assert status(store) == "finished"
    assert summarise(store.folder)["reason"] == ""


def test_a_run_that_a_file_stops_says_that(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=1)
    (store.folder / "stop").touch()
    recipe = tiny_recipe(budget={"epochs": 4, "generation_length": 2})
    train_run(recipe, store.folder, placement=MOMENTS)
    reason = summarise(store.folder)["reason"]
    assert reason == "there is a file `stop` in its folder; the same command goes on"


def test_a_diverged_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        make_run(tmp_path, optimizer={"lr": 1e6})
    (run,) = list_runs(tmp_path)
    assert run["status"] == "diverged"
    assert "not finite" in run["reason"]


def test_a_failed_run_gives_its_reason(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=1)
    store.set_status("failed", reason="the data set was altered")
    run = summarise(store.folder)
    assert (run["status"], run["reason"]) == ("failed", "the data set was altered")


def test_a_run_that_has_not_begun_is_new(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=0)
    run = summarise(store.folder)
    assert run["status"] == "new"
    assert run["epochs_done"] == 0
    for key in ("generation", "epoch", "top1", "best_top1", "weights_sha256", "images_per_second"):
        assert run[key] is None
    assert run["ascents"] == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("job.yaml", "recipe: {"),
        ("job.yaml", "\x00"),
        ("job.yaml", ""),
        ("metrics.jsonl", "{\n"),
        ("metrics.jsonl", "5\n"),
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", '{"vel_top1": 5}\n'),
    ],
)
def test_a_damaged_run_is_listed_beside_the_others(tmp_path: Path, file: str, text: str) -> None:
    good = make_run(tmp_path)
    bad = make_run(tmp_path, seed=1)
    (bad.folder / file).write_text(text)
    shutil.rmtree(bad.folder / "checkpoints")  # whose checksums would tell
    runs = {run["id"]: run for run in list_runs(tmp_path)}
    assert runs[bad.run_id]["status"] == "damaged"
    assert file in runs[bad.run_id]["reason"]
    assert runs[good.run_id]["status"] == "finished"


def test_a_damaged_status_is_unknown(tmp_path: Path) -> None:
    store = make_run(tmp_path, epochs=1)
    (store.folder / "status.json").write_text("{")
    assert status(store) == "unknown"


def test_runs_are_listed_by_method_and_seed(tmp_path: Path) -> None:
    for method, seed in (("seal", 0), ("llf", 10), ("llf", 2)):
        make_run(tmp_path, method, epochs=0, seed=seed)
    (tmp_path / "data").mkdir()
    (tmp_path / "notes.txt").write_text("")
    listed = [(run["method"], run["seed"]) for run in list_runs(tmp_path)]
    assert listed == [("llf", 2), ("llf", 10), ("seal", 0)]


def test_an_empty_storage_has_no_runs_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(CheckpointError, match=f"{path.name}: no such folder"):
            list_runs(path)


def test_each_ascent_is_measured_from_the_epoch_before_it() -> None:
    phases = ["learn", "learn", "ascend", "ascend", "relearn", "ascend", "relearn"]
    generations = [0, 0, 1, 1, 1, 2, 2]
    losses = [3.0, 1.0, 1.5, 2.0, 0.9, 1.2, 0.8]
    rows = [
        {"phase": phase, "generation": generation, "val_loss": loss}
        for phase, generation, loss in zip(phases, generations, losses, strict=True)
    ]
    assert ascents(rows) == [
        {"generation": 1, "loss_before": 1.0, "loss_after": 2.0},
        {"generation": 2, "loss_before": 0.9, "loss_after": 1.2},
    ]
    assert ascents(rows[:3]) == [{"generation": 1, "loss_before": 1.0, "loss_after": 1.5}]
    assert ascents([]) == []
    for row in (rows[0], rows[2]):  # not every epoch is evaluated
        row["val_loss"] = None
    assert ascents(rows)[0] == {"generation": 1, "loss_before": 1.0, "loss_after": 2.0}
    assert ascents(rows[:3]) == []


def test_a_run_in_the_middle_of_an_ascent_can_be_listed(tmp_path: Path) -> None:
    seal = {"name": "seal", "ascent_share": 0.5, "ascent_rate": 0.5}
    budget = {"epochs": 16, "generation_length": 8}
    make_run(tmp_path, seal, epochs=9, budget=budget, placement=keeping((), eval_every=4))
    runs = list_runs(tmp_path)
    assert [run["ascents"] for run in runs] == [[]]
    runs_table(runs, "runs")
