"""Workers that outlive their killed driver cannot write to a run that another launch has taken over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seal_ray.errors import CheckpointError
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import hold_lease, owns, take_lead
from seal_ray.training.loop import fit
from tests.runs import keeping, open_store, tiny_images, tiny_recipe, train_run, without_speeds

DRIVER = """
import sys, time
from pathlib import Path
from seal_ray.storage.lease import hold_lease
with hold_lease(Path(sys.argv[1])) as token:
    print(token, flush=True)
    time.sleep(600)
"""


def until_written(store: Store, epochs: int) -> None:
    """Until what is written beside training is there."""
    while len(store.rows()) < epochs:
        time.sleep(0.002)


def test_workers_of_a_killed_driver_cannot_commit_under_a_new_owner(tmp_path: Path) -> None:
    recipe = tiny_recipe("llf")
    whole = [result.row for result in train_run(recipe, tmp_path / "whole")]
    folder, run = tmp_path / "run", open_store(recipe, tmp_path).run_id
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        token = driver.stdout.readline().strip()
        left = fit(
            recipe,
            tiny_images(),
            store=Store(folder, run, 99, lambda: owns(folder, token)),
            placement=keeping(()),
        )
        for _ in range(3):
            next(left)
        driver.kill()  # and not waited for: a zombie owns nothing either
        next(left)  # as long as nobody else does, its workers may go on
        until_written(Store(folder, run), 4)
        with hold_lease(folder) as new:
            with pytest.raises(CheckpointError, match="another launch has taken this run over"):
                list(left)
            store = Store(folder, run, 99, lambda: owns(folder, new))
            rows = [result.row for result in fit(recipe, tiny_images(), store=store)]
        assert [row["global_epoch"] for row in rows] == list(range(4, 12))
        assert without_speeds(store.rows()) == without_speeds(whole)
    finally:
        driver.kill()
        assert driver.wait() == -signal.SIGKILL


def test_workers_that_were_cut_off_cannot_commit_beside_those_started_in_their_place(tmp_path: Path) -> None:
    recipe = tiny_recipe("llf")
    whole = [result.row for result in train_run(recipe, tmp_path / "whole")]
    folder, run = tmp_path / "run", open_store(recipe, tmp_path).run_id
    with hold_lease(folder) as token:
        store = Store(folder, run, 99, take_lead(folder, token))
        cut_off = fit(recipe, tiny_images(), store=store, placement=keeping(()))
        for _ in range(3):
            next(cut_off)
        until_written(store, 3)
        store = Store(folder, run, 99, take_lead(folder, token))
        begun = fit(recipe, tiny_images(), store=store, placement=keeping(()))
        assert next(begun).row["global_epoch"] == 3
        with pytest.raises(CheckpointError, match="taken this run over"):
            list(cut_off)
        assert [result.row["global_epoch"] for result in begun] == list(range(4, 12))
        assert without_speeds(store.rows()) == without_speeds(whole)
    with hold_lease(folder) as new:
        leads = take_lead(folder, new)
        assert not take_lead(folder, token)()  # workers of the earlier launch, started once more
        assert leads()
