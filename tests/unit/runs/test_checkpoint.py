"""Saved states: what was written comes back bit for bit, or a CheckpointError says why not."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_ray.errors import CheckpointError
from seal_ray.phases.schedule import Position
from seal_ray.runs.checkpoint import (
    Snapshot,
    newest_first,
    read_manifest,
    read_snapshot,
    remove_snapshot,
    to_line,
    weights_sha256,
    write_snapshot,
)
from tests.runs import same_state

RNG = torch.Generator().manual_seed(0)
WEIGHTS = {
    "conv.weight": torch.randn(2, 3, 2, 2, generator=RNG).to(memory_format=torch.channels_last),
    "bn.running_var": torch.tensor([1.0, float("inf")]),
    "bn.num_batches_tracked": torch.tensor(7),
    "half": torch.randn(3, generator=RNG).bfloat16(),
    "part": torch.arange(12.0).view(3, 4)[:, 1:3],
}
SNAPSHOT = Snapshot(
    run_id="seal-s0-0123456789",
    position=Position(1, 2),
    weights=WEIGHTS,
    optimizer={"conv.weight:momentum_buffer": torch.randn(2, 3, 2, 2, generator=RNG)},
    carried={"teacher": {"a/b.c": torch.ones(2)}, "ema": {"a": torch.zeros(1)}},
    rows=({"epoch": 0, "loss": 0.1, "phase": "learn"}, {"epoch": 1, "loss": 1 / 3, "val": None}),
    fingerprint={"workers": 2, "torch": "2.14"},
)
FILES = (
    "carried.safetensors",
    "manifest.json",
    "metrics.jsonl",
    "optimizer.safetensors",
    "weights.safetensors",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the snapshot above."""
    folder = tmp_path_factory.mktemp("snapshot") / "g001-e002"
    write_snapshot(folder, SNAPSHOT)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(files: dict[str, bytes], run_id: str = SNAPSHOT.run_id) -> Snapshot:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return read_snapshot(Path(folder), run_id)


def same(one: Snapshot, other: Snapshot) -> None:
    def bits(snapshot: Snapshot) -> Snapshot:
        def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: t.contiguous().view(-1).view(torch.uint8) for name, t in state.items()}

        carried = {name: plain(state) for name, state in snapshot.carried.items()}
        return replace(
            snapshot, weights=plain(snapshot.weights), optimizer=plain(snapshot.optimizer), carried=carried
        )

    same_state(bits(one), bits(other))
    for states in ((one.weights, other.weights), (one.optimizer, other.optimizer)):
        assert [(t.dtype, t.shape) for t in states[0].values()] == [
            (states[1][name].dtype, states[1][name].shape) for name in states[0]
        ]
    assert (one.run_id, one.rows) == (other.run_id, other.rows)
    assert dict(one.fingerprint) == dict(other.fingerprint)


def test_a_snapshot_comes_back_bit_for_bit(written: dict[str, bytes]) -> None:
    assert tuple(sorted(written)) == FILES
    same(read(written), SNAPSHOT)


def test_a_snapshot_before_the_first_epoch_has_no_position(tmp_path: Path) -> None:
    bare = Snapshot(run_id="x", position=None, weights=WEIGHTS)
    write_snapshot(tmp_path / "init", bare)
    same(read_snapshot(tmp_path / "init", "x"), bare)


