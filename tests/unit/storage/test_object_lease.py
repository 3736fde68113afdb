"""Of all who share an object store one owns a run, and one at a time decides what is trained next."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from seal_ray.errors import CheckpointError, ClusterError
from seal_ray.runs.folder import ENDED, Store
from seal_ray.runs.sharing import epochs_to_train
from seal_ray.storage import lease
from seal_ray.storage import paths as objects
from seal_ray.storage.files import write_durably
from seal_ray.storage.lease import Pulse, alone, hold_lease, lease_holder, owns, take_lead
from seal_ray.storage.paths import ObjectPath, Version
from seal_ray.sweeps.queue import Claim, Queue
from seal_ray.sweeps.tune import train_sweep
from tests.s3 import Proxy, proxy_to
from tests.sweeps import METHODS, metrics_of, screen, small_sweep, trained_where

MANY = 8
FOREIGN = {"host": "elsewhere", "boot": "b", "pid": 1, "started": 0.0, "token": "theirs", "beat": 0.0}
LEFT: dict[str, dict[str, Any] | None] = {
    "new": None,
    "dead": {"host": socket.gethostname(), "boot": lease._boot(), "pid": 2**22 + 1},
    "stale": {},
    "released": {"host": None},
}


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """Where leases lie: on S3, and in another of obstore's stores."""
    if request.param == "memory":
        store = MemoryStore()
        monkeypatch.setattr(objects, "_store", lambda _: store)
    return bucket / request.node.name


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner is dead after a moment without a heartbeat."""
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    monkeypatch.setattr(lease, "TIME_TO_LIVE", 0.2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def leave(folder: ObjectPath, changes: dict[str, Any]) -> None:
    """A lease that another launch left."""
    fields = {name: value for name, value in {**FOREIGN, **changes}.items() if value is not None}
    write_durably(folder / "lease.json", json.dumps(fields).encode())


def together(monkeypatch: pytest.MonkeyPatch, needle: str, count: int) -> None:
    """Let the first `count` puts of something begin when all of them are about to."""
    put, barrier, first = ObjectPath.put_if, threading.Barrier(count), iter(range(count))

    def put_if(path: ObjectPath, data: bytes, version: Version | None) -> bool:
        if needle in str(path) and next(first, None) is not None:
            barrier.wait(60)
        return put(path, data, version)

    monkeypatch.setattr(ObjectPath, "put_if", put_if)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("left", LEFT)
def test_of_many_that_found_a_run_free_one_gets_it(
    left: str, place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        folder = place / f"run-{number}"
        if (changes := LEFT[left]) is not None:
            leave(folder, changes)
        with monkeypatch.context() as patch:
            together(patch, folder.name, MANY)
            got, refused = list[str](), list[str]()
            end = threading.Event()

            def ask() -> None:
                try:
                    with hold_lease(folder) as token:  # noqa: B023
                        got.append(token)  # noqa: B023
                        end.wait(60)  # noqa: B023
                except ClusterError as error:
                    refused.append(str(error))  # noqa: B023

            threads = [threading.Thread(target=ask) for _ in range(MANY)]
            for thread in threads:
                thread.start()
            until(lambda: len(got) + len(refused) == MANY)  # noqa: B023
            assert len(got) == 1
            assert owns(folder, got[0])
            end.set()
            for thread in threads:
                thread.join()
        assert lease_holder(folder) is None
        with hold_lease(folder) as again:
            assert owns(folder, again)


RACER = """
import contextlib, socket, sys
from seal_ray.errors import ClusterError
from seal_ray.storage import lease
from seal_ray.storage.paths import storage_path

socket.gethostname = lambda: sys.argv[2]
lease.HEARTBEAT, lease.TIME_TO_LIVE = 0.05, 60
storage, got = storage_path(sys.argv[1]), []
print("ready", flush=True)
sys.stdin.readline()
with contextlib.ExitStack() as held:
    for number in range(10):
        with contextlib.suppress(ClusterError):
            held.enter_context(lease.hold_lease(storage / f"run-{number}"))
            got.append(number)
    print(*got, flush=True)
    sys.stdin.readline()
