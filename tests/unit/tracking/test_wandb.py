"""Metrics on their way to W&B: what is written offline, and that nothing there can harm training."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from seal_ray.data.prepared import file_sha256
from seal_ray.errors import SealRayWarning
from seal_ray.recipe import Job, Placement
from seal_ray.runs.checkpoint import read_manifest
from seal_ray.tracking import wandb as tracking
from seal_ray.tracking.environment import SILENT
from seal_ray.tracking.wandb import NoTracker, Wandb, open_tracker, track_tables
from tests.runs import open_store, tiny_recipe, train_run
from tests.wandb_server import KEY, deaf_server

ROWS = [
    {"run_id": "seal-s0-x", "generation": 0, "global_epoch": 0, "val_top1": 40.0, "phase": "learn"},
    {"run_id": "seal-s0-x", "generation": 0, "global_epoch": 1, "val_top1": 55.5, "phase": "learn"},
    {"run_id": "seal-s0-x", "generation": 1, "global_epoch": 2, "val_top1": None, "phase": "ascend"},
]

TABLES = {"leaderboard": "method,n\nseal,3\n"}


pytestmark = pytest.mark.usefixtures("no_key")


def job(mode: str = "offline", method: str = "seal") -> Job:
    placement = Placement.model_validate({"tracking": {"wandb": mode, "project": "trial", "entity": None}})
    return Job(name="tiny-seal", recipe=tiny_recipe(method), placement=placement)


def track(folder: Path, rows: list[dict[str, Any]], mode: str = "offline") -> Wandb | NoTracker:
    tracker = open_tracker(job(mode), "seal-s0-x", folder, "digits")
    for row in rows:
        tracker.log(row)
    tracker.close()
    return tracker


def records(path: Path) -> Iterator[Record]:
    """The records of a .wandb file: LevelDB's log of 32 KiB blocks, after a header of 7 bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + 7 + length > len(data):
            return  # still being written
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def history(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged, without W&B's own columns."""
    rows = [values(r.history.item) for r in records(path) if r.WhichOneof("record_type") == "history"]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_an_offline_run_holds_the_rows_on_their_axis_and_the_recipe(tmp_path: Path) -> None:
    later = [{"generation": e // 4, "global_epoch": e, "val_top1": e / 2} for e in range(3, 100)]
    many = [*ROWS, *(row | {"note": "x" * 500} for row in later)]  # more than one block
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        track(tmp_path / "run", many)
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/run-seal-s0-x.wandb")
    until(lambda: len(history(path)) == len(many))  # W&B's own process may write a little later
    ends = {row["global_epoch"]: row["val_top1"] for row in many if row["global_epoch"] % 4 == 3}
    found_rows = history(path)
    assert {row["global_epoch"]: row.pop("generation_top1", None) for row in found_rows} == {
        row["global_epoch"]: ends.get(row["global_epoch"]) for row in many
    }
    assert found_rows == many
    assert path.stat().st_size > 32768
    found = list(records(path))

    metrics = {r.metric.glob_name or r.metric.name: r.metric for r in found if r.HasField("metric")}
    assert "global_epoch" in metrics
    assert metrics["*"].step_metric == "global_epoch"
    assert metrics["val_top1"].step_metric == "global_epoch"
    assert metrics["val_top1"].summary.max
    assert metrics["generation_top1"].step_metric == "generation"

    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    config = values(run.config.update)
    recipe = job().recipe.model_dump(mode="json")
    assert {key: config[key] for key in recipe} == recipe
    assert (run.run_id, run.project, run.run_group) == ("seal-s0-x", "trial", "tiny-seal")
    assert run.job_type == "train"
    assert set(run.tags) == {"seal", "resnet18", "digits"}


def test_nothing_is_tracked_when_it_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    assert isinstance(track(tmp_path, ROWS, "off"), NoTracker)
    track_tables("x", "sweep-x", job("off").placement.tracking, tmp_path, TABLES, ())
    assert list(tmp_path.iterdir()) == []


class FakeRun:
    """A W&B run that fails or hangs where a test says."""

    def __init__(self, fails_at: str = "", hangs_at: str = "") -> None:
        self.fails_at, self.hangs_at = fails_at, hangs_at
        self.release = threading.Event()
        self.calls: list[str] = []
        self.config: dict[str, Any] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_at:
            raise wandb.errors.CommError("no route to host")
        if name == self.hangs_at:
            self.release.wait(60)

    def init(self, **_: Any) -> FakeRun:
        self._call("init")
        return self

    def define_metric(self, *_: Any, **__: Any) -> None:
        self._call("define_metric")

    def log(self, row: dict[str, Any], **_: Any) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_a_wandb_that_fails_is_given_up_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = FakeRun(fails_at=where)
    monkeypatch.setattr(wandb, "init", run.init)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        track(tmp_path, ROWS)
    assert [str(w.message) for w in caught] == [
        "W&B is given up for this launch (CommError: no route to host); training goes on and "
        "metrics.jsonl is complete; `seal-ray sync` brings W&B what it lacks"
    ]
    assert run.calls.count(where) == 1
    assert run.calls[-1] == where


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_wandb_that_hangs_blocks_nothing_and_is_left_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = FakeRun(hangs_at=where)
    monkeypatch.setattr(wandb, "init", run.init)
    monkeypatch.setattr(tracking, "WANDB_TIMEOUT", 0.2)
    finished = threading.Event()

    def train() -> None:
        track(tmp_path, ROWS * 1000)
        finished.set()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threading.Thread(target=train, daemon=True).start()
        assert finished.wait(60), "training waits for W&B"
    assert ["did not finish within 0.2 s and is left behind" in str(w.message) for w in caught] == [True]
    assert not run.release.is_set()
    run.release.set()


@pytest.fixture
def answering() -> Iterator[None]:
    """W&B is waited for again after the test."""
    yield
    SILENT.clear()


@pytest.mark.usefixtures("answering")
def test_a_server_that_never_answers_costs_one_wait_for_all_runs_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later ones are logged offline; nothing of W&B is left that the process would wait for at its exit."""
    assert (tracking.patience("online"), tracking.patience("offline")) == (10.0, 30.0)
    monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 0.5)
    waited: list[str] = []
    monkeypatch.setattr(tracking, "patience", lambda mode: waited.append(mode) or tracking.ONLINE_TIMEOUT)
    with deaf_server() as url, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracking.end_service()  # W&B keeps the address that an earlier test of this process used
        tracker = track(tmp_path, ROWS, "online")
        assert [str(w.message) for w in caught] == [
            "W&B did not finish within 0.5 s and is left behind; training goes on and metrics.jsonl is "
            "complete; `seal-ray sync` brings W&B what it lacks"
        ]
        assert waited == ["online"]
        assert isinstance(tracker, Wandb)
        until(lambda: not tracker._thread.is_alive())
        assert "wandb-core" not in [child.name() for child in psutil.Process().children()]
        waited.clear()
        monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 30.0)
        track(tmp_path / "next", ROWS, "online")
        track_tables("x", "sweep-x", job("online").placement.tracking, tmp_path, TABLES, ())
        assert waited == ["offline", "offline"]
        (path,) = tmp_path.glob("next/wandb/offline-run-*/run-seal-s0-x.wandb")
        until(lambda: len(history(path)) == 3)
        assert list(tmp_path.glob("wandb/offline-run-*/run-sweep-x.wandb"))
        assert {str(w.message) for w in caught[1:]} == {
            "W&B is not waited for again, since it did not finish in time: what follows is kept offline. "
            "`seal-ray sync` brings W&B what it lacks of runs; of analyses and sweeps `wandb sync` with "
            "their folders does"
        }
        tracking.end_service()
    assert "wandb-core" not in [child.name() for child in psutil.Process().children()]


def test_after_a_failure_rows_are_not_piled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", FakeRun(fails_at="init").init)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = open_tracker(job(), "seal-s0-x", tmp_path, "digits")
        assert isinstance(tracker, Wandb)
        until(tracker._failed.is_set)
        for row in ROWS:
            tracker.log(row)
        assert tracker._queue.empty()
        tracker.close()


def test_rows_arrive_in_order_and_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "log", lambda row, **_: seen.append(row))
    monkeypatch.setattr(wandb, "init", run.init)
    rows = [{"global_epoch": e, "generation": e // 4, "val_top1": None} for e in range(500)]
    track(tmp_path, rows)
    assert [row["global_epoch"] for row in seen] == list(range(500))
    assert run.calls[-1] == "finish"


def test_epochs_that_another_run_has_trained_come_first(tmp_path: Path) -> None:
    """A branched run has them in metrics.jsonl when it begins; a later launch does not log them twice."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "metrics.jsonl").write_text(lines)
    track(tmp_path, ROWS[2:])
    (path,) = tmp_path.glob("wandb/offline-run-*/run-seal-s0-x.wandb")
    until(lambda: len(history(path)) == 3)
    assert history(path) == ROWS
    more = {"run_id": "seal-s0-x", "generation": 1, "global_epoch": 3, "val_top1": 60.0, "phase": "relearn"}
    (tmp_path / "metrics.jsonl").write_text(lines + json.dumps(more) + "\n")
    track(tmp_path, [more])
    paths = tmp_path.glob("wandb/offline-run-*/run-seal-s0-x.wandb")
    (again,) = [other for other in paths if other != path]
    until(lambda: len(history(again)) == 1)
    assert [row["global_epoch"] for row in history(again)] == [3]
    assert history(path) == ROWS


def test_epochs_that_wandb_had_before_they_were_committed_do_not_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch was killed that had one epoch committed and two logged: the second is computed once more."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    run, seen = FakeRun(), list[int]()
    monkeypatch.setattr(run, "log", lambda row, **_: seen.append(row["global_epoch"]))
    monkeypatch.setattr(wandb, "init", run.init)
    held = iter([2, 3])
    monkeypatch.setattr(tracking, "epochs_held", lambda _: next(held))
    track(tmp_path, ROWS[1:], "online")
    assert seen == [2]


def test_moments_are_artifacts_that_refer_to_their_files(tmp_path: Path) -> None:
    """Also those that a branched run has taken over; a damaged one is left out and costs nothing."""
    recipe = tiny_recipe("llf", budget={"epochs": 4, "generation_length": 2})
    store = open_store(recipe, tmp_path)
    epochs = [result.row for result in train_run(recipe, tmp_path)]
    store.record_generations(["key0", "key1"], [])
    damaged = tmp_path / "moments" / "g001-forgotten" / "manifest.json"
    damaged.write_text("{")
    whole = job().model_copy(update={"recipe": recipe})
    tracker = open_tracker(whole, store.run_id, tmp_path, "digits")
    for row in epochs:
        tracker.log({**row, "trained_by": "another"} if row["generation"] == 0 else row)
    tracker.close()
    (path,) = tmp_path.glob(f"wandb/offline-run-*/run-{store.run_id}.wandb")
    until(lambda: len(history(path)) == len(epochs))
    logged = {r.artifact.name: r.artifact for r in records(path) if r.WhichOneof("record_type") == "artifact"}
    labels = {"g000-init": "another", "g000-relearned": "another", "g001-relearned": store.run_id}
    assert logged.keys() == {f"{store.run_id}-{label}" for label in labels}
    for label, parent in labels.items():
        artifact, folder = logged[f"{store.run_id}-{label}"], tmp_path / "moments" / label
        manifest, facts = read_manifest(folder), json.loads(artifact.metadata)
        assert artifact.type == "moment"
        assert facts["weights_sha256"] == manifest["weights_sha256"]
        assert facts["position"] == manifest["position"]
        assert facts["parent"] == {"run": parent, "generation_key": f"key{facts['generation']}"}
        references = {one.path: (one.ref, one.size, one.digest) for one in artifact.manifest.contents}
        files = [folder / name for name in (*manifest["files"], "manifest.json")]
        assert references == {f.name: (f.as_uri(), f.stat().st_size, file_sha256(f)) for f in files}
    assert not list(tmp_path.glob("wandb/offline-run-*/files/**/*.safetensors"))


def test_tables_go_to_a_run_of_the_sweeps_group(tmp_path: Path) -> None:
    settings = job().placement.tracking
    tables = {"leaderboard": "method,n,top1,clip\nseal,3,55.5,0.2\nllf,0,,null\n"}
    track_tables("frequency", "sweep-frequency-x", settings, tmp_path, tables, ["llf", "seal"])
    (path,) = tmp_path.glob("wandb/offline-run-*/run-sweep-frequency-x.wandb")
    until(lambda: len(history(path)) == 1)  # W&B's own process may write a little later
    (run,) = [r.run for r in records(path) if r.WhichOneof("record_type") == "run"]
    assert (run.run_group, run.job_type, run.project) == ("frequency", "sweep", "trial")
    assert set(run.tags) == {"llf", "seal"}
    (row,) = history(path)
    assert row["leaderboard/ncols"] == 4
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    assert json.loads(table.read_text())["data"] == [["seal", 3.0, 55.5, "0.2"], ["llf", 0.0, None, "null"]]


def test_a_leaderboard_that_wandb_refuses_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.warns(SealRayWarning, match=r"did not get the leaderboard \(ConnectionError: nobody there\)"):
        track_tables("x", "sweep-x", job().placement.tracking, tmp_path, TABLES, ())
