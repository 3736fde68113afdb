"""A run under a real Ray computes what one process computes, resumes, and refuses what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from seal_ray.data.images import Images
from seal_ray.data.prepared import load_dataset
from seal_ray.distributed.launch import launch, prepare_job
from seal_ray.distributed.workers import lacking_room
from seal_ray.errors import ClusterError, DataError
from seal_ray.recipe import load_job
from seal_ray.runs.checkpoint import read_snapshot
from seal_ray.runs.folder import open_store
from seal_ray.runs.summary import list_runs, summarise
from seal_ray.storage.lease import hold_lease
from seal_ray.sweeps.file import load_sweep
from seal_ray.sweeps.results import prepare_sweep
from seal_ray.sweeps.tune import train_sweep
from seal_ray.tracking.terminal import RunProgress
from seal_ray.training.loop import fit
from tests.plugins import write_broken
from tests.ray.conftest import Screen, small_job
from tests.runs import same_state, without_speeds
from tests.sweeps import screen as shown

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("method", [{"name": "seal", "ascent_rate": 0.5}], ids=["seal"])
def test_two_ray_workers_compute_what_one_process_computes(
    method: dict[str, object], digits: Path, tmp_path: Path, screen: Screen
) -> None:
    console, printed = screen
    job = small_job(digits, tmp_path / "ray", method)
    planned = prepare_job(job)
    outcome = launch(planned, console)
    assert outcome["status"] == "finished"
    assert planned.run_id.startswith("seal-s0-")

    images = Images.from_dataset(load_dataset(digits), loader="torch")
    alone = open_store(tmp_path / "alone", job.recipe, images)
    list(fit(job.recipe, images, store=alone))
    one = read_snapshot(alone.folder / "checkpoints" / "g002-e001", alone.run_id)
    two = read_snapshot(planned.store.folder / "checkpoints" / "g002-e001", alone.run_id)
    for snapshot in (one, two):
        for row in snapshot.rows:
            row.pop("workers")  # type: ignore[attr-defined]
    same_state(one, two)
    assert without_speeds(planned.store.rows(), "workers") == without_speeds(one.rows)

    lines = printed.getvalue().splitlines()
    assert len(lines) == 1 + 6
    assert "6 epochs on 2 workers" in lines[0]
    assert lines[3].startswith("g1  e0   ascend   lr -")
    assert not (planned.store.folder / "lease.json").exists()
    assert not (planned.store.folder / "ray").exists()
    assert list((planned.store.folder / "wandb").glob("offline-run-*/*.wandb"))

    again = launch(prepare_job(job), console)
    assert again["status"] == "finished"
    assert "finished already, nothing to train" in printed.getvalue()


def test_a_run_whose_workers_wait_for_room_is_queued(
    digits: Path, tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seal_ray.distributed.launch.QUEUE_INTERVAL", 0.1)
    cores = int(ray.cluster_resources()["CPU"])
    others = ray.util.placement_group([{"CPU": 1}] * cores)
    ray.get(others.ready())
    held = lacking_room(small_job(digits, tmp_path, "normal"), False)
    assert held == ""  # our own Ray job holds it
    ray.util.remove_placement_group(others)
    hog = ray.remote(num_cpus=cores)(Busy).remote()
    ray.get(hog.here.remote())
    planned = prepare_job(small_job(digits, tmp_path, "normal", tracking={"wandb": "off"}))
    seen = []

    class EndsWhatIsInTheWay(RunProgress):
        def note(self, text: str) -> None:
            super().note(text)
            if "queued" in text:
                seen.append(summarise(planned.store.folder))
                ray.kill(hog)

    assert launch(planned, EndsWhatIsInTheWay(screen[0]._console))["status"] == "finished"
    assert (seen[0]["status"], seen[0]["reason"]) == (
        "queued",
        f"waits for 2 CPUs; 0 of the cluster's {cores} free",
    )
    assert planned.store.waiting() == ""


class Busy:
    """An actor that occupies what it asks for."""

    def here(self) -> None:
        """Answers once it has it."""


def test_a_stopped_run_goes_on_at_the_next_epoch_with_another_number_of_workers(
    digits: Path, tmp_path: Path, screen: Screen
) -> None:
    console, printed = screen
    method = {"name": "seal", "ascent_rate": 0.5}
    planned = prepare_job(small_job(digits, tmp_path, method, tracking={"wandb": "off"}))

    class StopsAfterThree(RunProgress):
        def epoch(self, row):  # type: ignore[no-untyped-def]
            super().epoch(row)
            if row["global_epoch"] == 0:
                planned.store.request_stop()

    outcome = launch(planned, StopsAfterThree(console._console))
    done = len(planned.store.rows())
    assert outcome["status"] == "stopped"
    assert 1 <= done < 6
    assert not planned.store.stop_requested()

    alone = prepare_job(small_job(digits, tmp_path, method, tracking={"wandb": "off"}, workers=1))
    assert alone.run_id == planned.run_id
    assert launch(alone, console)["status"] == "finished"
    assert f"going on after epoch {done}" in printed.getvalue()
    rows = alone.store.rows()
    assert [row["global_epoch"] for row in rows] == list(range(6))
    assert [row["workers"] for row in rows] == [2] * done + [1] * (6 - done)


def test_an_exception_in_a_worker_is_how_the_run_ends(digits: Path, tmp_path: Path, screen: Screen) -> None:
    console, printed = screen
    changes = {"placement": {"storage": str(tmp_path / "runs"), "retries": 1, "tracking": {"wandb": "off"}}}
    path = write_broken(tmp_path, digits, **changes)
    planned = prepare_job(load_job(path))
    outcome = launch(planned, console)
    assert outcome["status"] == "failed"
    assert outcome["reason"].startswith("KeyError: 'layer9'; the same command goes on")
    assert printed.getvalue().count("warning: a worker failed: KeyError: 'layer9'") == 2
    [run] = list_runs(tmp_path / "runs")
    assert (run["status"], run["reason"]) == ("failed", outcome["reason"])
    assert run["epochs_done"] == 1


def test_an_exception_in_a_sweeps_worker_is_how_that_run_ends(digits: Path, tmp_path: Path) -> None:
    placement = {"storage": str(tmp_path / "runs"), "retries": 1, "tracking": {"wandb": "off"}}
    write_broken(tmp_path, digits, placement=placement)
    file = tmp_path / "sweep.yaml"
    file.write_text("base: broken.yaml\naxes: {method: [broken, normal]}\n")
    runs = prepare_sweep(load_sweep(file))
    rich, _ = shown()
    train_sweep(runs, rich, share=False, concurrent=1, in_process=False)
    found = {run["method"]: (run["status"], run["reason"]) for run in list_runs(tmp_path / "runs")}
    assert found["broken"] == ("failed", "its workers died 2 times; KeyError: 'layer9'")
    assert found["normal"] == ("finished", "")


def test_a_diverging_run_says_where_and_is_not_retried(digits: Path, tmp_path: Path, screen: Screen) -> None:
    console, printed = screen
    job = small_job(digits, tmp_path, "normal", {"optimizer": {"lr": 1e8, "warmup_share": 0.0}})
    outcome = launch(prepare_job(job), console)
    assert outcome["status"] == "diverged"
    assert "in generation 0, epoch 0, phase learn" in outcome["reason"]
    assert launch(prepare_job(job), console)["status"] == "diverged"
    assert "diverged already" in printed.getvalue()


def test_more_workers_than_the_cluster_has_is_an_error_before_anything_starts(
    digits: Path, tmp_path: Path, screen: Screen
) -> None:
    job = small_job(digits, tmp_path, "normal", {"shards": 32, "batch_size": 64}, workers=32)
    planned = prepare_job(job)
    with pytest.raises(ClusterError, match=r"32 workers need a CPU each, the cluster has \d+; lower workers"):
        launch(planned, screen[0])
    assert not planned.store.folder.exists()


def test_damaged_data_is_an_error_before_anything_starts(
    digits: Path, tmp_path: Path, screen: Screen
) -> None:
    planned = prepare_job(small_job(digits, tmp_path, "normal"))
    beton = digits / "train.beton"
    original = beton.read_bytes()
    beton.write_bytes(original[:-100] + bytes(100))
    try:
        with pytest.raises(DataError, match=r"train\.beton"):
            launch(planned, screen[0])
    finally:
        beton.write_bytes(original)
    assert not planned.store.folder.exists()


def test_a_second_launch_of_a_running_run_says_where_it_runs(
    digits: Path, tmp_path: Path, screen: Screen
) -> None:
    planned = prepare_job(small_job(digits, tmp_path, "normal"))
    with (
        hold_lease(planned.store.folder),
        pytest.raises(ClusterError, match=r"is already running: process \d+ on \S+"),
    ):
        launch(planned, screen[0])