"""


def racer(storage: ObjectPath, host: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RACER, str(storage), host]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_hosts_that_race_for_many_runs_get_each_once(bucket: ObjectPath) -> None:
    storage = bucket / "raced"
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(racer(storage, f"host-{number}")) for number in range(3)]
        assert [said(host) for host in hosts] == ["ready"] * 3
        for host in hosts:
            go_on(host)
        got = [int(number) for host in hosts for number in said(host).split()]
        assert sorted(got) == list(range(10))
        for host in hosts:
            go_on(host)
    assert [lease_holder(storage / f"run-{number}") for number in range(10)] == [None] * 10


@pytest.mark.usefixtures("quick")
def test_an_owner_that_was_replaced_renews_nothing_and_commits_nothing(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, about_to, replaced = ObjectPath.put_if, threading.Event(), threading.Event()
    ours, tried = list[str](), list[bool]()

    def put_if(path: ObjectPath, data: bytes, version: Version | None) -> bool:
        if not tried and any(token.encode() in data for token in ours):
            about_to.set()  # it has found the lease its own
            replaced.wait(60)
            tried.append(put(path, data, version))
            return tried[0]
        return put(path, data, version)

    monkeypatch.setattr(ObjectPath, "put_if", put_if)
    with hold_lease(place) as old:
        ours.append(old)
        store = Store(place, place.name, owned=take_lead(place, old))
        store.set_status("running")
        assert about_to.wait(60)
        leave(place, {})  # as a host has it that took over and has been silent since
        with hold_lease(place) as new:
            leads = take_lead(place, new)
            replaced.set()
            until(lambda: bool(tried))
            assert tried == [False]
            assert owns(place, new)
            with pytest.raises(CheckpointError, match="another launch has taken this run over"):
                store.set_status("finished")
            assert not take_lead(place, old)()
            assert leads()
    assert store.status()["status"] == "running"
    assert lease_holder(place) is None


def test_of_two_that_take_the_lead_the_later_one_has_it(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, later = ObjectPath.put_if, list[Callable[[], bool]]()

    def put_if(path: ObjectPath, data: bytes, version: Version | None) -> bool:
        if path.name == "leader" and not later:
            later.append(lambda: False)
            later[0] = take_lead(place, token)  # the first one is as slow as that
        return put(path, data, version)

    with hold_lease(place) as token:
        monkeypatch.setattr(ObjectPath, "put_if", put_if)
        earlier = take_lead(place, token)
        assert later[0]()
        assert not earlier()


def test_a_lease_whose_own_first_copy_is_in_the_way_is_held(
    place: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when an answer is lost and the client puts it once more."""
    put = ObjectPath.put_if
    monkeypatch.setattr(ObjectPath, "put_if", lambda *given: put(*given) and put(*given))
    with hold_lease(place) as token:
        assert owns(place, token)


