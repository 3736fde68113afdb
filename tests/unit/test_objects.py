"""Paths of objects, against folders of this machine; what S3 refuses; what a URI may hold."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seal_ray.errors import ConfigError, StorageError
from seal_ray.storage import paths as objects
from seal_ray.storage.files import append_durably, make_folder, remove_folder, size_of, write_durably
from seal_ray.storage.paths import AnyPath, ObjectPath, check_bucket, listed, on_this_host, storage_path
from tests.s3 import CREDENTIALS, tell

FILES = {
    "runs/a/job.yaml": b"name: a\n",
    "runs/a/metrics.jsonl": b"{}\n{}\n",
    "runs/a/checkpoints/g000-e001/manifest.json": b"{}",
    "runs/a/checkpoints/g000-e001/weights.safetensors": bytes(1000),
    "runs/a/checkpoints/g000-e000/weights.safetensors": bytes(10),
    "runs/a-b/job.yaml": b"name: a-b\n",
    "runs/a-b/empty": b"",
    "runs/job.yaml": b"not a run's\n",
    "runs/sweeps/one/ray-x1/file": b"1",
    "runs/[odd] name+%20ü/job.yaml": "ü".encode(),
}
PLACES = [
    "",
    "runs",
    "runs/a",
    "runs/a/job.yaml",
    "runs/a/checkpoints",
    "runs/a/checkpoints/g000",
    "runs/a-b/empty",
    "runs/nothing",
    "runs/[odd] name+%20ü",
]
PATTERNS = [
    "*/job.yaml",
    "*",
    "a/*",
    "a*/job.yaml",
    "a/checkpoints/*/manifest.json",
    "sweeps/*/ray-*",
    "none/*",
    "a/ray",
]
QUESTIONS: dict[str, Callable[[AnyPath], object]] = {
    "exists": lambda path: path.exists(),
    "is_file": lambda path: path.is_file(),
    "is_dir": lambda path: path.is_dir(),
    "stem": lambda path: path.stem,
    "suffix": lambda path: path.suffix,
    "children": lambda path: sorted(one.name for one in path.iterdir()) if path.is_dir() else None,
    "size": lambda path: path.stat().st_size if path.is_file() else None,
    "size below": size_of,
    "bytes": lambda path: path.read_bytes() if path.is_file() else None,
    "text": lambda path: path.read_text() if path.is_file() else None,
}


@pytest.fixture
def pair(bucket: ObjectPath, tmp_path: Path) -> Iterator[tuple[Path, ObjectPath]]:
    """The same files in a folder of this machine and in a bucket."""
    here, there = tmp_path / "pair", bucket / "pair"
    for name, data in FILES.items():
        write_durably(here / name, data)
        write_durably(there / name, data)
    yield here, there
    there.remove()


def below(base: AnyPath, path: AnyPath) -> str:
    return str(path).removeprefix(str(base))


def same(here: Path, there: ObjectPath) -> None:
    """Assert that both answer all questions alike."""
    for place in PLACES:
        for question, answer in QUESTIONS.items():
            assert answer(here / place) == answer(there / place), f"{question} {place!r}"
    for pattern in PATTERNS:
        found = [[below(base, one) for one in listed(base / "runs", pattern)] for base in (here, there)]
        assert found[0] == found[1], pattern


def test_objects_answer_as_files_do(pair: tuple[Path, ObjectPath]) -> None:
    here, there = pair
    same(here, there)
    child, other = here / "runs" / "a" / "job.yaml", there / "runs" / "a" / "job.yaml"
    assert below(here, child.parent.parent) == below(there, other.parent.parent)
    assert child.name == other.name
    assert (there / "runs/a") / "job.yaml" == other
    assert storage_path(str(other)) == other
    assert pickle.loads(pickle.dumps(other)) == other
    assert hash(storage_path(str(other))) == hash(other)


def test_objects_change_as_files_do(pair: tuple[Path, ObjectPath]) -> None:
    here, there = pair
    for base in (here, there):
        write_durably(base / "runs/a/job.yaml", b"name: other\n")
        append_durably(base / "runs/a/metrics.jsonl", b"{}\n")
        append_durably(base / "runs/a/warnings.txt", b"one\n")
        (base / "runs/a-b/empty").unlink()
        (base / "runs/a/checkpoints/g000-e001/manifest.json").unlink()
        remove_folder(base / "runs/a/checkpoints/g000-e000")
        remove_folder(base / "runs/sweeps")
        remove_folder(base / "runs/nothing")
        make_folder(base / "runs")
        (base / "runs/nothing").unlink(missing_ok=True)
    same(here, there)
    for base in (here, there):
        for change in (lambda path: path.unlink(), lambda path: path.read_bytes(), lambda path: path.stat()):
            with pytest.raises(FileNotFoundError) as missing:
                change(base / "runs/nothing")
            assert missing.value.strerror == os.strerror(2)


def test_a_large_object_comes_back_in_pieces(bucket: ObjectPath) -> None:
    data = os.urandom(12 << 20)  # more than is put in one request
    path = bucket / "large"
    path.write_bytes(data)
    assert path.read_bytes() == data
    pieces = list(path.chunks(5 << 20))
    assert [len(piece) for piece in pieces] == [5 << 20, 5 << 20, 2 << 20]
    assert b"".join(pieces) == data


def test_what_only_works_with_files_has_a_folder_of_this_host(bucket: ObjectPath, tmp_path: Path) -> None:
    assert on_this_host(tmp_path) == tmp_path
    first, second = on_this_host(bucket / "a"), on_this_host(bucket / "b")
    assert first != second
    assert first.is_relative_to(os.environ["SEAL_RAY_CACHE"])


def test_a_bucket_is_a_folder_too(bucket: ObjectPath) -> None:
    (bucket / "here").write_bytes(b"")
    assert bucket.is_dir()
    assert bucket.parent == bucket
    assert bucket.name == bucket.bucket
    assert bucket / "here" in list(bucket.iterdir())
    check_bucket(bucket / "anything")


@pytest.mark.parametrize("uri", ["runs", "/runs", "./s3:/bucket", "s3:bucket"])
def test_what_has_no_scheme_is_a_path(uri: str) -> None:
    assert storage_path(uri) == Path(uri)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gs://bucket/runs", "nothing but s3://"),
        ("file:///runs", "nothing but s3://"),
        ("s3://", "cannot be a bucket"),
        ("s3:///runs", "cannot be a bucket"),
        ("s3://Upper_Case/runs", "cannot be a bucket"),
        ("s3://KEY:hidden-secret@bucket/runs", "AWS_ACCESS_KEY_ID"),
        ("s3://KEY:hidden/secret@bucket/runs", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/runs?access_key=KEY&secret_key=hidden-secret", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/runs?endpoint_override=localhost:9000", "AWS_ENDPOINT_URL"),
    ],
)
def test_a_uri_holds_bucket_and_path_alone(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        storage_path(uri)
    assert "hidden-secret" not in str(refused.value)


def test_a_bucket_that_is_not_there(bucket: ObjectPath) -> None:
    missing = ObjectPath("no-such-bucket") / "runs"
    with pytest.raises(ConfigError, match="no bucket no-such-bucket; create it"):
        check_bucket(missing)
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        missing.write_bytes(b"")


def test_keys_that_s3_refuses(bucket: ObjectPath, s3_server: str) -> None:
    tell(s3_server, "/moto-api/reset-auth", "POST", b"0")
    try:
        with pytest.raises(StorageError, match=f"{bucket}.*keys of this host") as refused:
            (bucket / "x").write_bytes(b"")
        with pytest.raises(StorageError):
            check_bucket(bucket)
    finally:
        tell(s3_server, "/moto-api/reset-auth", "POST", b"inf")
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)


def test_an_endpoint_where_nobody_answers(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed}")
    with pytest.raises(StorageError, match=r"does not answer.*AWS_ENDPOINT_URL"):
        check_bucket(bucket)


def test_an_endpoint_that_stays_silent(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SILENCE", 1.0)
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match="does not answer"):
            check_bucket(bucket)


def test_an_endpoint_that_is_none(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL: is no URL"):
        check_bucket(bucket)
