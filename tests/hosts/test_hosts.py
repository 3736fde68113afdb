"""Runs and sweeps on a cluster of several hosts, which are killed, preempted and cut off while they train."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source
from seal_ray.distributed.ray_internals import RESIZE_INTERVAL
from seal_ray.jobs import connect, follow, logs, submit, training_spec
from seal_ray.recipe import dump_job, load_job
from seal_ray.runs.folder import open_store
from seal_ray.sweeps.results import write_results
from seal_ray.sweeps.tune import run_sweep
from tests.faults.conftest import images_of, make_job, same_as_undisturbed
from tests.hosts.hosts import Host, network, refusal, until
from tests.sweeps import leaderboard_of, metrics_of, screen, small_sweep

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(400)]
SEAL = {"name": "seal", "ascent_rate": 0.2, "ascent_share": 0.5}


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Host]]:
    """Three hosts: the head, of one CPU, and two that join its cluster when a test starts them."""
    if why := refusal():
        pytest.skip(why)
    with network(3) as hosts:
        hosts[0].start()
        yield hosts


class Laptop:
    """Who submits a run to the cluster, as often as a test likes."""

    def __init__(self, head: Host, storage: Path, data: Path) -> None:
        self.head, self.storage, self.data = head, storage, data

    def plan(self, epochs: int, **placement: Any) -> None:
        """The run: generations of eight epochs, of which from the second on the first four ascend."""
        job = make_job(self.data, self.storage, SEAL, **placement)
        Path("run.yaml").write_text(dump_job(job))
        changes = {"budget": f"{{epochs: {epochs}, generation_length: 8}}", "model.width": 4}
        overrides = [f"recipe.{field}={value}" for field, value in changes.items()]
        self.spec = training_spec("train", Path("run.yaml"), overrides)
        self.job = load_job("run.yaml", overrides)
        self.store = open_store(self.storage, self.job.recipe, images_of(self.job))

    def client(self) -> Any:
        return connect(f"http://{self.head.address}:8265")

    def submit(self) -> str:
        """Submit the run; returns the job's id."""
        return submit(self.client(), self.spec, lambda _: None)

    def wait_for(self, epochs: int, workers: int | None = None) -> int:
        """Until so many epochs are committed, the last one by so many workers; returns how many are."""

        def enough() -> bool:
            rows = self.store.rows()
            return len(rows) >= epochs and workers in (None, rows[-1]["workers"])

        try:
            until(enough)
        except AssertionError:
            pytest.fail(logs(self.client(), self.spec.name))
        return len(self.store.rows())

    def end(self) -> str:
        """What the job has printed, once it has ended."""
        follow(self.client(), self.spec.name, lambda _: None)
        return logs(self.client(), self.spec.name)


@pytest.fixture
def laptop(cluster: list[Host], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    """A working directory of its own, with the token; storage and data are on all hosts."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster[0].token)
    return Laptop(cluster[0], tmp_path / "shared" / "runs", digits)


def test_storage_and_data_that_a_host_does_not_see_are_refused(
    cluster: list[Host], laptop: Laptop, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    laptop.data = shared / "data"
    prepare(open_source("digits", source=None), laptop.data, classes=4, per_class=24)
    laptop.plan(8)
    cluster[2].start("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{shared}" && exec "$@"', "sh")
    try:
        laptop.submit()
        said = laptop.end()
    finally:
        cluster[2].kill()
    at = f"{cluster[2].address}: "
    assert (
        f"{at}placement.storage: {laptop.storage} is not the folder that the other hosts see; mount" in said
    )
    assert f"{at}recipe.data.path: {laptop.data} is not there; copy it there, or mount" in said
    assert not laptop.store.folder.exists()


def test_a_run_outlives_a_host_a_preemption_and_the_head(
    cluster: list[Host], laptop: Laptop, tmp_path: Path
) -> None:
    head, other = cluster[:2]
    other.start()
    laptop.plan(32)
    assert laptop.submit().endswith("-a1")
    laptop.wait_for(9)
    assert [len(host.workers()) for host in (head, other)] == [1, 1]
    other.kill()
    rows = laptop.store.rows()
    assert rows[-1]["phase"] == "ascend"
    other.start()
    laptop.wait_for(len(rows) + 1)  # the same job

    other.preempt()
    said = laptop.end()
    assert f"{laptop.store.run_id}: stopped: a host that trains it is about to be taken away" in said
    stopped = laptop.store.latest()
    assert stopped is not None
    epochs = len(stopped.rows)
    assert len(laptop.store.rows()) == epochs < 32
    other.kill()

    other.start()
    assert laptop.submit().endswith("-a2")
    laptop.wait_for(epochs + 1)
    head.kill()
    epochs = len(laptop.store.rows())
    other.kill()  # without a head it would end by itself, after a minute
    head.start()
    other.start()
    assert laptop.submit().endswith("-a1")  # what the head knew is lost
    said = laptop.end()
    assert f"going on after epoch {epochs}" in said
    assert {row["workers"] for row in laptop.store.rows()} == {2}
    same_as_undisturbed(laptop.job, laptop.store, tmp_path / "alone")


def test_elastic_workers_come_move_on_and_are_cut_off(
    cluster: list[Host], laptop: Laptop, tmp_path: Path
) -> None:
    head, *others = cluster
    others[0].kill()
    laptop.plan(32, workers={"min": 1, "max": 2})
    laptop.submit()
    laptop.wait_for(1, workers=1)
    [worker] = head.workers()
    worker.suspend()
    with ThreadPoolExecutor() as pool:
        list(pool.map(Host.start, others))
    time.sleep(RESIZE_INTERVAL)
    worker.resume()

    laptop.wait_for(2, workers=2)
    leaving = next(host for host in others if host.workers())
    leaving.preempt()
    until(lambda: not leaving.workers())
    [staying] = [host for host in others if host != leaving]
    together = laptop.wait_for(len(laptop.store.rows()) + 1, workers=2)
    assert [len(host.workers()) for host in (head, staying)] == [1, 1]

    staying.link("down")
    try:
        laptop.wait_for(together + 2, workers=1)
    finally:
        staying.link("up")
    said = laptop.end()
    assert "32 epochs on 1 to 2 workers" in said
    assert "warning: a host was about to be taken away: going on on others" in said
    counts = [row["workers"] for row in laptop.store.rows()]
    alone = counts.index(2)
    assert counts == [1] * alone + [2] * counts.count(2) + [1] * (32 - alone - counts.count(2))
    same_as_undisturbed(laptop.job, laptop.store, tmp_path / "alone")


def test_a_sweep_gives_the_leaderboard_that_it_gives_here(
    cluster: list[Host], laptop: Laptop, tmp_path: Path
) -> None:
    for host in cluster[1:]:
        host.kill()
    cluster[1].start()
    runs = small_sweep(laptop.data, laptop.storage, Path("sweep.yaml"))
    laptop.spec = training_spec("sweep", Path("sweep.yaml"))
    laptop.submit()
    worked: set[int] = set()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(laptop.end)
        while not ended.done():
            worked.update(host.number for host in cluster if host.workers())
            time.sleep(1)
    said = ended.result()
    assert worked == {0, 1}, said
    here = small_sweep(laptop.data, tmp_path / "here", Path("here.yaml"))
    run_sweep(here, screen()[0], share=True, address=None, concurrent=None, in_process=True)
    write_results(here)
    assert metrics_of(runs) == metrics_of(here), said
    assert leaderboard_of(runs) == leaderboard_of(here)
