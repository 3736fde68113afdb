"""Damaged data sets are refused; those on S3 are copied to a host once, and again when something is wrong."""

from __future__ import annotations

import json
import multiprocessing as mp
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seal_ray.data.beton import BetonFile
from seal_ray.data.images import Images
from seal_ray.data.prepared import Dataset, absolute, load_dataset, open_dataset, stage, verify
from seal_ray.distributed.launch import prepare_job
from seal_ray.errors import DataError
from seal_ray.recipe import Job, Placement
from seal_ray.storage.paths import ObjectPath, cache_folder, storage_path
from seal_ray.training.loop import fit
from tests.runs import tiny_recipe, without_speeds


def test_verify_notices_what_sizes_and_checksums_can(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    original = prepared("raw")
    verify(original)
    for name in ("train.beton", "val.beton"):
        (tmp_path / name).write_bytes((original.folder / name).read_bytes())
    copy = replace(original, folder=tmp_path)
    verify(copy)
    content = bytearray((tmp_path / "val.beton").read_bytes())
    content[3_000_000] ^= 1
    (tmp_path / "val.beton").write_bytes(content)
    verify(copy, checksums=False)
    with pytest.raises(DataError, match=r"val.beton was altered.*prepare the data set again"):
        verify(copy)
    (tmp_path / "val.beton").write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"val.beton has {len(content) - 1} bytes instead of {len(content)}"):
        verify(copy, checksums=False)
    (tmp_path / "train.beton").unlink()
    with pytest.raises(DataError, match=r"train.beton has 0 bytes"):
        verify(copy, checksums=False)


def test_a_folder_that_is_not_a_data_set_is_refused_with_the_remedy(
    prepared: Callable[[str], Dataset], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"holds no data set .*seal-ray data prepare"):
        load_dataset(tmp_path)
    good = json.loads((prepared("raw").folder / "dataset.json").read_text())
    bad = ["", "[]", "null", "{}", json.dumps({**good, "format": 99}), json.dumps(good)[:-9]]
    bad += [json.dumps({key: value for key, value in good.items() if key != absent}) for absent in good]
    bad += [json.dumps({**good, "channels": 1}), json.dumps({**good, "mean": [0.5]})]
    bad += [json.dumps({**good, "classes": [{"id": "a"}]}), json.dumps({**good, "encoding": "png"})]
    bad += [json.dumps({**good, "splits": {"train": good["splits"]["train"], "val": {"file": 3}}})]
    bad += [json.dumps(good)]  # whole, but without its .beton files
    for text in bad:
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"seal-ray data prepare` again"):
            load_dataset(tmp_path)


