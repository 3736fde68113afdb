"""Runs brought to W&B from their metrics: against a server on loopback that keeps what it is sent."""

from __future__ import annotations

import json
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seal_ray.cli import app
from seal_ray.errors import CheckpointError, ConfigError, SealRayError
from seal_ray.recipe import Job, Placement, dump_job
from seal_ray.runs.checkpoint import read_manifest
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import hold_lease
from seal_ray.tracking import wandb as tracking
from seal_ray.tracking.sync import Synced, sync_storage
from seal_ray.tracking.wandb import open_tracker
from tests.runs import keeping, open_store, tiny_recipe, train_run
from tests.wandb_server import Server

pytestmark = pytest.mark.faults

RECIPE = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, budget={"epochs": 4, "generation_length": 2})
RUN = open_store(RECIPE, "unused").run_id


def job(wandb: str = "offline") -> Job:
    placement = Placement.model_validate({"tracking": {"wandb": wandb, "project": "trial"}})
    return Job(name="tiny-seal", recipe=RECIPE, placement=placement)


def train(storage: Path, epochs: int | None = None, wandb: str = "offline", name: str = RUN) -> Store:
    """Go on with the run in `storage` for some epochs, W&B left out."""
    train_run(RECIPE, storage / name, epochs, checkpoints=2, placement=keeping(()))
    (storage / name / "job.yaml").write_text(dump_job(job(wandb)))
    return open_store(RECIPE, storage / name)


def track(store: Store, rows: list[Any], mode: str = "online") -> None:
    tracker = open_tracker(job(mode), RUN, store.folder, "digits")
    for row in rows:
        tracker.log(row)
    tracker.close()


def same_rows(server: Server, rows: list[Any]) -> None:
    """Assert that W&B has these rows, in this order, each once, every number as it is.

    The last row of a generation says its accuracy once more.
    """
    assert [row["global_epoch"] for row in server.rows(RUN)] == [row["global_epoch"] for row in rows]
    ends = RECIPE.budget.length - 1
    assert server.rows(RUN) == [
        row | ({"generation_top1": row["val_top1"]} if row["epoch"] == ends else {}) for row in rows
    ]


def test_an_offline_run_of_several_launches_becomes_one_run_with_each_epoch_once(
    server: Server, tmp_path: Path
) -> None:
    store = train(tmp_path, 1)
    track(store, store.rows(), "offline")
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=1, uploaded=1)]
    same_rows(server, store.rows())
    track(train(tmp_path, 1), store.rows()[1:], "offline")
    track(train(tmp_path), store.rows()[2:], "offline")
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=4, uploaded=3)]
    assert list(sync_storage(tmp_path, run=RUN)) == [Synced(RUN, epochs=4, uploaded=0)]
    same_rows(server, store.rows())
    assert len(store.rows()) == 4
    known = server.runs[RUN]
    assert (known["project"], known["groupName"], known["jobType"]) == ("trial", "tiny-seal", "train")
    assert json.loads(known["config"])["method"]["value"]["ascent_rate"] == 0.3
    assert list((store.folder / "wandb").glob("run-*")) == []


def test_what_wandb_did_not_take_is_said_and_brought_by_the_next_sync(server: Server, tmp_path: Path) -> None:
    store = train(tmp_path, 2)
    list(sync_storage(tmp_path))
    train(tmp_path)
    server.broken.set()
    with pytest.raises(SealRayError, match=rf"{RUN}: W&B did not take 2 of 4 epochs; the same command again"):
        list(sync_storage(tmp_path))
    same_rows(server, store.rows()[:2])
    server.broken.clear()
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=4, uploaded=2)]
    same_rows(server, store.rows())


def test_a_server_that_remembers_late_doubles_nothing(server: Server, tmp_path: Path) -> None:
    store = train(tmp_path, 2)
    list(sync_storage(tmp_path))
    server.forgetful.set()
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=2, uploaded=0)]
    train(tmp_path)
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=4, uploaded=2)]
    same_rows(server, store.rows())


def test_an_online_launch_brings_what_earlier_ones_left_out(server: Server, tmp_path: Path) -> None:
    store = train(tmp_path, 1)
    track(store, store.rows())
    train(tmp_path, 2)  # offline, or lost with the process
    train(tmp_path)
    track(store, store.rows()[3:])
    same_rows(server, store.rows())
    track(store, store.rows()[2:])  # trained again from an older checkpoint
    same_rows(server, store.rows())
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=4, uploaded=0)]


