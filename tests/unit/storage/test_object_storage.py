"""Runs, sweeps and their readers on S3: the same as in a folder, also when S3 fails or the run is killed."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seal_ray import cli
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.run import analyze_moments
from seal_ray.analysis.tasks import read_arrays, read_result
from seal_ray.errors import CheckpointError, ClusterError, ConfigError, SealRayError, StorageError
from seal_ray.phases.schedule import Position
from seal_ray.runs.cleanup import find_litter, remove
from seal_ray.runs.export import export, load_weights
from seal_ray.runs.folder import ENDED
from seal_ray.runs.summary import list_runs
from seal_ray.storage import paths as objects
from seal_ray.storage.files import write_durably
from seal_ray.storage.lease import hold_lease, lease_holder, owns
from seal_ray.storage.paths import AnyPath, ObjectPath
from seal_ray.sweeps.queue import Queue
from seal_ray.sweeps.results import SweepRuns, write_results
from seal_ray.sweeps.tune import run_sweep
from tests.runs import open_store, same_state, tiny_recipe, train_run, without_speeds
from tests.s3 import CREDENTIALS, Proxy, proxy_to
from tests.sweeps import leaderboard_of, metrics_of, screen, small_sweep, trained_where

RECIPE = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, budget={"epochs": 4, "generation_length": 2})
END = Position(1, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in a folder."""
    folder = tmp_path_factory.mktemp("whole")
    train_run(RECIPE, folder)
    return folder


@pytest.fixture
def proxy(s3_server: str, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The connection to S3, to be broken; it is given up soon."""
    monkeypatch.setattr(objects, "SILENCE", 1.0)
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    with proxy_to(s3_server) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
        yield made


def same_run(whole: Path, storage: AnyPath) -> None:
    """Assert that a finished run equals the undisturbed one: state, metrics as text, moments."""
    ours, theirs = open_store(RECIPE, whole), open_store(RECIPE, storage)
    same_state(ours.at(END), theirs.at(END))
    assert without_speeds(ours.rows()) == without_speeds(theirs.rows())
    assert theirs.status()["status"] == "finished"
    assert ours.completed_moments() == theirs.completed_moments()
    for label in ours.completed_moments():
        weights = [one.folder / "moments" / label / "weights.safetensors" for one in (ours, theirs)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_on_s3_equals_one_in_a_folder(whole: Path, bucket: ObjectPath) -> None:
    storage = bucket / "equal"
    train_run(RECIPE, storage, checkpoints=2)
    same_run(whole, storage)
    kept = {path.name for path in (open_store(RECIPE, storage).folder / "checkpoints").iterdir()}
    assert kept == {"g001-e000", "g001-e001"}
    assert train_run(RECIPE, storage) == []


class Killed(BaseException):
    """The end of the process, as far as training can tell."""


def kill_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Die instead of the write of that number, counted from 0."""
    writes = iter(range(number))

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(*given: Any) -> Any:
            if next(writes, None) is None:
                raise Killed
            return write(*given)

        return write_or_die

    for name in ("write_bytes", "put_if"):
        monkeypatch.setattr(ObjectPath, name, dying(getattr(ObjectPath, name)))


@pytest.mark.faults
@pytest.mark.parametrize("number", range(3, 45, 8))
def test_a_run_that_is_killed_between_two_writes_goes_on(
    number: int, whole: Path, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = bucket / f"killed-{number}"
    with monkeypatch.context() as patch:
        kill_at_write(patch, number)
        with pytest.raises(Killed):
            train_run(RECIPE, storage, checkpoints=2)
    train_run(RECIPE, storage, checkpoints=2)
    same_run(whole, storage)


CHILD = """
import os, signal, sys
from seal_ray.storage.paths import ObjectPath
from tests.runs import train_run
from tests.unit.storage.test_object_storage import RECIPE

write = ObjectPath.write_bytes

def write_or_die(path, data):
    if str(path).endswith("g001-e000/manifest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

ObjectPath.write_bytes = write_or_die
train_run(RECIPE, sys.argv[1], checkpoints=2)
"""


@pytest.mark.faults
def test_a_process_that_is_killed_before_a_manifest_costs_one_epoch(whole: Path, bucket: ObjectPath) -> None:
    storage = bucket / "process"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(storage)], cwd=Path(__file__).parents[3], check=False
    )
    assert child.returncode == -signal.SIGKILL
    store = open_store(RECIPE, storage)
    found = store.latest()
    assert found is not None
    assert found.position == Position(0, 1)
    assert (store.folder / "checkpoints" / "g001-e000" / "weights.safetensors").exists()
    train_run(RECIPE, storage)
    same_run(whole, storage)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["drop", "stall"])