def upload(folder: Path, to: ObjectPath) -> ObjectPath:
    """Copy a prepared data set as a user would."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.fixture
def remote(digits: Path, bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
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


def test_a_copy_holds_what_the_data_set_holds(remote: ObjectPath, digits: Path, fetched: list[str]) -> None:
    dataset = open_dataset(str(remote))
    verify(dataset)
    assert dataset.folder.is_relative_to(cache_folder())
    assert dataset.training_identity == load_dataset(digits).training_identity
    assert sorted(fetched) == ["train.beton", "val.beton"]
    for split in ("train.beton", "val.beton"):
        assert (dataset.folder / split).read_bytes() == (digits / split).read_bytes()
    assert open_dataset(str(remote)).folder == dataset.folder
    assert len(fetched) == 2


def test_a_folder_is_used_where_it_lies(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_dataset(str(digits)) == load_dataset(digits)
    monkeypatch.chdir(digits.parent)
    assert absolute("digits") == str(digits.resolve())
    assert absolute("s3://bucket/digits") == "s3://bucket/digits"


def test_equal_data_in_two_places_is_copied_once(
    remote: ObjectPath, digits: Path, bucket: ObjectPath, fetched: list[str]
) -> None:
    other = upload(digits, bucket / "elsewhere" / "digits")
    assert stage(remote) == stage(other)
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
    damage: Callable[[Path], None], again: list[str], remote: ObjectPath, fetched: list[str]
) -> None:
    folder = stage(remote)
    damage(folder)
    fetched.clear()
    assert stage(remote) == folder
    assert fetched == again
    verify(load_dataset(folder))


@pytest.mark.parametrize("name", ["../../escaped.beton", "/tmp/escaped.beton", "escaped.sh"])
def test_a_description_that_names_files_elsewhere_is_refused(name: str, remote: ObjectPath) -> None:
    described = json.loads((remote / "dataset.json").read_bytes())
    described["splits"]["train"]["file"] = name
    (remote / "dataset.json").write_bytes(json.dumps(described).encode())
    with pytest.raises(DataError, match=r"dataset\.json is damaged .*escaped"):
        stage(remote)


def test_a_copy_that_was_only_touched_is_checked_and_stays(remote: ObjectPath, fetched: list[str]) -> None:
    folder = stage(remote)
    beton(folder).touch()
    (folder / "checked.json").write_text("[")
    stage(remote)
    stage(remote)
    assert len(fetched) == 2


@pytest.mark.parametrize("bad", ["altered", "missing", "described"])
def test_what_is_wrong_on_s3_is_said_and_nothing_is_kept(bad: str, remote: ObjectPath) -> None:
    if bad == "altered":
        (remote / "val.beton").write_bytes(b"x")
    elif bad == "missing":
        (remote / "val.beton").unlink()
    else:
        (remote / "dataset.json").write_bytes(b"{}")
    said = {"altered": "val.beton was altered", "missing": "val.beton is missing"}
    with pytest.raises(DataError, match=f"{remote}/{said.get(bad, 'dataset.json is damaged')}"):
        stage(remote)
    assert not list(cache_folder().rglob("dataset.json"))


def test_no_data_set(remote: ObjectPath) -> None:
    with pytest.raises(DataError, match=r"holds no data set .no dataset\.json"):
        open_dataset(f"{remote.parent}/nothing")


def test_a_cache_that_cannot_be_written_to(
    remote: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEAL_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be copied to .*SEAL_RAY_CACHE"):
        stage(remote)


def stage_and_count(uri: str, ready: object, results: object) -> None:
    """In a process of its own: how many files it copied."""
    count, chunks = 0, ObjectPath.chunks

    def counted(path: ObjectPath, size: int) -> object:
        nonlocal count
        count += 1
        return chunks(path, size)

    ObjectPath.chunks = counted  # type: ignore[assignment, method-assign]
    remote = storage_path(uri)
    assert isinstance(remote, ObjectPath)
    ready.wait()  # type: ignore[attr-defined]
    folder = stage(remote)
    verify(load_dataset(folder))
    results.put(count)  # type: ignore[attr-defined]


def test_of_two_processes_one_copies(remote: ObjectPath) -> None:
    context = mp.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=stage_and_count, args=(str(remote), ready, results)) for _ in range(2)]
    for process in both:
        process.start()
    counts = sorted(results.get(timeout=120) for _ in both)
    for process in both:
        process.join()
    assert counts == [0, 2]


def test_where_the_data_lies_decides_nothing(remote: ObjectPath, digits: Path, bucket: ObjectPath) -> None:
    rows, ids = [], []
    for path in (str(digits), str(remote)):
        changes = {"data": {"path": path}, "budget": {"epochs": 2, "generation_length": 2}, "batch_size": 32}
        recipe = tiny_recipe("normal", **changes)
        rows.append(without_speeds([one.row for one in fit(recipe)]))
        placement = {"storage": str(bucket)}
        planned = prepare_job(Job(name="x", recipe=recipe, placement=Placement.model_validate(placement)))
        assert planned.job.recipe.data.path == path
        ids.append(planned.run_id)
    assert rows[0] == rows[1]
    assert ids[0] == ids[1]


def test_the_images_are_those_of_the_folder(remote: ObjectPath, digits: Path) -> None:
    datasets = [open_dataset(str(one)) for one in (remote, digits)]
    copied, original = (Images.from_dataset(one, loader="torch") for one in datasets)
    assert copied.identity == original.identity
    here, there = (BetonFile.open(beton(folder)) for folder in (digits, stage(remote)))
    assert np.array_equal(here.pixels(range(8)), there.pixels(range(8)))
    assert json.loads((stage(remote) / "dataset.json").read_bytes())["name"] == "digits"
