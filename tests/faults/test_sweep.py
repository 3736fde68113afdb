"""Sweeps whose driver, workers or trials are killed: the same command again ends in the same leaderboard."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from seal_ray.sweeps.results import SweepRuns, results, write_results
from seal_ray.sweeps.tune import train_sweep
from tests.faults.conftest import Command
from tests.sweeps import METHODS, leaderboard_of, metrics_of, screen, small_sweep

pytestmark = pytest.mark.faults

Run = Callable[..., Command]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Starts `seal-ray sweep`; whatever of it is left at the end of the test is killed."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    started: list[Command] = []

    def run(file: Path, *options: str) -> Command:
        started.append(Command("sweep", str(file), *options))
        return started[-1]

    yield run
    for one in started:
        one.kill_all()


def undisturbed(data: Path, storage: Path, **changes: Any) -> SweepRuns:
    """The same sweep trained in this process, with nothing happening to it."""
    runs = small_sweep(data, storage, storage.parent / "undisturbed.yaml", **changes)
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    runs = runs.latest()
    write_results(runs)
    return runs


def epochs_done(runs: SweepRuns) -> int:
    return sum(one.store.folder.exists() and len(one.store.rows()) for one in runs.planned)


def kill_after(command: Command, runs: SweepRuns, epochs: int, rng: random.Random) -> None:
    """SIGKILL the driver somewhere within an epoch after so many of the sweep are done."""
    command.until(lambda: epochs_done(runs) >= epochs)
    command.process.poll()
    assert command.process.returncode is None, command.process.communicate()[0]
    command.until(iter([False] * rng.randrange(20) + [True]).__next__)
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait()


def same(ours: SweepRuns, theirs: SweepRuns) -> None:
    assert metrics_of(ours) == metrics_of(theirs)
    assert leaderboard_of(ours) == leaderboard_of(theirs)


def test_a_driver_killed_twice_and_the_same_command_again(digits: Path, tmp_path: Path, sweep: Run) -> None:
    file, changes = (
        tmp_path / "killed.yaml",
        {"seeds": 2, "recipe": {"shards": 2}, "placement": {"workers": 2}},
    )
    runs = small_sweep(digits, tmp_path / "runs", file, **changes)
    rng = random.Random(0)
    for epochs in (5, 17):
        kill_after(sweep(file), runs, epochs, rng)
    last = sweep(file)
    printed = last.end()
    assert last.process.returncode == 0, printed
    assert "36 epochs asked for, 28 trained, 8 shared" in printed
    alone = {key: value for key, value in changes.items() if key != "placement"}
    same(runs, undisturbed(digits, tmp_path / "alone", **alone))


def test_a_search_that_is_killed_goes_on_to_the_same_settings(
    digits: Path, tmp_path: Path, sweep: Run
) -> None:
    file = tmp_path / "killed.yaml"
    changes: dict[str, Any] = {
        "axes": {"method": ["normal", "llf"], "optimizer.weight_decay": {"uniform": [0.0, 0.01]}},
        "search": {"algorithm": "optuna", "samples": 5, "seeds": 2, "at_once": 2},
    }
    runs = small_sweep(digits, tmp_path / "runs", file, **changes)
    rng = random.Random(0)
    for epochs in (7, 20):
        kill_after(sweep(file, "--in-process"), runs, epochs, rng)
    last = sweep(file, "--in-process")
    printed = last.end()
    assert last.process.returncode == 0, printed
    same(runs.latest(), undisturbed(digits, tmp_path / "alone", **changes))


def test_eight_runs_in_one_process_that_is_killed_again_and_again(
    digits: Path, tmp_path: Path, sweep: Run
) -> None:
    file = tmp_path / "killed.yaml"
    changes = {"axes": {"method": {**METHODS, "ke": "ke"}, "budget.generation_length": [2, 3]}}
    runs = small_sweep(digits, tmp_path / "runs", file, **changes)
    assert len(runs.planned) == 8
    rng = random.Random(1)
    for epochs in (3, 13, 26):
        kill_after(sweep(file, "--in-process"), runs, epochs, rng)
    last = sweep(file, "--in-process")
    printed = last.end()
    assert last.process.returncode == 0, printed
    assert "48 epochs asked for, 33 trained, 15 shared" in printed
    same(runs, undisturbed(digits, tmp_path / "alone", **changes))


def test_killed_workers_and_trials_are_started_anew(digits: Path, tmp_path: Path, sweep: Run) -> None:
    file = tmp_path / "killed.yaml"
    runs = small_sweep(digits, tmp_path / "runs", file)
    command = sweep(file, "--concurrent", "1")
    for epochs, victim in ((3, "RayTrainWorker"), (8, "ImplicitFunc")):
        command.until(lambda epochs=epochs: epochs_done(runs) >= epochs)
        _kill(command.processes(), victim)
    printed = command.end()
    assert command.process.returncode == 0, printed
    assert "18 epochs asked for, 14 trained, 4 shared" in printed
    same(runs, undisturbed(digits, tmp_path / "alone"))


def _kill(processes: list[psutil.Process], name: str) -> None:
    victims = [process for process in processes if name in " ".join(process.cmdline())]
    assert victims, [process.cmdline() for process in processes]
    victims[0].kill()


def test_ctrl_c_ends_what_runs_at_its_epoch_boundary_and_the_same_command_goes_on(
    digits: Path, tmp_path: Path, sweep: Run
) -> None:
    file = tmp_path / "stopped.yaml"
    runs = small_sweep(digits, tmp_path / "runs", file)
    command = sweep(file, "--concurrent", "1")
    command.until(lambda: epochs_done(runs) >= 3)
    os.killpg(command.process.pid, signal.SIGINT)
    printed = command.end()
    assert command.process.returncode == 1
    found = [run.status for run in results(runs)]
    assert found[0] in ("stopped", "finished"), printed
    assert found[1:] == ["new", "new"]
    again = sweep(file, "--in-process")
    printed = again.end()
    assert again.process.returncode == 0, printed
    same(runs, undisturbed(digits, tmp_path / "alone"))
