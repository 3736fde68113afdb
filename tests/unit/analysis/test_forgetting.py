"""Forgetting events of validation images, from what each epoch had right."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from seal_ray.analysis.moments import Moment
from seal_ray.analysis.run import analyze_moments
from seal_ray.analysis.tasks import read_result
from seal_ray.phases.schedule import Position
from seal_ray.sweeps.tune import train_sweep
from tests.sweeps import screen, small_sweep


def test_events_are_counted_by_hand_from_the_epochs_up_to_the_moment(digits: Path, tmp_path: Path) -> None:
    axes = {"method": {"seal": {"name": "seal", "ascent_rate": 0.5}}}
    runs = small_sweep(digits, tmp_path / "runs", axes=axes, placement={"track_examples": True})
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    (run,) = runs.planned
    analyze_moments(run.store.folder, screen()[0], what=["calibration"], in_process=True)
    for generation in range(3):
        held = read_result(Moment(run.store.folder, generation, "relearned"), "calibration")
        assert held is not None
        found = held["result"]["forgetting"]
        epochs = [Position(g, e) for g in range(generation + 1) for e in range(2)]
        right = [run.store.examples(at) for at in epochs]
        assert found["epochs"] == len(right)
        events = [
            sum(bool(a[i]) and not b[i] for a, b in pairwise(right))  # type: ignore[index]
            for i in range(len(right[0]))  # type: ignore[arg-type]
        ]
        learned = [any(bool(one[i]) for one in right) for i in range(len(events))]  # type: ignore[index]
        assert found["mean_events"] == np.mean(events)
        assert found["never_learned"] == np.mean([not was for was in learned])
        assert found["unforgettable"] == np.mean(
            [was and not n for was, n in zip(learned, events, strict=True)]
        )
        listed = {one["index"]: one["events"] for one in found["most_forgotten"]}
        assert list(listed.values()) == sorted(events, reverse=True)[:16]
        assert all(events[index] == count for index, count in listed.items())


def test_without_tracking_there_is_no_such_number(storage: Path) -> None:
    run = next(storage.glob("normal-s0-*"))
    analyze_moments(run, screen()[0], what=["calibration"], moments=["init"], in_process=True)
    held = read_result(Moment(run, 0, "init"), "calibration")
    assert held is not None
    assert "forgetting" not in held["result"]
