"""Data sets on S3 are copied to this host once, checked, and copied again when something is wrong."""

from __future__ import annotations

import json
import multiprocessing as mp
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seal_ray.data.beton import BetonFile, load_dataset, verify
from seal_ray.data.images import Images
from seal_ray.data.staging import absolute, open_dataset, stage
from seal_ray.distributed.launch import prepare_job
from seal_ray.errors import DataError
from seal_ray.recipe import Job, Placement
from seal_ray.storage.paths import ObjectPath, cache_folder, storage_path
from seal_ray.training.loop import fit
from tests.runs import tiny_recipe, without_speeds


def upload(folder: Path, to: ObjectPath) -> ObjectPath:
    """Copy a prepared data set as a user would."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.fixture
def source(digits: Path, bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """The digits on S3, and a host that has nothing yet."""
    monkeypatch.setenv("SEAL_RAY_CACHE", str(tmp_path / "cache"))
    return upload(digits, bucket / tmp_path.name / "digits")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the .beton files that are read from S3, as they are."""
    names: list[str] = []
    chunks = ObjectPath.chunks

    def noted(path: ObjectPath, size: int) -> object:
        names.append(path.name)
        return chunks(path, size)

    monkeypatch.setattr(ObjectPath, "chunks", noted)
    return names


def beton(folder: Path) -> Path:
    return folder / "train.beton"


def test_a_copy_holds_what_the_data_set_holds(source: ObjectPath, digits: Path, fetched: list[str]) -> None:
    dataset = open_dataset(str(source))
    verify(dataset)
    assert dataset.folder.is_relative_to(cache_folder())
    assert dataset.training_identity == load_dataset(digits).training_identity
    assert sorted(fetched) == ["train.beton", "val.beton"]
    for split in ("train.beton", "val.beton"):
        assert (dataset.folder / split).read_bytes() == (digits / split).read_bytes()
    assert open_dataset(str(source)).folder == dataset.folder
    assert len(fetched) == 2


def test_a_folder_is_used_where_it_lies(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_dataset(str(digits)) == load_dataset(digits)
    monkeypatch.chdir(digits.parent)
    assert absolute("digits") == str(digits.resolve())
    assert absolute("s3://bucket/digits") == "s3://bucket/digits"


def test_equal_data_in_two_places_is_copied_once(
    source: ObjectPath, digits: Path, bucket: ObjectPath, fetched: list[str]
) -> None:
    other = upload(digits, bucket / "elsewhere" / "digits")
    assert stage(source) == stage(other)
    assert len(fetched) == 2


def truncate(folder: Path) -> None:
    with beton(folder).open("r+b") as file:
        file.truncate(1000)


def alter(folder: Path) -> None:
    with beton(folder).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def cut_off(folder: Path) -> None:
    """As a kill leaves it that comes between two files."""
    (folder / "dataset.json").unlink()
    (folder / "val.beton").rename(folder / "val.beton.part")


def spoil_description(folder: Path) -> None:
    (folder / "dataset.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (truncate, ["train.beton"]),
        (alter, ["train.beton"]),
        (cut_off, ["val.beton"]),
        (spoil_description, []),
    ],
)
def test_of_a_damaged_copy_what_is_damaged_is_copied_anew(
    damage: Callable[[Path], None], again: list[str], source: ObjectPath, fetched: list[str]
) -> None:
    folder = stage(source)
    damage(folder)
    fetched.clear()
    assert stage(source) == folder
    assert fetched == again
    verify(load_dataset(folder))


@pytest.mark.parametrize("name", ["../../escaped.beton", "/tmp/escaped.beton", "escaped.sh"])
def test_a_description_that_names_files_elsewhere_is_refused(name: str, source: ObjectPath) -> None:
    described = json.loads((source / "dataset.json").read_bytes())
    described["splits"]["train"]["file"] = name
    (source / "dataset.json").write_bytes(json.dumps(described).encode())
    with pytest.raises(DataError, match=r"dataset\.json is damaged .*escaped"):
        stage(source)


def test_a_copy_that_was_only_touched_is_checked_and_stays(source: ObjectPath, fetched: list[str]) -> None:
    folder = stage(source)
    beton(folder).touch()
    (folder / "checked.json").write_text("[")
    stage(source)
    stage(source)
    assert len(fetched) == 2


@pytest.mark.parametrize("bad", ["altered", "missing", "described"])
def test_what_is_wrong_on_s3_is_said_and_nothing_is_kept(bad: str, source: ObjectPath) -> None:
    if bad == "altered":
        (source / "val.beton").write_bytes(b"x")
    elif bad == "missing":
        (source / "val.beton").unlink()
    else:
        (source / "dataset.json").write_bytes(b"{}")
    said = {"altered": "val.beton was altered", "missing": "val.beton is missing"}
    with pytest.raises(DataError, match=f"{source}/{said.get(bad, 'dataset.json is damaged')}"):
        stage(source)
    assert not list(cache_folder().rglob("dataset.json"))


def test_no_data_set(source: ObjectPath) -> None:
    with pytest.raises(DataError, match=r"holds no data set .no dataset\.json"):
        open_dataset(f"{source.parent}/nothing")


def test_a_cache_that_cannot_be_written_to(
    source: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEAL_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be copied to .*SEAL_RAY_CACHE"):
        stage(source)


def stage_and_count(uri: str, ready: object, results: object) -> None:
    """In a process of its own: how many files it copied."""
    count, chunks = 0, ObjectPath.chunks

    def counted(path: ObjectPath, size: int) -> object:
        nonlocal count
        count += 1
        return chunks(path, size)

    ObjectPath.chunks = counted  # type: ignore[assignment, method-assign]
    source = storage_path(uri)
    assert isinstance(source, ObjectPath)
    ready.wait()  # type: ignore[attr-defined]
    folder = stage(source)
    verify(load_dataset(folder))
    results.put(count)  # type: ignore[attr-defined]


def test_of_two_processes_one_copies(source: ObjectPath) -> None:
    context = mp.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=stage_and_count, args=(str(source), ready, results)) for _ in range(2)]
    for process in both:
        process.start()
    counts = sorted(results.get(timeout=120) for _ in both)
    for process in both:
        process.join()
    assert counts == [0, 2]


def test_where_the_data_lies_decides_nothing(source: ObjectPath, digits: Path, bucket: ObjectPath) -> None:
    rows, ids = [], []
    for path in (str(digits), str(source)):
        changes = {"data": {"path": path}, "budget": {"epochs": 2, "generation_length": 2}, "batch_size": 32}
        recipe = tiny_recipe("normal", **changes)
        rows.append(without_speeds([one.row for one in fit(recipe)]))
        placement = {"storage": str(bucket)}
        planned = prepare_job(Job(name="x", recipe=recipe, placement=Placement.model_validate(placement)))
        assert planned.job.recipe.data.path == path
        ids.append(planned.run_id)
    assert rows[0] == rows[1]
    assert ids[0] == ids[1]


def test_the_images_are_those_of_the_folder(source: ObjectPath, digits: Path) -> None:
    datasets = [open_dataset(str(one)) for one in (source, digits)]
    copied, original = (Images.from_dataset(one, loader="torch") for one in datasets)
    assert copied.identity == original.identity
    here, there = (BetonFile.open(beton(folder)) for folder in (digits, stage(source)))
    assert np.array_equal(here.pixels(range(8)), there.pixels(range(8)))
    assert json.loads((stage(source) / "dataset.json").read_bytes())["name"] == "digits"
