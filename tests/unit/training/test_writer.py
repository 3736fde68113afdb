"""Checkpoints are written while training goes on, and hold the epoch that they are of."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import seal_ray.training.loop
from seal_ray.errors import CheckpointError
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Placement
from seal_ray.runs.checkpoint import Snapshot, weights_sha256
from seal_ray.runs.folder import Store
from seal_ray.training.loop import fit
from seal_ray.training.writer import Writer, copied
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

RECIPE = tiny_recipe({"name": "seal", "ascent_rate": 0.3})
"""Three generations of four epochs, of which the second and the third ascend in their first."""
SHORT = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, budget={"epochs": 4, "generation_length": 2})
SELDOM: list[dict[str, float]] = [{"epochs": 3}, {"seconds": 1e9}]


def committing(**every: float) -> Placement:
    return Placement.model_validate({"checkpoint_every": every})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The run with every epoch committed."""
    folder = tmp_path_factory.mktemp("whole")
    train_run(RECIPE, folder)
    return open_store(RECIPE, folder)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run of two generations of two epochs, with every epoch committed."""
    folder = tmp_path_factory.mktemp("short")
    train_run(SHORT, folder)
    return open_store(SHORT, folder)


def committed(store: Store) -> list[str]:
    return sorted(path.name for path in (store.folder / "checkpoints").iterdir())


def test_an_epoch_is_trained_while_the_one_before_is_written(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, real, evaluate = threading.Event(), Store.commit, seal_ray.training.loop.evaluate
    evaluated = []

    def late(store: Store, snapshot: Snapshot) -> None:
        if snapshot.position == Position(0, 0):
            assert trained.wait(60)
        real(store, snapshot)

    def evaluating(run: Any) -> dict[str, Any]:
        evaluated.append(run.next)
        if run.next == Position(0, 1):  # whose steps have changed all weights
            trained.set()
        return evaluate(run)

    monkeypatch.setattr(Store, "commit", late)
    monkeypatch.setattr(seal_ray.training.loop, "evaluate", evaluating)
    store = open_store(RECIPE, tmp_path)
    epochs = fit(RECIPE, tiny_images(), store=store)
    assert next(epochs).position == Position(0, 0)
    assert store.rows() == []
    next(epochs)
    assert evaluated == [Position(0, 0), Position(0, 1)]
    same_state(store.at(Position(0, 0)), whole.at(Position(0, 0)))
    epochs.close()
    same_state(store.at(Position(0, 1)), whole.at(Position(0, 1)))


@pytest.mark.parametrize(
    ("seldom", "expected"),
    [
        ({"epochs": 3}, [(0, 2), (0, 3), (1, 0), (1, 2), (1, 3), (2, 0), (2, 2), (2, 3)]),
        ({"seconds": 1e9}, [(0, 3), (1, 0), (1, 3), (2, 0), (2, 3)]),
        ({"seconds": 1e-9}, [(g, e) for g in range(3) for e in range(4)]),
    ],
    ids=str,
)
def test_what_is_not_due_is_committed_with_what_is_and_every_epoch_is_there_once(
    seldom: dict[str, float], expected: list[tuple[int, int]], whole: Store, tmp_path: Path
) -> None:
    rows = [result.row for result in train_run(RECIPE, tmp_path, placement=committing(**seldom))]
    store = open_store(RECIPE, tmp_path)
    assert committed(store) == [f"g{g:03d}-e{e:03d}" for g, e in expected]
    assert store.rows() == rows
    assert without_speeds(rows) == without_speeds(whole.rows())
    for generation, epoch in expected:
        same_state(*(run.at(Position(generation, epoch)) for run in (store, whole)))


def test_a_kill_before_the_first_lines_leaves_no_metrics_yet(tmp_path: Path) -> None:
    train_run(RECIPE, tmp_path, 3, placement=committing(epochs=3))
    store = open_store(RECIPE, tmp_path)
    assert (committed(store), len(store.rows())) == (["g000-e002"], 3)
    for text, damaged in ((b"", False), (b"{}\n", True)):
        (tmp_path / "metrics.jsonl").write_bytes(text)
        with pytest.raises(CheckpointError) if damaged else contextlib.nullcontext():
            assert store.rows() == []


@pytest.mark.parametrize("seldom", SELDOM, ids=str)
def test_who_leaves_in_between_and_comes_again_loses_nothing(
    seldom: dict[str, float], whole: Store, tmp_path: Path
) -> None:
    placement, store = keeping(EVERYTHING, track_examples=True, checkpoint_every=seldom), None
    for _ in range(6):
        train_run(RECIPE, tmp_path, epochs=2, placement=placement)
        store = open_store(RECIPE, tmp_path)
    assert store is not None
    assert without_speeds(store.rows()) == without_speeds(whole.rows())
    same_state(store.at(Position(2, 3)), whole.at(Position(2, 3)))
    assert len(list((store.folder / "examples").iterdir())) == 12
    assert store.completed_moments() == whole.completed_moments()


@pytest.mark.parametrize("call", range(0, 60, 7))
def test_a_writer_that_fails_at_any_step_is_heard_and_a_resume_computes_the_same(
    call: int, short: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    placement = committing(epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot save \(No space left on device\); everything com"):
            train_run(SHORT, tmp_path, placement=placement)
    train_run(SHORT, tmp_path, placement=placement)
    store = open_store(SHORT, tmp_path)
    assert without_speeds(store.rows()) == without_speeds(short.rows())
    same_state(store.at(Position(1, 1)), short.at(Position(1, 1)))


def test_a_failure_that_nobody_waited_for_is_raised_when_the_run_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = True
    store = Store(tmp_path, open_store(RECIPE, tmp_path).run_id, owned=lambda: mine)
    epochs = fit(RECIPE, tiny_images(), store=store, placement=committing(epochs=4))
    next(epochs)
    mine = False
    with pytest.raises(CheckpointError, match="another launch has taken this run over; nothing written"):
        epochs.close()
    assert store.latest() is None


def test_a_stop_is_committed_at_once(whole: Store, tmp_path: Path) -> None:
    store = open_store(RECIPE, tmp_path)
    found = []
    seldom = committing(seconds=1e9)
    with contextlib.closing(fit(RECIPE, tiny_images(), store=store, placement=seldom)) as run:
        for result in run:
            found.append((result.position.epoch, result.status))
            store.request_stop()
            assert store.rows() == ([] if result.status == "running" else list(whole_rows(store, 2)))
    assert found == [(0, "running"), (1, "stopped")]
    assert without_speeds(store.rows()) == without_speeds(whole.rows()[:2])


def whole_rows(store: Store, count: int) -> tuple[Any, ...]:
    """The metrics of the newest checkpoint, of so many epochs."""
    latest = store.latest()
    assert latest is not None
    assert len(latest.rows) == count
    return latest.rows


def test_what_is_copied_stays_as_it_was() -> None:
    images = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"w": images.clone(), "n": torch.tensor(3)}
    writer = Writer()
    fetch, digest = writer.hash(state)
    other = copied(state)
    for tensor in state.values():
        tensor.zero_()
    for found in (fetch(), other()):
        assert torch.equal(found["w"], images)
        assert found["w"].is_contiguous()
        assert found["n"].item() == 3
    assert digest.result() == weights_sha256({"w": images, "n": torch.tensor(3)})
    writer.close()


def test_things_are_written_one_after_the_other_and_an_error_is_raised_once() -> None:
    writer, done = Writer(), list[int]()

    def fail() -> None:
        raise CheckpointError("no")

    writer.write(lambda: done.append(1))
    writer.write(fail)
    with pytest.raises(CheckpointError, match="no"):
        writer.write(lambda: done.append(2))
    writer.write(lambda: done.append(3))
    writer.wait()
    writer.close()
    assert done == [1, 3]
