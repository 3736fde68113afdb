"""The run folder: commits that survive a crash at any write, fallback, retention, ownership."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seal_ray.errors import CheckpointError
from seal_ray.phases.schedule import Position
from seal_ray.runs.checkpoint import Snapshot, read_snapshot, to_line, weights_sha256
from seal_ray.runs.folder import Store, open_store
from seal_ray.storage.files import write_durably
from tests.runs import open_store as tiny_store
from tests.runs import same_state, tiny_images, tiny_recipe, train_run, without_speeds

RUN = "normal-s0-0123456789"
EPOCHS = 4


def snapshot(epoch: int) -> Snapshot:
    """The state after global epoch `epoch`, in generations of two."""
    return Snapshot(
        run_id=RUN,
        position=Position(epoch // 2, epoch % 2),
        weights={"w": torch.full((3,), float(epoch))},
        optimizer={"w:momentum_buffer": torch.full((3,), -float(epoch))},
        rows=tuple(
            {"generation": e // 2, "epoch": e % 2, "train_loss": 1 / (e + 1)} for e in range(epoch + 1)
        ),
    )


def committed(folder: Path, epochs: int, checkpoints: int = 99) -> Store:
    store = Store(folder, RUN, checkpoints)
    store.open(None)
    for epoch in range(epochs):
        store.commit(snapshot(epoch))
    return store


def kept(store: Store) -> list[str]:
    return sorted(path.name for path in (store.folder / "checkpoints").iterdir())


def spoil(store: Store, name: str, file: str = "weights.safetensors") -> None:
    path = store.folder / "checkpoints" / name / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def latest(store: Store) -> Snapshot:
    """The newest usable checkpoint, which there is; damaged ones are warned of elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = store.latest()
    assert found is not None
    return found


def test_the_newest_checkpoint_is_the_one_gone_on_from(tmp_path: Path) -> None:
    store = committed(tmp_path, 3)
    same_state(latest(store), snapshot(2))
    same_state(store.at(Position(0, 1)), snapshot(1))
    assert store.rows() == list(snapshot(2).rows)
    assert kept(store) == ["g000-e000", "g000-e001", "g001-e000"]


def test_a_run_that_never_committed_has_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", RUN)
    assert store.latest() is None
    assert store.rows() == []
    assert store.status() == {}
    assert not store.stop_requested()
    assert not (tmp_path / "new").exists()  # looking makes nothing


@pytest.mark.parametrize("checkpoints", [1, 2, 3])
def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, checkpoints: int) -> None:
    store = committed(tmp_path, 5, checkpoints)
    assert kept(store) == ["g000-e000", "g000-e001", "g001-e000", "g001-e001", "g002-e000"][-checkpoints:]
    assert len(store.rows()) == 5


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json", "metrics.jsonl"])
def test_the_older_checkpoint_is_used_with_a_warning_that_names_the_bad_one(
    tmp_path: Path, file: str
) -> None:
    store = committed(tmp_path, 3)
    spoil(store, "g001-e000", file)
    with pytest.warns(UserWarning, match=rf"skipped: .*g001-e000/{file}") as caught:
        store.latest()
    assert len(caught) == 1
    same_state(latest(store), snapshot(1))


def test_a_checkpoint_without_a_manifest_was_never_made(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    store = committed(tmp_path, 3)
    (tmp_path / "checkpoints" / "g001-e000" / "manifest.json").unlink()
    assert latest(store).position == Position(0, 1)
    store.latest()
    assert list(recwarn) == []


def test_without_a_usable_checkpoint_the_error_lists_what_was_tried(tmp_path: Path) -> None:
    store = committed(tmp_path, 3)
    for name in kept(store):
        spoil(store, name)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(CheckpointError, match="no usable checkpoint among 3") as error,
    ):
        store.latest()
    assert "Restore one of them" in str(error.value)
    for name in kept(store):
        assert f"{name}/weights.safetensors: truncated or altered" in str(error.value)


def test_checkpoints_of_another_run_are_not_used(tmp_path: Path) -> None:
    committed(tmp_path, 2)
    other = Store(tmp_path, "llf-s0-9999999999")
    with (
        pytest.warns(UserWarning, match="belongs to run"),
        pytest.raises(CheckpointError, match="belongs to run normal-s0-0123456789, not to llf-s0-9999999999"),
    ):
        other.latest()


