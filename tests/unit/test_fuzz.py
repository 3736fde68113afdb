"""Files with bytes flipped, cut or swapped end in a SealRayError or in the right result, never in between."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from seal_ray.cli.tables import runs_table
from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.phases.schedule import Position
from seal_ray.recipe import Job, Placement, dump_job, load_job
from seal_ray.runs.checkpoint import Snapshot, read_snapshot
from seal_ray.runs.cleanup import find_litter
from seal_ray.runs.folder import Store
from seal_ray.runs.summary import list_runs
from seal_ray.storage.lease import lease_holder
from tests.runs import EVERYTHING, keeping, open_store, same_state, tiny_recipe, train_run

RECIPE = tiny_recipe(
    "ban", model={"arch": "resnet18", "width": 1}, budget={"epochs": 4, "generation_length": 2}
)
RUN = open_store(RECIPE, "unused").run_id
PLACES = st.integers(0, 2**32)  # taken modulo the length
JOB = Path("jobs/runs/quickstart/seal.yaml").read_bytes()


def flip(data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, bits in places:
        changed[place % len(data)] ^= bits
    return bytes(changed)


def cut(data: bytes, start: int, length: int) -> bytes:
    start %= len(data)
    return data[:start] + data[start + 1 + length % len(data) :]


def swap(data: bytes, one: int, other: int, length: int) -> bytes:
    """Two stretches of equal length change places."""
    length = 1 + length % max(1, len(data) // 2)
    first, second = sorted((one % (len(data) - length + 1), other % (len(data) - length + 1)))
    second = max(second, min(first + length, len(data) - length))
    middle = data[first + length : second]
    return (
        data[:first]
        + data[second : second + length]
        + middle
        + data[first : first + length]
        + data[second + length :]
    )


FLIPS = st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=4)
DAMAGES: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    FLIPS.map(lambda places: lambda data: flip(data, places)),
    st.tuples(PLACES, PLACES).map(lambda at: lambda data: cut(data, *at)),
    st.tuples(PLACES, PLACES, PLACES).map(lambda at: lambda data: swap(data, *at)),
)


def unhurried(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, suppress_health_check=slow)


@unhurried(300)
@given(damages=st.lists(DAMAGES, min_size=1, max_size=3))
def test_a_damaged_job_file_is_a_config_error_or_another_job(damages: Any) -> None:
    data = JOB
    for damage in damages:
        data = damage(data) or b" "
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            job = load_job(path)
            path.write_text(dump_job(job))
            assert load_job(path) == job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints, which carry a teacher, and all of its moments."""
    storage = tmp_path_factory.mktemp("trained")
    train_run(RECIPE, storage / RUN, checkpoints=2, placement=keeping(EVERYTHING))
    job = Job(name="trial", recipe=RECIPE, placement=Placement.model_validate({"keep": {"checkpoints": 1}}))
    (storage / RUN / "job.yaml").write_text(dump_job(job))
    lease = {"host": "elsewhere", "boot": "x", "pid": 12, "started": 3.5, "token": "t", "beat": 0.0}
    (storage / RUN / "lease.json").write_text(str(lease).replace("'", '"'))
    return storage


FILES = st.sampled_from(
    [
        "metrics.jsonl",
        "status.json",
        "lease.json",
        *(
            f"{folder}/{name}"
            for folder in ("checkpoints/g001-e001", "checkpoints/g001-e000", "moments/g001-relearned")
            for name in (
                "manifest.json",
                "metrics.jsonl",
                "weights.safetensors",
                "optimizer.safetensors",
                "carried.safetensors",
            )
        ),
    ]
)


def right_or_refused(storage: Path, original: Path) -> None:
    """Assert that whatever is read of a run is what was written, or is refused."""
    here, there = Store(storage / RUN, RUN), Store(original / RUN, RUN)
    written = {position: there.at(position) for position in (Position(1, 0), Position(1, 1))}
    written_rows = there.rows()

    def same(read: Callable[[], Snapshot | None], position: Position | None = None) -> None:
        try:
            found = read()
        except CheckpointError:
            return
        assert found is not None
        assert found.position is not None
        assert position in (None, found.position)
        same_state(found, written[found.position])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(here.latest)
    for position in written:
        same(lambda position=position: here.at(position), position)  # type: ignore[misc]
    moments = (read_snapshot(store.folder / "moments/g001-relearned", RUN) for store in (there, here))
    with contextlib.suppress(CheckpointError):
        right, found = moments
        if found.moment == "relearned":  # else a checkpoint in its place, which says so
            same_state(found, right)
    with contextlib.suppress(CheckpointError):
        rows = here.rows()
        assert rows == written_rows[: len(rows)]
        assert len(rows) >= 3  # a kill may have left it one line behind
    (summary,) = list_runs(storage)
    assert summary["epochs_done"] in (0, 3, 4)
    assert (summary["epochs_done"] == 0) == (summary["status"] == "damaged")
    Console(file=io.StringIO()).print(runs_table([summary], "runs"))
    lease_holder(here.folder)
    assert all("moments/" not in str(litter.path) for litter in find_litter(storage))


@unhurried(120)
@given(damages=st.lists(st.tuples(FILES, DAMAGES), min_size=1, max_size=2))
def test_damaged_files_of_a_run_are_refused_or_right(trained: Path, damages: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder) / "runs"
        shutil.copytree(trained, storage)
        for name, damage in damages:
            path = storage / RUN / name
            path.write_bytes(damage(path.read_bytes() or b" "))
        right_or_refused(storage, trained)


@unhurried(80)
@given(one=FILES, other=FILES, whole=st.booleans())
def test_files_and_folders_that_changed_places_are_refused_or_right(
    trained: Path, one: str, other: str, whole: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder) / "runs"
        shutil.copytree(trained, storage)
        paths = [storage / RUN / name for name in (one, other)]
        if whole and all("/" in name for name in (one, other)):
            paths = [path.parent for path in paths]
        if paths[0] != paths[1]:
            paths[0].rename(storage / "aside")
            paths[1].rename(paths[0])
            (storage / "aside").rename(paths[1])
        right_or_refused(storage, trained)