def means_the_same(one: bytes, other: bytes) -> bool:
    """Whether two JSON texts differ in the space between words only."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@settings(max_examples=300)
@given(data=st.data())
def test_any_byte_changed_is_noticed(written: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    place = data.draw(st.integers(0, len(written[name]) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != written[name][place]))
    damaged = bytearray(written[name])
    damaged[place] = other
    if name == "manifest.json" and means_the_same(bytes(damaged), written[name]):
        same(read({**written, name: bytes(damaged)}), SNAPSHOT)
        return
    with pytest.raises(CheckpointError, match=name):
        read({**written, name: bytes(damaged)})


@settings(max_examples=100)
@given(data=st.data())
def test_a_file_of_another_length_is_noticed(written: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    length = data.draw(st.integers(0, len(written[name]) - 1))
    with pytest.raises(CheckpointError, match=name):
        read({**written, name: written[name][:length]})
    with pytest.raises(CheckpointError, match=name):
        read({**written, name: written[name] + data.draw(st.binary(min_size=1).filter(bytes.strip))})


@pytest.mark.parametrize("one", FILES)
@pytest.mark.parametrize("other", FILES)
def test_files_in_each_others_place_are_noticed(written: dict[str, bytes], one: str, other: str) -> None:
    if one == other:
        return
    with pytest.raises(CheckpointError):
        read({**written, one: written[other], other: written[one]})


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_epoch_is_noticed(written: dict[str, bytes], tmp_path: Path, name: str) -> None:
    later = replace(
        SNAPSHOT,
        position=Position(1, 3),
        weights={**WEIGHTS, "part": torch.zeros(3, 2)},
        optimizer={},
        carried={},
        rows=(*SNAPSHOT.rows, {"epoch": 3}),
    )
    write_snapshot(tmp_path / "later", later)
    with pytest.raises(CheckpointError):
        read({**written, name: (tmp_path / "later" / name).read_bytes()})


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(written: dict[str, bytes], name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        read({key: data for key, data in written.items() if key != name})


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused(written: dict[str, bytes], tmp_path: Path, name: str) -> None:
    for key, data in written.items():
        (tmp_path / key).write_bytes(data)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=name):
        read_snapshot(tmp_path, SNAPSHOT.run_id)


def test_the_state_of_another_run_is_refused(written: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="belongs to run seal-s0-0123456789, not to llf-s1"):
        read(written, "llf-s1")


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", "{}", '{"manifest_sha256": 5}', "{" * 9, "[" * 100_000, "\xff"]
)
def test_a_manifest_that_is_none_is_refused(written: dict[str, bytes], text: str) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read({**written, "manifest.json": text.encode("latin-1")})


def test_a_manifest_of_another_format_is_refused(written: dict[str, bytes]) -> None:
    manifest = json.loads(written["manifest.json"])
    del manifest["manifest_sha256"]
    manifest["format"] = 2
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**manifest, "manifest_sha256": seal})
    with pytest.raises(CheckpointError, match="another version"):
        read({**written, "manifest.json": text.encode()})


def test_the_manifest_says_what_and_where(written: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(written["manifest.json"])
    manifest = read_manifest(tmp_path)
    assert manifest["run_id"] == SNAPSHOT.run_id
    assert manifest["position"] == {"generation": 1, "epoch": 2}
    assert manifest["weights_sha256"] == weights_sha256(WEIGHTS)
    assert manifest["fingerprint"] == SNAPSHOT.fingerprint
    assert manifest["files"] == {
        name: {"bytes": len(written[name]), "sha256": hashlib.sha256(written[name]).hexdigest()}
        for name in FILES
        if name != "manifest.json"
    }


def test_the_digest_of_weights_by_hand() -> None:
    state = {"b": np.array([[1.5, -2.0], [0.0, 3.0]], dtype="<f4"), "a": np.array(7, dtype="<i8")}
    text = b"a torch.int64 ()\n" + state["a"].tobytes() + b"b torch.float32 (2, 2)\n" + state["b"].tobytes()
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    assert weights_sha256(tensors) == hashlib.sha256(text).hexdigest()
    tensors["b"] = tensors["b"].t().contiguous().t()
    assert weights_sha256(tensors) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_no_number_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_line({"train_loss": value})


def test_writing_again_replaces_the_whole_snapshot(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x", SNAPSHOT)
    bare = Snapshot(run_id="x", position=Position(0, 0), weights={"a": torch.ones(1)})
    write_snapshot(tmp_path / "x", bare)
    same(read_snapshot(tmp_path / "x", "x"), bare)


def test_a_snapshot_half_written_or_half_removed_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(Exception):
        pass

    def crash(*_: object, **__: object) -> None:
        raise CrashError

    seen: list[set[str]] = []
    real: Callable[[Path, Path], Path] = Path.replace

    def watch(path: Path, target: Path) -> Path:
        seen.append({p.name for p in target.parent.iterdir() if not p.name.startswith(".")})
        return real(path, target)

    monkeypatch.setattr(Path, "replace", watch)
    for _ in range(2):  # the second time over an existing one
        write_snapshot(tmp_path / "x", SNAPSHOT)
        assert all("manifest.json" not in names for names in seen)
        assert seen[-1] == set(FILES) - {"manifest.json"}
    monkeypatch.setattr(shutil, "rmtree", crash)
    with pytest.raises(CrashError):
        remove_snapshot(tmp_path / "x")
    with pytest.raises(CheckpointError, match="never completed"):
        read_snapshot(tmp_path / "x", SNAPSHOT.run_id)


def test_removing_leaves_nothing_and_may_be_done_twice(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "x", SNAPSHOT)
    for _ in range(2):
        remove_snapshot(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_newest_comes_first_however_many_digits_it_has() -> None:
    names = ["g000-e002", "g010-e000", "g999-e999", "g1000-e000", "g999-e1000", "g002-e119", "g000-e010"]
    expected = ["g1000-e000", "g999-e1000", "g999-e999", "g010-e000", "g002-e119", "g000-e010", "g000-e002"]
    assert [path.name for path in newest_first([Path(name) for name in names])] == expected