def test_a_checkpoint_under_another_positions_name_is_not_used(tmp_path: Path) -> None:
    store = committed(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints" / "g000-e000", tmp_path / "checkpoints" / "g001-e001")
    with pytest.warns(UserWarning, match="g001-e001"):
        store.latest()
    assert latest(store).position == Position(1, 0)
    with pytest.raises(CheckpointError, match="g001-e001"):
        store.at(Position(1, 1))


def test_other_things_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    store = committed(tmp_path, 2, checkpoints=1)
    for name in ("notes.txt", "g1", "g000-e009.bak", ".g000-e009"):
        (tmp_path / "checkpoints" / name).mkdir()
    store.commit(snapshot(2))
    assert {"notes.txt", "g1", "g000-e009.bak", ".g000-e009"} < set(kept(store))
    assert latest(store).position == Position(1, 0)


def test_going_on_from_a_restored_checkpoint_keeps_what_is_committed(tmp_path: Path) -> None:
    backup = committed(tmp_path / "backup", 1)
    store = committed(tmp_path / "run", 4, checkpoints=2)
    for name in kept(store):
        spoil(store, name)
    shutil.copytree(backup.folder / "checkpoints" / "g000-e000", store.folder / "checkpoints" / "g000-e000")
    assert latest(store).position == Position(0, 0)
    store.open(latest(store))
    for epoch in (1, 2, 3):
        store.commit(snapshot(epoch))
        same_state(latest(store), snapshot(epoch))
    assert kept(store) == ["g001-e000", "g001-e001"]


def test_a_kill_between_checkpoint_and_line_doubles_and_loses_nothing(tmp_path: Path) -> None:
    store = committed(tmp_path, 3)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert lines == [to_line(row) for row in snapshot(2).rows]
    torn = [b"".join(lines[:2]), b"".join(lines)[:-9], b"".join([*lines, lines[-1]]), b"", b"\xff{"]
    for text in torn:
        (tmp_path / "metrics.jsonl").write_bytes(text)
        store.open(store.latest())
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines)
    (tmp_path / "metrics.jsonl").unlink()
    store.open(store.latest())
    store.commit(snapshot(3))
    assert store.rows() == list(snapshot(3).rows)


def test_going_on_from_an_older_checkpoint_takes_its_metrics(tmp_path: Path) -> None:
    store = committed(tmp_path, 3)
    spoil(store, "g001-e000")
    store.open(latest(store))
    assert store.rows() == list(snapshot(1).rows)


@pytest.mark.parametrize("text", [b"{\n", b"\xff\n", b'{"a": 1}\n{"b":\n', b"[" * 100_000 + b"\n", b"5\n"])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_damaged_metrics_are_a_checkpoint_error(tmp_path: Path, text: bytes, checkpoints: bool) -> None:
    store = committed(tmp_path, 2)
    if not checkpoints:
        shutil.rmtree(tmp_path / "checkpoints")
        assert store.rows() == list(snapshot(1).rows)  # taken as they are
    (tmp_path / "metrics.jsonl").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: damaged"):
        store.rows()


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    store = committed(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for end in range(len(b"".join(map(to_line, snapshot(1).rows))), len(whole)):
        path.write_bytes(whole[:end])
        assert store.rows() == list(snapshot(1).rows)
    path.write_bytes(whole)
    assert store.rows() == list(snapshot(2).rows)


def test_metrics_that_no_checkpoint_vouches_for_are_damaged(tmp_path: Path) -> None:
    store = committed(tmp_path, 3, checkpoints=2)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    for text in (b"", first, whole + third, second + first + third, whole.replace(b"1.0", b"1.1", 1)):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match="not what the checkpoints say"):
            store.rows()
    path.unlink()
    with pytest.raises(CheckpointError, match="not what the checkpoints say"):
        store.rows()
    store.open(store.latest())
    assert path.read_bytes() == whole
    assert store.rows() == list(snapshot(2).rows)


def test_a_kill_before_the_very_first_line_leaves_no_metrics_yet(tmp_path: Path) -> None:
    store = committed(tmp_path, 1, checkpoints=1)
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    assert store.rows() == []
    store.commit(snapshot(1))
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not what the checkpoints say"):
        store.rows()


def test_a_reader_that_falls_epochs_behind_sees_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = committed(tmp_path, 2, checkpoints=1)
    read: Callable[[Path], bytes] = Path.read_bytes
    later = [2, 3, 4]

    def read_slowly(path: Path) -> bytes:
        data = read(path)
        if path.name == "metrics.jsonl" and path.parent == tmp_path:
            while later:
                store.commit(snapshot(later.pop(0)))
        return data

    monkeypatch.setattr(Path, "read_bytes", read_slowly)
    assert store.rows() == list(snapshot(4).rows)


