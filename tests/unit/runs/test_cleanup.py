"""What cleaning a storage folder finds and removes, and above all what it leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seal_ray.cli import app
from seal_ray.errors import CheckpointError
from seal_ray.recipe import Job, Placement, dump_job
from seal_ray.runs.cleanup import find_litter, remove
from seal_ray.runs.folder import Store
from seal_ray.storage.lease import hold_lease
from tests.runs import EVERYTHING, keeping, open_store, tiny_recipe, train_run

RECIPE = tiny_recipe({"name": "seal", "ascent_rate": 0.3}, budget={"epochs": 4, "generation_length": 2})
RUN = open_store(RECIPE, "unused").run_id


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept each of its four checkpoints and every moment."""
    folder = tmp_path_factory.mktemp("trained") / RUN
    train_run(RECIPE, folder, placement=keeping(EVERYTHING))
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    """A copy of it, of which two checkpoints are to be kept."""
    shutil.copytree(trained, tmp_path / RUN)
    keep(tmp_path / RUN, 2)
    return Store(tmp_path / RUN, RUN)


def keep(run: Path, checkpoints: int) -> None:
    placement = Placement.model_validate({"keep": {"checkpoints": checkpoints}})
    (run / "job.yaml").write_text(dump_job(Job(name="trial", recipe=RECIPE, placement=placement)))


