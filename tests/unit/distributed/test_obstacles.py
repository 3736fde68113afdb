"""What keeps Ray from starting is said before it is tried, with what to set."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from seal_ray.distributed.launch import ray_session
from seal_ray.distributed.obstacles import obstacles, shared_memory
from seal_ray.errors import ClusterError

FITS = 107 - len(f"/ray/session_2026-11-28_17-26-39_195584_{os.getpid()}/sockets/plasma_store")
"""Bytes that Ray 2.60 leaves for the name of the temporary folder, by the path that it once complained of."""


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of this machine at which nobody answers."""
    with socket.socket() as held:  # bound, so that nobody else takes it, and not listening
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def short_folder(bytes_: int) -> str:
    return "/tmp/" + "x" * (bytes_ - len("/tmp/"))


def home_of(folder: Path, kind: str) -> dict[str, str]:
    (folder / "file").write_text("")
    (folder / "token" / ".ray").mkdir(parents=True)
    (folder / "token" / ".ray" / "auth_token").write_text("sesame")
    return {"HOME": {"nowhere": "/proc/none", "file": str(folder / "file")}.get(kind, str(folder / kind))}


@pytest.mark.parametrize(
    ("kind", "more", "right"),
    [
        ("nowhere", {}, False),
        ("file", {}, False),
        ("nowhere", {"RAY_AUTH_MODE": "disabled"}, True),
        ("nowhere", {"RAY_AUTH_TOKEN": "sesame"}, True),
        ("new", {}, True),
        ("token", {}, True),
    ],
)
def test_a_home_without_room_for_the_token_is_named(
    kind: str, more: dict[str, str], right: bool, tmp_path: Path
) -> None:
    environment = home_of(tmp_path, kind)
    found = obstacles(None, {**environment, **more})
    assert (found == []) == right
    if not right:
        assert found[0].startswith(f"HOME: Ray keeps its token in {environment['HOME']}/.ray")
        assert "set HOME to a folder of yours, or RAY_AUTH_TOKEN" in found[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("excess", [0, 1, 30])
def test_a_temporary_folder_whose_sockets_have_too_long_names_is_named(name: str, excess: int) -> None:
    folder = short_folder(FITS + excess)
    found = obstacles(None, {"RAY_AUTH_TOKEN": "sesame", "TMPDIR": "/tmp", name: folder})
    assert [one.partition(": the names")[0] for one in found] == (
        [f"{name}: {folder} is {excess} bytes too long"] if excess else []
    )


def test_a_temporary_folder_that_cannot_be_written_to_is_named() -> None:
    [said] = obstacles(None, {"RAY_AUTH_TOKEN": "sesame", "TMPDIR": "/proc"})
    assert said.startswith("TMPDIR: /proc cannot be written to")
    assert said.endswith("set RAY_TMPDIR to a folder that can")


def heads(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Of the processes of this machine, where other tests may have heads, those of these names alone."""
    found = [SimpleNamespace(info={"name": name}) for name in names]
    monkeypatch.setattr("seal_ray.distributed.obstacles.psutil.process_iter", lambda _: found)


def test_an_address_where_nobody_answers_is_named_after_who_set_it(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = f"127.0.0.1:{free_port}"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(silent)
    heads(monkeypatch, "python", "gcs_server")
    assert obstacles("auto", {"RAY_TMPDIR": str(tmp_path)}) == []  # Ray prefers the head that runs
    heads(monkeypatch, "python")
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers = f"127.0.0.1:{server.getsockname()[1]}"
        for address, environment in [
            (answers, {}),
            ("auto", {"RAY_ADDRESS": answers}),
            (silent, {"RAY_ADDRESS": answers}),
        ]:
            assert obstacles(address, environment) == []
    said = [
        *obstacles(silent, {}),
        *obstacles("auto", {"RAY_ADDRESS": silent}),
        *obstacles("auto", {"RAY_TMPDIR": str(tmp_path)}),
    ]
    files = ["--address", "RAY_ADDRESS", str(tmp_path / "ray" / "ray_current_cluster")]
    assert [one.partition(f": no Ray answers at {silent} (Connection refused)")[0] for one in said] == files
    assert "unset RAY_ADDRESS, or set it to the HOST:PORT" in said[1]
    [said_] = obstacles("auto", {"RAY_ADDRESS": "http://head:8265"})
    assert "http://head:8265 is a dashboard, for `seal-ray submit`" in said_


@pytest.mark.parametrize(
    ("address", "environment", "said"),
    [
        (None, {"HOME": "/proc/none"}, "HOME: Ray keeps its token"),
        (None, {"TMPDIR": short_folder(90)}, "TMPDIR: /tmp/xxx"),
        ("auto", {"RAY_ADDRESS": "127.0.0.1:1"}, "RAY_ADDRESS: no Ray answers at 127.0.0.1:1"),
    ],
)
def test_a_session_says_so_before_it_tries(
    address: str | None, environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=said), ray_session(address, lambda _: None):
        pass


def test_shared_memory_without_room_is_named() -> None:
    assert shared_memory()[1] == ""
    free, problem = shared_memory(Path("/proc"))  # a file system without room
    assert free == 0
    assert problem.startswith("/proc has 0 MiB left")