def test_a_launch_that_is_taken_over_while_it_commits_adds_no_line(tmp_path: Path) -> None:
    committed(tmp_path, 1)
    answers = iter([True, False])
    late = Store(tmp_path, RUN, 99, owned=lambda: next(answers))
    with pytest.raises(CheckpointError, match="another launch has taken this run over"):
        late.commit(snapshot(1))
    assert (tmp_path / "metrics.jsonl").read_bytes() == to_line(snapshot(0).rows[0])


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"5", b"[" * 100_000])
def test_a_damaged_status_is_unknown(tmp_path: Path, text: bytes) -> None:
    store = Store(tmp_path, RUN)
    (tmp_path / "status.json").write_bytes(text)
    assert store.status()["status"] == "unknown"


def test_a_status_keeps_its_details(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", RUN)
    store.set_status("diverged", metric="train_loss", generation=1)
    assert store.status() == {"run_id": RUN, "status": "diverged", "metric": "train_loss", "generation": 1}
    store.set_status("running")
    assert store.status() == {"run_id": RUN, "status": "running"}


def test_a_stop_request_stays_until_it_is_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", RUN)
    store.clear_stop()
    store.request_stop()
    store.request_stop()
    assert Store(tmp_path / "run", RUN).stop_requested()
    store.clear_stop()
    assert not store.stop_requested()


ACTIONS: list[Callable[[Store], None]] = [
    lambda store: store.commit(snapshot(2)),
    lambda store: store.keep_moment("relearned", 0, snapshot(1)),
    lambda store: store.set_status("running"),
    lambda store: store.open(None),
    lambda store: store.open(snapshot(1)),
]


def test_a_full_disk_is_a_checkpoint_error_and_costs_nothing_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = committed(tmp_path, 2)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for action in ACTIONS:
            with pytest.raises(CheckpointError, match=r"cannot save \(No space left on device\).*safe"):
                action(store)
    assert not list(tmp_path.rglob(".*"))
    same_state(latest(store), snapshot(1))
    store.open(latest(store))
    store.commit(snapshot(2))
    assert store.rows() == list(snapshot(2).rows)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_launch_that_was_taken_over_writes_nothing(tmp_path: Path) -> None:
    committed(tmp_path, 2, checkpoints=1)
    before = contents(tmp_path)
    late = Store(tmp_path, RUN, 1, owned=lambda: False)
    for action in ACTIONS:
        with pytest.raises(CheckpointError, match="another launch has taken this run over; nothing written"):
            action(late)
        assert contents(tmp_path) == before


def test_moments_are_snapshots_without_the_optimizer(tmp_path: Path) -> None:
    store = Store(tmp_path, RUN)
    store.keep_moment("ascended", 12, snapshot(1))
    found = read_snapshot(tmp_path / "moments" / "g012-ascended", RUN)
    same_state(found, replace(snapshot(1), optimizer={}))


def test_a_run_has_its_folder_in_the_storage(tmp_path: Path) -> None:
    store = open_store(tmp_path, tiny_recipe(), tiny_images(), checkpoints=3)
    assert store.folder == tmp_path / store.run_id
    assert store.run_id == tiny_store(tiny_recipe(), tmp_path).run_id
    assert store.checkpoints == 3


class CrashError(BaseException):
    """The process is gone: nothing catches it and nothing it would do afterwards happens."""


@contextmanager
def crash_at(call: int, torn: bool = False) -> Iterator[list[str]]:
    """Every change of the file system counts; the one numbered `call` and all later ones do not happen.

    torn: what was being written is left without its end. Yields the calls that happened.
    """
    happened: list[str] = []
    patch = pytest.MonkeyPatch()

    def guard(owner: Any, name: str, instead: Callable[..., Any] | None = None) -> None:
        real = getattr(owner, name)

        def guarded(*arguments: Any, **options: Any) -> Any:
            if len(happened) >= call:
                if torn and name == "fsync":
                    tear(arguments[0])
                raise CrashError
            happened.append(name)
            return (instead or real)(*arguments, **options)

        patch.setattr(owner, name, guarded)

    def tear(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            os.truncate(path, max(0, path.stat().st_size - 10))

    guard(os, "fsync", lambda descriptor: None)
    for owner, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
        guard(owner, name)
    try:
        yield happened
    finally:
        patch.undo()


def train(folder: Path, done: list[int]) -> None:
    """What a run does to its store, from wherever it stands; `done` grows as commits return."""
    store = Store(folder, RUN, checkpoints=2)
    latest = store.latest()
    store.open(latest)
    for epoch in range(len(latest.rows) if latest else 0, EPOCHS):
        if epoch % 2:
            store.keep_moment("relearned", epoch // 2, snapshot(epoch))
        store.commit(snapshot(epoch))
        done.append(epoch)
    store.set_status("finished")


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_crash_at_any_write_loses_no_committed_epoch(tmp_path: Path, torn: bool) -> None:
    call = 0
    while True:
        folder, done = tmp_path / str(call), list[int]()
        try:
            with crash_at(call, torn) as happened:
                train(folder, done)
        except CrashError:
            pass
        else:
            break
        found = Store(folder, RUN).latest()
        reached = -1 if found is None else len(found.rows) - 1
        assert reached in (len(done) - 1, len(done)), f"crash at call {call}"
        if found is not None:
            same_state(found, snapshot(reached))
        assert len(Store(folder, RUN).rows()) in (reached, reached + 1)  # readable before it goes on

        try:  # a second crash, not far on, and then it runs to its end
            with crash_at(call % 7, torn):
                train(folder, [])
        except CrashError:
            pass
        assert len((Store(folder, RUN).latest() or snapshot(0)).rows) >= len(done)
        train(folder, [])
        store = Store(folder, RUN)
        assert store.rows() == list(snapshot(EPOCHS - 1).rows)
        assert kept(store)[-2:] == ["g001-e000", "g001-e001"]
        assert len(kept(store)) <= 3  # a crash after the very last commit may leave one too many
        same_state(store.at(Position(1, 0)), snapshot(2))
        same_state(store.at(Position(1, 1)), snapshot(3))
        for generation, epoch in ((0, 1), (1, 3)):
            moment = read_snapshot(folder / "moments" / f"g{generation:03d}-relearned", RUN)
            same_state(moment, replace(snapshot(epoch), optimizer={}))
        assert store.status()["status"] == "finished"
        shutil.rmtree(folder)
        call += 1
    assert len(happened) == call
    assert call > 50


RECIPE = tiny_recipe(
    {"name": "seal", "forget": "llf", "ascent_share": 0.5}, budget={"epochs": 4, "generation_length": 2}
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run that nothing happened to, with all its moments."""
    folder = tmp_path_factory.mktemp("whole")
    train_run(RECIPE, folder)
    return tiny_store(RECIPE, folder)


@pytest.mark.parametrize("call", range(3, 150, 21))
def test_training_that_crashed_at_a_write_ends_with_the_same_bits(
    whole: Store, tmp_path: Path, call: int
) -> None:
    with pytest.raises(CrashError), crash_at(call):
        train_run(RECIPE, tmp_path, checkpoints=2)
    train_run(RECIPE, tmp_path, checkpoints=2)
    store = tiny_store(RECIPE, tmp_path)
    assert without_speeds(store.rows()) == without_speeds(whole.rows())
    for moment in sorted((whole.folder / "moments").iterdir()):
        one, other = (
            read_snapshot(run.folder / "moments" / moment.name, run.run_id) for run in (whole, store)
        )
        assert weights_sha256(one.weights) == weights_sha256(other.weights)


@pytest.mark.parametrize("old", [b"", b"old"])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, old: bytes) -> None:
    path, new = tmp_path / "status.json", b"new" * 1000
    for call in range(10):
        path.write_bytes(old)
        try:
            with crash_at(call, torn=True):
                write_durably(path, new)
        except CrashError:
            assert path.read_bytes() in (old, new)
        else:
            assert path.read_bytes() == new
            return
    pytest.fail("writing never ends")


def test_a_commit_makes_every_name_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[Path, set[str]] = {}
    files: set[int] = set()

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            synced[path] = {child.name for child in path.iterdir()}
        else:
            files.add(path.stat().st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = tmp_path / "storage"
    store = Store(storage / RUN, RUN)
    store.open(None)
    store.commit(snapshot(0))
    store.keep_moment("relearned", 0, snapshot(0))
    store.set_status("running")
    found = sorted(storage.rglob("*"))
    assert len(found) == 17
    for path in [storage, *found]:
        assert path.name in synced.get(path.parent, set()), f"{path} may vanish in a power cut"
        assert path.is_dir() or path.stat().st_ino in files, f"{path} may be empty after a power cut"


def test_what_a_kill_leaves_of_a_write_does_not_matter(tmp_path: Path) -> None:
    store = committed(tmp_path, 2, checkpoints=2)
    remains = [
        tmp_path / ".metrics.jsonl.abc",
        tmp_path / "checkpoints" / "g000-e001" / ".weights.safetensors.xyz",
        tmp_path / "checkpoints" / "g001-e000" / ".manifest.json.k9",
        tmp_path / "checkpoints" / "g001-e000" / "weights.safetensors",
    ]
    (tmp_path / "checkpoints" / "g001-e000").mkdir()
    for path in remains:
        path.write_bytes(b"half")
    assert latest(store).position == Position(0, 1)
    store.open(latest(store))
    store.commit(snapshot(2))
    same_state(store.at(Position(1, 0)), snapshot(2))
    assert json.loads((tmp_path / "metrics.jsonl").read_bytes().splitlines()[-1])["generation"] == 1
