"""Which run of a sweep may start: alone, beside another sweep on the same storage, after failures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seal_ray.errors import ConfigError
from seal_ray.runs.folder import ENDED, Store
from seal_ray.runs.sharing import epochs_to_train
from seal_ray.storage.lease import hold_lease
from seal_ray.sweeps.progress import SweepProgress
from seal_ray.sweeps.queue import Queue
from seal_ray.sweeps.results import SweepRuns, results
from seal_ray.sweeps.tune import train_sweep
from tests.sweeps import METHODS, metrics_of, screen, small_sweep, trained_where

pytestmark = pytest.mark.usefixtures("onednn")  # as the processes have it that are started here


def queue_of(runs: SweepRuns, *, share: bool = True) -> tuple[Queue, list[str]]:
    notes: list[str] = []
    return Queue(runs.planned, share=share, ended=ENDED, note=notes.append), notes


def train(runs: SweepRuns, *, share: bool = True) -> str:
    console, printed = screen()
    train_sweep(runs, console, share=share, concurrent=None, in_process=True)
    return printed.getvalue()


def test_runs_that_would_train_the_same_generation_are_held_back(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(digits, tmp_path / "runs", seeds=2)
    queue, _ = queue_of(runs)
    claims = [queue.claim(), queue.claim()]
    assert [claim and claim.planned.run_id.rsplit("-", 1)[0] for claim in claims] == [
        "normal-s0",
        "normal-s1",
    ]
    assert queue.claim() is None
    assert queue.left
    assert claims[0] is not None
    queue.release(claims[0].planned)  # it failed before it finished a generation: another one takes over
    again = queue.claim()
    assert again is not None
    assert again.planned.run_id.startswith("llf-s0")
    queue.close()
    unshared, _ = queue_of(runs, share=False)
    assert len({unshared.claim().planned.run_id for _ in range(6)}) == 6  # type: ignore[union-attr]
    unshared.close()


def test_another_sweep_on_the_storage_holds_runs_back_until_it_has_trained_what_they_share(
    digits: Path, tmp_path: Path
) -> None:
    ours = small_sweep(digits, tmp_path / "runs", axes={"method": {"llf": "llf", "seal": "seal"}})
    theirs = small_sweep(digits, tmp_path / "runs", axes={"method": {"normal": "normal", "llf": "llf"}})
    their_queue, _ = queue_of(theirs)
    claim = their_queue.claim()
    assert claim is not None
    our_queue, notes = queue_of(ours)
    assert our_queue.claim() is None
    their_queue.release(claim.planned)
    train(theirs)
    seal = our_queue.claim()  # llf is finished by now, by the other sweep
    assert seal is not None
    assert seal.planned.run_id.startswith("seal")
    assert notes == [f"{seal.planned.run_id}: generation 0 taken over from {theirs.planned[1].run_id}"]
    assert our_queue.claim() is None
    assert not our_queue.left
    our_queue.close()


def test_a_run_that_is_done_but_still_held_elsewhere_is_left_alone(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(digits, tmp_path / "runs", axes={"method": {"normal": "normal"}})
    train(runs)
    store = runs.planned[0].store
    store.set_status("running")  # as it is between its last moment and its end
    with hold_lease(store.folder):
        queue, _ = queue_of(runs)
        assert queue.claim() is None
        assert queue.left
    assert queue.claim() is not None
    queue.close()


def test_two_sweeps_at_once_train_each_generation_once(digits: Path, tmp_path: Path) -> None:
    axes = [{"method": dict(list(METHODS.items())[:2])}, {"method": dict(list(METHODS.items())[1:])}]
    sweeps = [
        small_sweep(digits, tmp_path / "runs", tmp_path / f"sweep-{i}.yaml", name=f"sweep-{i}", axes=one)
        for i, one in enumerate(axes)
    ]
    command = [sys.executable, "-c", "from seal_ray.cli import main; main()", "sweep", "--in-process"]
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / f"sweep-{i}.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    works = {one.run_id: one.run_keys for runs in sweeps for one in runs.planned}
    made = {run: makers for runs in sweeps for run, makers in trained_where(runs).items()}
    trained = sum(makers.count(run) for run, makers in made.items())
    assert trained == sum(epochs_to_train(list(works.values()))) == 6 + 4 + 4

    alone = small_sweep(digits, tmp_path / "alone")
    train(alone, share=False)
    both = {**metrics_of(sweeps[0]), **metrics_of(sweeps[1])}
    assert both == metrics_of(alone)


def test_a_finished_sweep_trains_nothing_and_a_larger_one_only_what_is_new(
    digits: Path, tmp_path: Path
) -> None:
    small = small_sweep(digits, tmp_path / "runs", axes={"method": {"normal": "normal", "llf": "llf"}})
    train(small)
    before = trained_where(small)
    assert "generation" not in train(small)
    larger = small_sweep(
        digits, tmp_path / "runs", seeds=2, recipe={"budget": {"epochs": 8, "generation_length": 2}}
    )
    train(larger)
    assert trained_where(small) == before
    found = {(run.setting["method"], run.seed): run for run in results(larger)}
    assert found["normal", 0].epochs_shared == found["llf", 0].epochs_shared == 6
    assert found["seal", 0].epochs_shared == 2
    assert sum(run.epochs_trained for run in found.values()) == 2 + 2 + 6 + (8 + 6 + 6)


def test_sharing_needs_the_moments_it_starts_from(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(digits, tmp_path / "runs", placement={"keep": {"moments": ["ascended"]}})
    with pytest.raises(ConfigError, match=r"placement\.keep\.moments: .*`relearned` .*--no-share"):
        queue_of(runs)
    queue_of(runs, share=False)


def test_two_settings_that_are_the_same_run_are_refused(digits: Path, tmp_path: Path) -> None:
    rates = {"method.ascent_rate": [0.1, 0.2]}  # of which one generation knows nothing
    recipe = {"method": "seal", "budget": {"epochs": 2, "generation_length": 2}}
    with pytest.raises(ConfigError, match="are the same run seal-s0-"):
        small_sweep(digits, tmp_path, axes=rates, recipe=recipe)


def test_a_stop_lets_the_running_one_end_and_starts_nothing_more(digits: Path, tmp_path: Path) -> None:
    queue, notes = queue_of(small_sweep(digits, tmp_path / "runs"))
    claim = queue.claim()
    assert claim is not None
    queue.stop("Ctrl-C")
    assert claim.planned.store.stop_requested()
    assert claim.planned.store.stop_reason() == "Ctrl-C"
    assert notes[-1] == (
        "stopping: what runs ends at its next epoch boundary, nothing more is started; press Ctrl-C again to "
        "stop at once"
    )
    assert queue.claim() is None
    assert not queue.left
    queue.close()


def test_a_claim_reads_no_more_of_a_large_storage_than_of_a_small_one(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that the second claim opens and folders that it lists, with so many runs there and waiting."""

    def operations(runs_of_others: int, seeds: int) -> int:
        storage = tmp_path / f"{runs_of_others}-{seeds}"
        for i in range(runs_of_others):
            other = Store(storage / f"normal-s{i}-0123456789", f"normal-s{i}-0123456789")
            other.folder.mkdir(parents=True)
            other.record_generations([f"{i}-{generation}" for generation in range(3)], ["relearned"])
        queue, _ = queue_of(small_sweep(digits, storage, tmp_path / "sweep.yaml", seeds=seeds))
        assert queue.claim() is not None
        opened: list[str] = []
        with monkeypatch.context() as patched:
            for module, name in ((io, "open"), (os, "open"), (os, "scandir"), (os, "stat")):
                patched.setattr(module, name, counted(getattr(module, name), opened))
            assert queue.claim() is not None
        queue.close()
        return len(opened)

    assert 0 < operations(runs_of_others=100, seeds=30) <= operations(runs_of_others=1, seeds=2)


def test_the_screen_reads_only_the_runs_that_are_trained(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = small_sweep(digits, tmp_path / "runs", seeds=5)
    queue, _ = queue_of(runs)
    claims = [queue.claim(), queue.claim()]
    ids = [claim.planned.run_id for claim in claims if claim]
    progress, opened = (
        SweepProgress(runs.planned, runs.names, screen()[0], share=True, searching=False),
        list[str](),
    )
    monkeypatch.setattr(io, "open", counted(io.open, opened))
    progress.refresh(queue.changing())
    monkeypatch.undo()
    assert len(ids) == 2
    assert {Path(path).parent.name for path in opened} == set(ids)
    queue.release(runs.planned[[one.run_id for one in runs.planned].index(ids[0])])
    assert [queue.changing(), queue.changing()] == [set(ids), {ids[1]}]
    queue.close()


def counted(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """The function, noting what it is called with."""

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(str(arguments[0]))
        return function(*arguments, **named)

    return call