@pytest.mark.parametrize(
    "needle", ["g001-e000/weights", "g001-e000/manifest", "metrics.jsonl", "g001-ascended/man"]
)
def test_s3_that_fails_in_the_middle_of_a_write_loses_nothing(
    fault: str, needle: str, whole: Path, bucket: ObjectPath, proxy: Proxy
) -> None:
    storage = bucket / f"{fault}-{needle.replace('/', '-')}"
    store = open_store(RECIPE, storage)
    train_run(RECIPE, storage, epochs=2)
    before = store.at(Position(0, 1))
    proxy.break_at(fault, needle)
    with pytest.raises(SealRayError, match=f"{store.folder}") as failed:
        train_run(RECIPE, storage)
    assert proxy.struck.is_set()
    assert "does not answer" in str(failed.value)
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(failed.value)
    proxy.heal()
    same_state(store.at(Position(0, 1)), before)
    train_run(RECIPE, storage)
    same_run(whole, storage)


def test_a_write_that_fails_says_what_it_costs(bucket: ObjectPath, proxy: Proxy) -> None:
    store = open_store(RECIPE, bucket / "says")
    proxy.break_at("drop", "status.json")
    with pytest.raises(CheckpointError, match=r"everything committed before is safe.*same command again"):
        store.set_status("running")


def test_a_checkpoint_that_cannot_be_asked_for_is_not_taken_as_damaged(
    bucket: ObjectPath, proxy: Proxy
) -> None:
    storage = bucket / "unreachable"
    train_run(RECIPE, storage, epochs=2)
    proxy.break_at("drop", "x")
    with pytest.raises(StorageError):
        write_durably(storage / "x", bytes(100))
    with pytest.raises(SealRayError, match="does not answer"):
        open_store(RECIPE, storage).latest()
    proxy.heal()
    found = open_store(RECIPE, storage).latest()
    assert found is not None
    assert found.position == Position(0, 1)


def test_one_launch_at_a_time_holds_a_lease(bucket: ObjectPath) -> None:
    folder = bucket / "leased"
    with hold_lease(folder) as token:
        assert owns(folder, token)
        assert "process" in (lease_holder(folder) or "")
        with (
            pytest.raises(ClusterError, match=f"already running.*empty object {folder}/stop"),
            hold_lease(folder),
        ):
            pass
    assert lease_holder(folder) is None