def files(folder: Path) -> dict[str, bytes]:
    """What is in the folder, but for the file that is locked and holds nothing."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lease.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def litter(store: Store) -> dict[str, str]:
    return {str(one.path.relative_to(store.folder)): one.what for one in find_litter(store.folder.parent)}


SURPLUS = "more checkpoints than placement.keep.checkpoints"


def test_surplus_checkpoints_go_and_the_run_is_as_it_was(store: Store) -> None:
    before, rows, latest = files(store.folder), store.rows(), store.latest()
    found = find_litter(store.folder.parent)
    assert litter(store) == {"checkpoints/g000-e001": SURPLUS, "checkpoints/g000-e000": SURPLUS}
    assert files(store.folder) == before  # finding changes nothing
    for one in found:
        assert one.bytes == sum(len(data) for name, data in before.items() if one.path.name in name)
    assert remove(found) == found
    assert files(store.folder) == {name: data for name, data in before.items() if "g000-e00" not in name}
    after = store.latest()
    assert after is not None
    assert latest is not None
    assert (after.position, store.rows()) == (latest.position, rows)
    assert find_litter(store.folder.parent) == []
    assert len(list((store.folder / "moments").iterdir())) == 4


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_no_checkpoint_is_surplus_while_a_newer_one_is_damaged(store: Store, file: str) -> None:
    path = store.folder / "checkpoints" / "g001-e001" / file
    path.write_bytes(path.read_bytes()[:-20])
    assert litter(store) == {}
    keep(store.folder, 4)
    assert litter(store) == {}


def test_checkpoints_are_kept_when_the_job_cannot_be_read(store: Store) -> None:
    (store.folder / "job.yaml").write_text("{")
    assert litter(store) == {}


def test_what_was_half_written_goes_but_never_a_completed_moment(store: Store) -> None:
    keep(store.folder, 4)
    before = files(store.folder)
    remains = [
        "checkpoints/g002-e000/weights.safetensors",
        "moments/g002-relearned/weights.safetensors",
        ".metrics.jsonl.ab_3defg",
        "checkpoints/g001-e001/.optimizer.safetensors.abcdefg0",
        "moments/g001-ascended/.manifest.json.abcdefg0",
        "lease.json",
        "ray/token/state",
    ]
    damaged = store.folder / "moments" / "g000-init" / "manifest.json"
    damaged.write_text("{")
    for name in remains:
        (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / name).write_bytes(b"half")
    found = litter(store)
    assert found == {
        "checkpoints/g002-e000": "half-written",
        "moments/g002-relearned": "half-written",
        ".metrics.jsonl.ab_3defg": "half-written",
        "checkpoints/g001-e001/.optimizer.safetensors.abcdefg0": "half-written",
        "moments/g001-ascended/.manifest.json.abcdefg0": "half-written",
        "lease.json": "lease of a launch that is gone",
        "ray": "Ray's folder of a launch that is gone",
    }
    assert all(one.bytes == 4 for one in find_litter(store.folder.parent))
    remove(find_litter(store.folder.parent))
    assert files(store.folder) == before | {"moments/g000-init/manifest.json": b"{"}
    assert not (store.folder / "ray").exists()


def test_things_that_are_not_ours_stay(store: Store, tmp_path: Path) -> None:
    keep(store.folder, 4)
    others = [
        tmp_path / "notes" / "checkpoints" / "g000-e000" / "weights.safetensors",  # no job.yaml: no run
        tmp_path / ".status.json.abcdefgh",
        store.folder / "notes.txt",
        store.folder / ".hidden",
        store.folder / "checkpoints" / "best" / "weights.safetensors",
        store.folder / "moments" / "good-ones" / "weights.safetensors",
        store.folder / "wandb" / ".status.json.abcdefgh",
        store.folder / "stop",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert litter(store) == {}


def test_nothing_of_a_run_that_is_being_trained_is_touched(store: Store) -> None:
    found = find_litter(store.folder.parent)
    with hold_lease(store.folder):
        before = files(store.folder)
        assert find_litter(store.folder.parent) == []
        assert remove(found) == []
        assert files(store.folder) == before
    assert len(remove(found)) == 2


def test_an_owner_on_another_host_counts_as_alive(store: Store) -> None:
    lease = {"host": "elsewhere", "boot": "x", "pid": 1, "started": 0.0, "token": "t", "beat": 0.0}
    (store.folder / "lease.json").write_text(json.dumps(lease))
    assert find_litter(store.folder.parent) == []


def test_what_has_become_part_of_a_run_meanwhile_is_not_removed(store: Store) -> None:
    folder = store.folder / "checkpoints" / "g001-e001"
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    found = [one for one in find_litter(store.folder.parent) if one.path == folder]
    assert len(found) == 1
    (folder / "manifest.json").write_bytes(manifest)
    assert remove(found) == []
    assert store.latest() is not None


def test_cleaning_needs_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found = find_litter(store.folder.parent)
    monkeypatch.setattr(os, "fsync", full)
    assert remove(found) == found


def test_the_command_lists_and_removes_only_when_told(store: Store) -> None:
    storage, before = str(store.folder.parent), files(store.folder)
    listed = CliRunner().invoke(app, ["clean", "--storage", storage])
    assert listed.exit_code == 0, listed.output
    assert f"{store.folder}/checkpoints/g000-e000: {SURPLUS} (" in listed.output
    assert listed.output.splitlines()[-1].startswith("2 would be removed by --yes, ")
    assert files(store.folder) == before
    removed = CliRunner().invoke(app, ["clean", "--storage", storage, "--yes"])
    assert removed.output.splitlines()[-1].startswith("2 of 2 removed, ")
    assert find_litter(store.folder.parent) == []
    again = CliRunner().invoke(app, ["clean", "--storage", storage, "--yes"])
    assert again.output == "0 of 0 removed, 0 B\n"


def test_a_storage_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; name the one that runs were stored in"):
        find_litter(tmp_path / "nowhere")


def test_what_a_killed_sweep_has_left_goes_and_that_of_a_running_one_stays(store: Store) -> None:
    sweep = store.folder.parent / "sweeps" / "frequency"
    for name in ("ray-gone", "ray-at-work"):
        (sweep / name / "group-0").mkdir(parents=True)
        (sweep / name / "group-0" / "state").write_text("x" * 10)
    (sweep / "results.json").write_text("{}")
    keep(store.folder, 4)
    with hold_lease(sweep / "ray-at-work"):
        found = find_litter(store.folder.parent)
        assert [(one.path.name, one.what) for one in found] == [
            ("ray-gone", "Ray's folder of a sweep that is gone")
        ]
        assert found[0].bytes == 10
        assert remove(found) == found
        assert sorted(path.name for path in sweep.iterdir()) == ["ray-at-work", "results.json"]
    assert (store.folder / "moments").exists()
