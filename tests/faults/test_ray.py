"""Kills and stops of a run under a real Ray, started as a person starts it."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seal_ray.recipe import Job
from tests.faults.conftest import Launch, make_job, same_as_undisturbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
Start = Callable[[Job], Launch]
SEAL = {"name": "seal", "ascent_rate": 0.5}


def within_an_epoch(launch: Launch, epochs: int, seed: int) -> None:
    """Wait until some time within the epoch after so many."""
    launch.wait_for_epochs(epochs)
    time.sleep(random.Random(seed).uniform(0, 0.5))


def test_two_launches_at_once_and_a_killed_worker(digits: Path, tmp_path: Path, start: Start) -> None:
    job = make_job(digits, tmp_path / "runs", SEAL)
    both = [start(job), start(job)]
    both[0].until(lambda: any(one.process.poll() is not None for one in both))
    (second,) = [one for one in both if one.process.poll() is not None]
    (first,) = [one for one in both if one is not second]
    said = second.end()
    assert second.process.returncode == 2
    assert f"is already running: process {first.process.pid} on {socket.gethostname()}; wait for it" in said
    assert "Traceback" not in said

    within_an_epoch(first, 5, seed=1)
    first.workers()[-1].kill()
    printed = first.end()
    assert first.process.returncode == 0, printed
    assert f"{first.store.run_id}: finished" in printed
    same_as_undisturbed(job, first.store, tmp_path.parent / "alone")


def test_a_killed_driver_and_the_same_command_again(digits: Path, tmp_path: Path, start: Start) -> None:
    job = make_job(digits, tmp_path / "runs", "ban")
    killed = start(job)
    within_an_epoch(killed, 5, seed=2)
    killed.process.kill()
    again = start(job)  # at once: workers of the first may still be there
    printed = again.end()
    assert again.process.returncode == 0, printed
    assert re.search(r"12 epochs on 2 workers, going on after epoch ([5-9]|10|11)\n", printed)
    same_as_undisturbed(job, again.store, tmp_path.parent / "alone")
    killed.end()


def test_a_killed_ray_and_the_same_command_again(digits: Path, tmp_path: Path, start: Start) -> None:
    job = make_job(digits, tmp_path / "runs", "dsd")
    killed = start(job)
    within_an_epoch(killed, 5, seed=3)
    for process in killed.processes():
        if process.pid != killed.process.pid:
            process.kill()
    printed = killed.end()
    assert killed.process.returncode == 1
    assert f"{killed.store.run_id}: failed: " in printed
    assert "the same command" in printed.splitlines()[-1]
    again = start(job)
    printed = again.end()
    assert again.process.returncode == 0, printed
    same_as_undisturbed(job, again.store, tmp_path.parent / "alone")


def test_sigterm_stops_and_ctrl_c_twice_at_once_and_the_same_command_goes_on(
    digits: Path, tmp_path: Path, start: Start
) -> None:
    job = make_job(digits, tmp_path / "runs", SEAL, tracking={"wandb": "offline"})
    once = start(job)
    within_an_epoch(once, 3, seed=5)
    once.process.terminate()
    printed = once.end()
    assert once.process.returncode == 1
    assert "stopping at the next epoch boundary; press Ctrl-C again to stop at once" in printed
    assert printed.splitlines()[-1] == f"{once.store.run_id}: stopped: SIGTERM; the same command goes on"
    was_stopped(once, 3)

    twice = start(job)
    within_an_epoch(twice, 6, seed=6)
    os.killpg(twice.process.pid, signal.SIGINT)  # as a terminal does
    twice.until(twice.store.stop_requested)
    os.killpg(twice.process.pid, signal.SIGINT)
    printed = twice.end()
    # 1 when Ray Train, in its thread, notices first that Ray is gone: that ends the process as well
    assert twice.process.returncode in (1, 130), printed
    assert f"{twice.store.run_id}: stopped" not in printed
    assert len(twice.store.rows()) <= 8

    again = start(job)
    printed = again.end()
    assert again.process.returncode == 0, printed
    same_as_undisturbed(job, again.store, tmp_path.parent / "alone")


def was_stopped(launch: Launch, epochs: int) -> None:
    """Assert that it stopped soon, with a checkpoint of its last epoch, W&B closed, nothing left over."""
    rows, latest = launch.store.rows(), launch.store.latest()
    assert epochs < len(rows) <= epochs + 3
    assert latest is not None
    assert list(latest.rows) == rows
    assert launch.store.status()["status"] == "stopped"
    names = {path.name for path in launch.store.folder.iterdir()}
    assert not names & {"stop", "lease.json", "ray"}