def test_an_online_launch_whose_epochs_are_refused_says_so_once(server: Server, tmp_path: Path) -> None:
    store = train(tmp_path, 2)
    server.broken.set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        track(store, store.rows())
    assert ["`seal-ray sync` brings W&B what it lacks" in str(w.message) for w in caught] == [True]
    server.broken.clear()
    assert list(sync_storage(tmp_path)) == [Synced(RUN, epochs=2, uploaded=2)]
    same_rows(server, store.rows())


def test_moments_come_with_their_generation_once_and_their_files_when_asked(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / RUN
    train_run(RECIPE, folder, 3, checkpoints=2, placement=keeping(("ascended", "relearned")))
    (folder / "job.yaml").write_text(dump_job(job()))
    list(sync_storage(tmp_path))
    list(sync_storage(tmp_path))
    (first,) = server.artifacts
    assert (first.name, first.type, first.committed) == (f"{RUN}-g000-relearned", "moment", True)
    path = folder / "moments" / "g000-relearned"
    assert first.metadata["weights_sha256"] == read_manifest(path)["weights_sha256"]
    assert first.metadata["parent"]["run"] == RUN
    assert {name: entry["ref"] for name, entry in first.contents.items()} == {
        file.name: file.as_uri() for file in path.iterdir()
    }
    assert first.files == {}

    train_run(RECIPE, folder, checkpoints=2, placement=keeping(("ascended", "relearned")))
    list(sync_storage(tmp_path, moments=True))
    sent = {artifact.name: artifact for artifact in server.artifacts[1:]}
    assert len(server.artifacts) == 4
    for label in ("g000-relearned", "g001-ascended", "g001-relearned"):
        artifact, path = sent[f"{RUN}-{label}"], folder / "moments" / label
        assert artifact.committed
        assert artifact.files == {file.name: file.read_bytes() for file in path.iterdir()}
    same_rows(server, open_store(RECIPE, folder).rows())


def test_project_and_entity_may_be_others(server: Server, tmp_path: Path) -> None:
    train(tmp_path, 1)
    list(sync_storage(tmp_path, project="elsewhere", entity="team"))
    assert (server.runs[RUN]["project"], server.runs[RUN]["entity"]) == ("elsewhere", "team")


def test_runs_that_are_not_to_be_uploaded_are_skipped_with_a_reason(server: Server, tmp_path: Path) -> None:
    train(tmp_path, 1, "off")
    train(tmp_path, 1, name="held")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "job.yaml").write_text(dump_job(job()))
    with hold_lease(tmp_path / "held"):
        found = {one.run_id: one for one in sync_storage(tmp_path)}
    assert found.keys() == {RUN, "held", "new"}
    assert found[RUN].skipped == "not tracked (placement.tracking.wandb: off)"
    assert found["held"].skipped.startswith("being trained by process ")
    assert found["new"].skipped == "no epochs yet"
    assert server.runs == {}


def test_damaged_metrics_are_not_uploaded(server: Server, tmp_path: Path) -> None:
    store = train(tmp_path, 2)
    path = store.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"train_loss": ', b'"train_loss": 1', 1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "job.yaml").write_text("{")
    found = {one.run_id: one for one in sync_storage(tmp_path)}
    assert "metrics.jsonl: damaged" in found[RUN].skipped
    assert "job.yaml:1" in found["other"].skipped
    assert server.runs == {}


def test_the_command_says_what_became_of_each_run(server: Server, tmp_path: Path) -> None:
    train(tmp_path, 2)
    train(tmp_path, 1, "off", name="untracked")
    done = CliRunner().invoke(app, ["sync", "--storage", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-2:] == [
        f"{RUN}: 2 of 2 epochs uploaded",
        "untracked: skipped, not tracked (placement.tracking.wandb: off)",
    ]


def test_an_unknown_run_or_storage_is_an_error(server: Server, tmp_path: Path) -> None:
    train(tmp_path, 1)
    with pytest.raises(CheckpointError, match="holds no run other; see `seal-ray runs`"):
        sync_storage(tmp_path, run="other")
    with pytest.raises(CheckpointError, match="holds no runs"):
        sync_storage(tmp_path / "nowhere")


@pytest.mark.usefixtures("no_key")
def test_without_a_key_the_remedy_is_said(tmp_path: Path) -> None:
    train(tmp_path, 1)
    with pytest.raises(ConfigError, match="run `wandb login`, or set WANDB_API_KEY"):
        sync_storage(tmp_path)


def test_a_server_that_cannot_be_reached_is_an_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(tracking, "WANDB_TIMEOUT", 3.0)
        with pytest.raises(SealRayError, match=rf"{RUN}: W&B cannot be reached or refuses .* same command"):
            list(sync_storage(tmp_path))