@pytest.fixture
def proxy(s3_server: str, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The connection to S3, to be broken; it is given up soon."""
    monkeypatch.setattr(objects, "SILENCE", 1.0)
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    with proxy_to(s3_server) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
        yield made


@pytest.mark.usefixtures("quick")
def test_a_lease_that_was_put_without_an_answer_is_given_up_later(bucket: ObjectPath, proxy: Proxy) -> None:
    folder = bucket / "unanswered"
    proxy.break_at("answer", "lease.json")
    with pytest.raises(CheckpointError, match="does not answer"), hold_lease(folder):
        pytest.fail("held")
    assert proxy.struck.is_set()
    proxy.heal()
    until(lambda: "released" in (folder / "lease.json").read_text())
    assert not Pulse().alive(folder)


@pytest.mark.usefixtures("quick")
def test_a_lease_that_could_not_be_given_up_is_given_up_later(bucket: ObjectPath, proxy: Proxy) -> None:
    folder = bucket / "kept"
    with hold_lease(folder) as token:
        proxy.break_at("drop", "lease.json")
        until(proxy.struck.is_set)
    proxy.heal()
    until(lambda: not owns(folder, token))


KILLED = """
import os, signal, sys
from seal_ray.storage.lease import alone
from seal_ray.storage.paths import storage_path

with alone(storage_path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_is_killed_while_it_decides_holds_nobody_up(bucket: ObjectPath) -> None:
    storage = bucket / "deciding"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(storage)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (storage / "lease.json").exists()
    with alone(storage) as still:
        assert still()
        with pytest.raises(ClusterError), alone(storage):
            pytest.fail("two decide")


@pytest.fixture
def queues(digits: Path, bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Queue]:
    """Two sweeps of other runs that begin alike, on one storage."""
    monkeypatch.setattr("seal_ray.sweeps.queue.pause", lambda _: 0.0)
    axes = [{"method": {"llf": "llf"}}, {"method": {"normal": "normal"}}]
    sweeps = [
        small_sweep(digits, bucket / tmp_path.name, tmp_path / f"{number}.yaml", axes=one)
        for number, one in enumerate(axes)
    ]
    return [Queue(runs.planned, share=True, ended=ENDED, note=lambda _: None) for runs in sweeps]


def test_of_two_sweeps_that_would_begin_alike_one_begins(
    queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found a run to start before either asks to decide alone."""
    together(monkeypatch, "lease.json", 2)
    claims: list[Claim | None] = []
    threads = [threading.Thread(target=lambda one=one: claims.append(one.claim())) for one in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 2
    assert claims.count(None) == 1
    assert [queue.claim() for queue in queues] == [None, None]
    for queue in queues:
        queue.close()


def test_a_sweep_whose_decision_took_too_long_takes_it_back(
    queues: list[Queue], bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = queues
    record = Store.record_generations

    def late(store: Store, *given: Any) -> None:
        """Before it is recorded, others think that the one who decides is dead."""
        monkeypatch.setattr(Store, "record_generations", record)
        leave(store.folder.parent, {})
        record(store, *given)

    monkeypatch.setattr(Store, "record_generations", late)
    assert slow.claim() is None
    assert slow.left
    (bucket / tmp_path.name / "lease.json").unlink()
    claim = other.claim()
    assert claim is not None
    assert slow.claim() is None
    other.close()
    assert slow.claim() is not None
    slow.close()


SWEEP = """
import socket, sys
host, file = sys.argv[1:]
socket.gethostname = lambda: host
sys.argv = ["seal-ray", "sweep", "--in-process", file]
from seal_ray.cli import main
main()
"""


@pytest.mark.faults
def test_two_sweeps_on_two_hosts_train_each_generation_once(
    digits: Path, bucket: ObjectPath, tmp_path: Path
) -> None:
    names = list(METHODS)
    files = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    sweeps = [
        small_sweep(
            digits, bucket / "hosts", file, name=file.stem, axes={"method": {n: METHODS[n] for n in some}}
        )
        for file, some in zip(files, (names[:2], names[1:]), strict=True)
    ]
    hosts = []
    for file in files:
        command = [sys.executable, "-c", SWEEP, file.stem, str(file)]
        cache = {**os.environ, "SEAL_RAY_CACHE": str(tmp_path / f"cache-{file.stem}")}
        hosts.append(subprocess.Popen(command, env=cache, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    printed = [host.communicate(timeout=250)[0].decode() for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(printed)
    works = {one.run_id: one.run_keys for runs in sweeps for one in runs.planned}
    made = {run: makers for runs in sweeps for run, makers in trained_where(runs).items()}
    assert sum(makers.count(run) for run, makers in made.items()) == sum(
        epochs_to_train(list(works.values()))
    )

    whole = small_sweep(digits, tmp_path / "alone")
    train_sweep(whole, screen()[0], share=False, concurrent=None, in_process=True)
    assert {**metrics_of(sweeps[0]), **metrics_of(sweeps[1])} == metrics_of(whole)
