"""Event files for TensorBoard, read byte by byte: the numbers of metrics.jsonl, each step once."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from seal_ray.analysis.run import analyze_moments
from seal_ray.analysis.tasks import load_settings
from seal_ray.distributed.workers import train_job
from seal_ray.errors import SealRayWarning
from seal_ray.recipe import Job, dump_job
from seal_ray.runs.folder import Store
from seal_ray.sweeps.tune import run_sweep
from seal_ray.training.world import World
from tests.sweeps import screen, small_sweep

SMALL = ["depth.k=5", "depth.points=20", "depth.listed=2", "depth.support_size=40"]


def crc32c(data: bytes) -> int:
    """The checksum of TFRecord files (RFC 3720, appendix B.4), bit by bit, masked as there."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: Path) -> list[Event]:
    """The events of the one file in a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        body = data[place + 12 : place + 12 + length]
        sums = [struct.unpack_from("<I", data, place + at)[0] for at in (8, 12 + length)]
        assert sums == [crc32c(data[place : place + 8]), crc32c(body)]
        found.append(Event.FromString(body))
        place += 16 + length
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every point, by name, in the order in which they were written."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def expected(rows: list[dict[str, Any]], length: int) -> dict[str, list[tuple[int, float]]]:
    """The numbers of rows as float32, the accuracy at the end of a generation on its own axis."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append((row["global_epoch"], as_float32(value)))
        if row["epoch"] == length - 1:
            end = (row["generation"], as_float32(row["val_top1"]))
            found.setdefault("generation_top1", []).append(end)
    return found


def as_float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


TRACKED = {"tracking": {"wandb": "off", "tensorboard": True}}


def test_a_sweep_s_runs_and_their_analyses_are_there_by_the_names_of_the_table(
    digits: Path, tmp_path: Path
) -> None:
    """A run that begins after generations of another one has all epochs."""
    axes = {"method": {"normal": "normal", "llf": "llf"}}
    runs = small_sweep(digits, tmp_path / "runs", axes=axes, placement=TRACKED)
    console = screen()[0]
    run_sweep(runs, console, share=True, address=None, concurrent=None, in_process=True)
    taken = 0
    for one in runs.planned:
        rows = one.store.rows()
        folder = tmp_path / "runs" / one.run_id / "tensorboard"
        assert points(folder) == expected(rows, 2)
        assert len(points(folder)["val_top1"]) == 6
        taken += rows[0]["trained_by"] != one.run_id
        assert events(folder)[0].file_version == "brain.Event:2"
    assert taken == 1
    settings = load_settings("quick", SMALL)
    for what in ("depth", "calibration"):  # the second goes beside what the first has found
        analyze_moments(tmp_path / "small.yaml", console, what=[what], settings=settings, in_process=True)
    found = points(folder / "analysis")
    assert {"depth/val_mean", "calibration/ece"} <= found.keys()
    assert [step for step, _ in found["depth/val_mean"]] == [1, 3, 5]
    assert [step for step, _ in found["calibration/ece"]] == [1, 3, 5]


CHILD = """
import os, sys
from seal_ray.distributed.workers import train_job
from seal_ray.recipe import load_job
from seal_ray.runs.folder import Store
from seal_ray.training.world import World
from pathlib import Path
folder = Path(sys.argv[1])
for row in train_job(load_job(folder / "job.yaml"), Store(folder, folder.name), World()):
    if row["global_epoch"] == 2:
        os.kill(os.getpid(), 9)
"""


def test_after_a_kill_each_step_is_there_once(digits: Path, tmp_path: Path) -> None:
    """Also an epoch that was seen there and had not been committed."""
    seldom = {**TRACKED, "checkpoint_every": {"seconds": 1e6}}
    (planned,) = small_sweep(digits, tmp_path / "runs", axes={"method": ["llf"]}, placement=seldom).planned
    folder = Path(str(planned.store.folder))
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(dump_job(planned.job))
    killed = subprocess.run([sys.executable, "-c", CHILD, str(folder)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    store = Store(folder, folder.name)
    seen = {name: found[:2] for name, found in points(folder / "tensorboard").items()}
    assert seen == expected(store.rows(), 2)
    assert len(store.rows()) == 2
    assert [step for step, _ in points(folder / "tensorboard")["train_loss"]] == [0, 1, 2]
    list(train_job(planned.job, store, World()))
    assert points(folder / "tensorboard") == expected(store.rows(), 2)
    assert len(store.rows()) == 6
    again = events(folder / "tensorboard")
    assert (again[1].session_log.status, again[1].step) == (1, 0)  # START: what was read before is purged


def test_where_it_cannot_be_written_training_goes_on_with_one_warning(digits: Path, tmp_path: Path) -> None:
    (planned,) = small_sweep(digits, tmp_path / "runs", axes={"method": ["llf"]}, placement=TRACKED).planned
    folder = Path(str(planned.store.folder))
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("a file is in the way")
    job: Job = planned.job
    with pytest.warns(SealRayWarning, match="TensorBoard gets no more of this launch") as caught:
        rows = list(train_job(job, Store(folder, folder.name), World()))
    assert len(rows) == 6
    assert len([one for one in caught if "TensorBoard" in str(one.message)]) == 1
