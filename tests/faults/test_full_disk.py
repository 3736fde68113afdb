"""A disk that fills up, and writes that fail: what is committed stays, and with room the run goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seal_ray.errors import CheckpointError
from seal_ray.recipe import Job
from seal_ray.storage.lease import hold_lease
from seal_ray.training.loop import EpochResult, fit
from tests.faults.conftest import Launch, make_job, same_as_undisturbed
from tests.runs import (
    EVERYTHING,
    keeping,
    open_store,
    same_state,
    tiny_images,
    tiny_recipe,
    train_run,
    without_speeds,
)

MIB = 2**20


@pytest.mark.parametrize("call", [0, 3, 20, 41, 62, 83, 104])
def test_from_a_write_that_fails_on_nothing_committed_is_lost(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, budget={"epochs": 6, "generation_length": 2})
    placement = keeping(EVERYTHING)
    whole = train_run(recipe, tmp_path / "whole", placement=placement)
    calls, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    store, done = open_store(recipe, tmp_path / "full"), list[EpochResult]()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot save \(No space left on device\); everything com"):
            done.extend(fit(recipe, tiny_images(), store=store, placement=placement))
    latest = store.latest()
    assert (len(latest.rows) if latest else 0) >= len(done) - 1  # the last one was being written
    train_run(recipe, store.folder, placement=placement)
    assert without_speeds(store.rows()) == without_speeds([result.row for result in whole])
    same_state(store.at(whole[-1].position), open_store(recipe, tmp_path / "whole").at(whole[-1].position))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many MiB; called again, it has another size and keeps its files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(size: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={size * MIB}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode and not mounted:
            pytest.skip(f"mounting a tmpfs needs root: {done.stderr.decode().strip()}")
        assert not done.returncode, done.stderr
        mounted = True
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_run_on_a_full_disk_fails_saying_so_and_goes_on_once_there_is_room(
    small_disk: Callable[[int], Path], digits: Path, tmp_path: Path, start: Callable[[Job], Launch]
) -> None:
    job = make_job(
        digits, small_disk(20), {"name": "seal", "ascent_rate": 0.5}, tracking={"wandb": "offline"}
    )
    full = start(job)
    printed = full.end()
    assert full.process.returncode == 1
    said = printed.splitlines()[-1]
    assert said.startswith(f"{full.store.run_id}: failed: ")
    assert "cannot save (No space left on device); everything committed before is safe. Make room" in said
    latest, rows = full.store.latest(), full.store.rows()
    assert latest is not None
    assert 1 <= len(rows) < 12
    assert list(latest.rows)[: len(rows)] == rows

    with pytest.raises(OSError, match="No space left"), (tmp_path / "disk" / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(4096))
    with (
        pytest.raises(CheckpointError, match=r"cannot save \(No space left on device\)"),
        hold_lease(full.store.folder),
    ):
        pass
    assert full.store.rows() == rows

    small_disk(200)
    again = start(job)
    printed = again.end()
    assert again.process.returncode == 0, printed
    assert f"going on after epoch {len(latest.rows)}" in printed
    same_as_undisturbed(job, again.store, tmp_path.parent / "alone")
