"""Paths of objects, against folders of this machine; what S3 refuses; what a URI may hold."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from seal_ray.errors import ConfigError, StorageError
from seal_ray.storage import paths as objects
from seal_ray.storage.files import append_durably, make_folder, remove_folder, size_of, write_durably
from seal_ray.storage.paths import (
    AnyPath,
    ObjectPath,
    Version,
    check_bucket,
    listed,
    on_this_host,
    storage_path,
)
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


def test_lines_that_are_appended_at_once_are_all_there(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, put, both = bucket / "lines", ObjectPath.put_if, threading.Barrier(2)
    first = iter(range(2))

    def put_if(path: ObjectPath, data: bytes, version: Version | None) -> bool:
        if next(first, None) is not None:
            both.wait(60)  # each has read what was there before the other's line
        answer = put(path, data, version)
        return answer and b"unanswered" not in data

    monkeypatch.setattr(ObjectPath, "put_if", put_if)
    lines = [b"one\n", b"another\n"]
    threads = [threading.Thread(target=append_durably, args=(path, line)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    append_durably(path, b"unanswered\n")
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted([*lines, b"unanswered\n"])


def test_a_large_object_comes_back_in_pieces(bucket: ObjectPath) -> None:
    data = os.urandom(12 << 20)  # more than is put in one request
    path = bucket / "large"
    path.write_bytes(data)
    assert path.read_bytes() == data
    pieces = list(path.chunks(5 << 20))
    assert len(pieces) == 3
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
        ("file:///runs", "none of s3://, gs://, az://"),
        ("s3://", "cannot be a bucket"),
        ("s3:///runs", "cannot be a bucket"),
        ("s3://Upper_Case/runs", "cannot be a bucket"),
        ("s3://KEY:hidden-secret@bucket/runs", "AWS_ACCESS_KEY_ID"),
        ("s3://KEY:hidden/secret@bucket/runs", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/runs?access_key=KEY&secret_key=hidden-secret", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/runs?endpoint_override=localhost:9000", "AWS_ENDPOINT_URL"),
        ("gs://bucket/runs?key=hidden-secret", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://container/runs?sig=hidden-secret", "AZURE_STORAGE_ACCOUNT_KEY"),
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
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket"):
        missing.write_bytes(b"")


def test_keys_that_s3_refuses(bucket: ObjectPath, s3_server: str) -> None:
    tell(s3_server, "/moto-api/reset-auth", "POST", b"0")
    try:
        with pytest.raises(StorageError, match=f"{bucket}.*InvalidAccessKeyId.*AWS_ACCESS_KEY_ID") as refused:
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


@pytest.fixture
def wire() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that agrees to everything: its address, and what it was asked, by header and as "asked"."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked.append({**headers, "asked": f"{self.command} {unquote(self.path)}"})
            self.send_response(200)
            known = {"ETag": '"v7"', "x-goog-generation": "7", "Content-Length": "0"}
            for name, value in {**known, "Last-Modified": "Sat, 01 Aug 2026 09:00:00 GMT"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_PUT = do_HEAD = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.fixture
def services(
    wire: tuple[str, list[dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, str]]:
    """The environment that leads to the server for each scheme, as a user sets it; what it was asked."""
    address, asked = wire
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in [one for one in os.environ if one.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(variable)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[lab]\naws_access_key_id = FROM-A-FILE\naws_secret_access_key = hidden-secret\n"
    )
    (tmp_path / ".aws" / "config").write_text("[profile lab]\nregion = eu-west-3\n")
    account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": ""}
    (tmp_path / "google.json").write_text(json.dumps({**account, "private_key_id": ""}))
    for variable, value in {
        "AWS_PROFILE": "lab",
        "AWS_ENDPOINT_URL": address,
        "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "google.json"),
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "aGlkZGVuLXNlY3JldA==",
        "AZURE_STORAGE_ENDPOINT": address,
    }.items():
        monkeypatch.setenv(variable, value)
    return asked


@pytest.mark.parametrize(
    ("scheme", "if_absent", "if_unchanged", "signed"),
    [
        ("s3", ("if-none-match", "*"), ("if-match", '"v7"'), "FROM-A-FILE/.*/eu-west-3/s3/"),
        ("gs", ("x-goog-if-generation-match", "0"), ("x-goog-if-generation-match", "7"), "Bearer"),
        ("az", ("if-none-match", "*"), ("if-match", '"v7"'), "SharedKey account:"),
    ],
)
def test_each_service_is_asked_in_its_own_words(
    scheme: str,
    if_absent: tuple[str, str],
    if_unchanged: tuple[str, str],
    signed: str,
    services: list[dict[str, str]],
) -> None:
    path = storage_path(f"{scheme}://wire/runs/lease.json")
    assert isinstance(path, ObjectPath)
    assert path.put_if(b"x", None)
    _, version = path.read_version()
    assert path.put_if(b"x", version)
    created, read, replaced = services
    assert created["asked"] == replaced["asked"] == "PUT /wire/runs/lease.json"
    assert read["asked"] == "GET /wire/runs/lease.json"
    assert if_absent in created.items()
    assert if_unchanged in replaced.items()
    assert re.search(signed, created["authorization"])
    assert str(path.parent) == f"{scheme}://wire/runs"
    assert on_this_host(path) != on_this_host(ObjectPath("wire", "runs/lease.json", "other"))


def test_a_profile_that_is_not_there(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(StorageError, match=r"profile \(none\) could not be found"):
        check_bucket(ObjectPath("not-asked-before"))