def test_a_sweep_waits_for_s3_that_does_not_answer_and_goes_on(
    digits: Path, bucket: ObjectPath, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, said = small_sweep(digits, bucket / "waits", tmp_path / "waits.yaml"), list[str]()
    queue = Queue(runs.planned, share=True, ended=ENDED, note=said.append)
    monkeypatch.setattr("seal_ray.sweeps.queue.pause", lambda _: 0.0)
    proxy.break_at("drop", "lease.json")
    assert queue.claim() is None
    assert queue.claim() is None
    assert queue.left
    proxy.heal()
    assert queue.claim() is not None
    assert said
    assert all(line.startswith("waiting: ") for line in said)
    queue.close()


@pytest.fixture(scope="module")
def sweeps(
    digits: Path, bucket: ObjectPath, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepRuns, SweepRuns]:
    """The same sweep, trained in a folder and on S3."""
    folder = tmp_path_factory.mktemp("sweeps")
    pair = [
        small_sweep(digits, storage, folder / name / "small.yaml")
        for name, storage in (("here", folder / "runs"), ("there", bucket / "sweep/runs"))
    ]
    for runs in pair:
        run_sweep(runs, screen()[0], share=True, address=None, concurrent=None, in_process=True)
        write_results(runs)
    return pair[0], pair[1]


def test_a_sweep_on_s3_equals_one_in_a_folder(sweeps: tuple[SweepRuns, SweepRuns]) -> None:
    here, there = sweeps
    assert isinstance(there.folder, ObjectPath)
    assert metrics_of(here) == metrics_of(there)
    assert trained_where(here) == trained_where(there)
    assert leaderboard_of(here) == leaderboard_of(there)
    tables = [csv.DictReader((one.folder / "results.csv").read_text().splitlines()) for one in sweeps]
    ours, theirs = ([{**row, "seconds": ""} for row in table] for table in tables)
    assert ours == theirs
    shown = [(one.folder / "results.md").read_text().partition("seconds")[0] for one in sweeps]
    assert shown[0] == shown[1]


def test_a_finished_sweep_trains_nothing_more(sweeps: tuple[SweepRuns, SweepRuns]) -> None:
    before = metrics_of(sweeps[1])
    rich, said = screen()
    run_sweep(sweeps[1], rich, share=True, address=None, concurrent=None, in_process=True)
    assert "every run has ended already" in said.getvalue()
    assert metrics_of(sweeps[1]) == before


def test_runs_are_listed_and_analysed(sweeps: tuple[SweepRuns, SweepRuns]) -> None:
    here, there = (runs.folder.parent.parent for runs in sweeps)
    speeds = ("images_per_second",)
    listed = [
        [{key: value for key, value in run.items() if key not in speeds} for run in list_runs(storage)]
        for storage in (here, there)
    ]
    assert listed[0] == listed[1]
    assert len(listed[0]) == 3
    found = []
    for storage in (here, there):
        outcomes = analyze_moments(
            storage, screen()[0], what=["calibration"], moments=["relearned"], in_process=True
        )
        assert {outcome.status for outcome in outcomes} <= {"computed", "copied"}
        subject = find_runs(str(storage)).runs[-1]
        moment = subject.moments()[-1]
        held = read_result(moment, "calibration")
        assert held is not None
        arrays = read_arrays(moment, "calibration")
        found.append((held["key"], held["result"], {name: array.tobytes() for name, array in arrays.items()}))
        again = analyze_moments(
            storage, screen()[0], what=["calibration"], moments=["relearned"], in_process=True
        )
        assert {outcome.status for outcome in again} == {"known"}
    assert found[0] == found[1]


def test_a_moment_is_exported(sweeps: tuple[SweepRuns, SweepRuns], tmp_path: Path) -> None:
    run = sweeps[1].planned[-1].store
    done = export(run.folder, tmp_path / "w.safetensors")
    assert done.moment == "g002-relearned"
    assert load_weights(done.path, "resnet18").weights_sha256 == done.weights_sha256
    assert done.weights_sha256 == run.rows()[-1]["weights_sha256"]


def test_litter_is_found_and_removed(sweeps: tuple[SweepRuns, SweepRuns]) -> None:
    store = sweeps[1].planned[0].store
    storage = store.folder.parent
    assert find_litter(storage) == []
    half = store.folder / "checkpoints" / "g009-e000"
    write_durably(half / "weights.safetensors", bytes(100))
    scratch = objects.on_this_host(store.folder) / "ray"
    write_durably(scratch / "file", bytes(10))
    found = find_litter(storage)
    assert {(one.path, one.bytes) for one in found} == {(half, 100), (scratch, 10)}
    assert remove(found) == found
    assert not half.exists()
    assert not scratch.exists()
    assert find_litter(storage) == []


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `seal-ray ARGUMENTS` in this process: exit status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seal-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_commands_take_uris(
    sweeps: tuple[SweepRuns, SweepRuns], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warnings.showwarning", print)
    runs = sweeps[1]
    storage, run = runs.folder.parent.parent, runs.planned[0]
    code, said, _ = command("runs", "--storage", storage, "--json")
    assert code == 0
    assert {one["id"] for one in json.loads(said)} == {one.run_id for one in runs.planned}
    code, said, _ = command("clean", "--storage", storage)
    assert (code, said) == (0, "0 would be removed by --yes, 0 B\n")
    code, said, _ = command("export", run.store.folder, "-o", tmp_path / "w.pth", "--format", "torch")
    assert code == 0, said
    code, said, _ = command(
        "analyze", runs.folder, "--what", "calibration", "--moments", "relearned", "--in-process"
    )
    assert code == 0, said
    assert re.search(r"\d (known|computed)", said)
    assert "failed" not in said
    code, said, errors = command("runs", "--storage", "s3://no-such-bucket/runs")
    assert code == 2
    assert errors.startswith("error: s3://no-such-bucket/runs: no such folder")


def test_a_sweep_for_a_bucket_that_is_not_there(digits: Path, bucket: ObjectPath, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no bucket no-such-bucket"):
        small_sweep(digits, ObjectPath("no-such-bucket") / "runs", tmp_path / "small.yaml")
