"""How many workers train: numbers that divide the shards, from hosts that are there; what one does beside."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig

from seal_ray.distributed import ray_internals
from seal_ray.distributed.ray_internals import Sizes
from seal_ray.distributed.workers import needs, room_for, train_to_end, trainer, worker_counts
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job, Workers
from seal_ray.runs.folder import open_store
from seal_ray.training.world import World
from tests.faults.conftest import images_of, same_as_undisturbed
from tests.ray.conftest import small_job
from tests.runs import tiny_recipe


def job(shards: int, workers: object, **placement: object) -> Job:
    recipe = tiny_recipe("normal", shards=shards)
    return Job.model_validate(
        {"name": "sized", "recipe": recipe, "placement": {"workers": workers, **placement}}
    )


def test_worker_counts_divide_the_shards_of_every_job() -> None:
    assert worker_counts([job(12, 4)]) == (4,)
    assert worker_counts([job(12, {"min": 1, "max": 12})]) == (1, 2, 3, 4, 6, 12)
    assert worker_counts([job(12, {"min": 2, "max": 6})]) == (2, 3, 4, 6)
    both = {"min": 1, "max": 2}
    assert worker_counts([job(12, both), job(2, both), job(4, both)]) == (1, 2)
    placement = job(4, {"min": 2, "max": 4}).placement
    assert placement.workers == Workers(min=2, max=4)
    assert (placement.min_workers, placement.max_workers) == (2, 4)


@pytest.mark.parametrize(("use_gpu", "backend"), [(False, "gloo"), (True, "nccl")])
def test_workers_wait_for_one_another_as_long_as_asked_for(
    tmp_path: Path, use_gpu: bool, backend: str
) -> None:
    needed = needs(job(4, 1), use_gpu)
    made = trainer(print, {}, "run", (1,), needed, tmp_path, failures=0, timeout_s=90)
    assert (made.backend_config.backend, made.backend_config.timeout_s) == (backend, 90)


@pytest.mark.parametrize(
    ("share", "host", "workers"),
    [
        (1.0, {"GPU": 2.0, "CPU": 8.0}, 2),
        (0.25, {"GPU": 2.0, "CPU": 16.0}, 8),
        (0.25, {"GPU": 2.0, "CPU": 3.0}, 3),
        (0.3, {"GPU": 2.0, "CPU": 16.0}, 6),  # not 6.67: none lies on two GPUs
        (0.6, {"GPU": 3.0, "CPU": 16.0}, 3),
        (0.1, {"GPU": 1.0, "CPU": 16.0}, 10),
        (0.25, {"CPU": 4.0}, 0),
    ],
)
def test_a_gpu_holds_as_many_workers_as_their_share_allows(
    share: float, host: dict[str, float], workers: int
) -> None:
    assert room_for(needs(job(1, 1, gpus_per_worker=share), True), host) == workers
    assert room_for(needs(job(1, 1, gpus_per_worker=share), False), host) == host["CPU"]


def test_ray_train_is_asked_for_a_share(tmp_path: Path) -> None:
    needed = needs(job(1, 1, gpus_per_worker=0.25), True)
    made = trainer(print, {}, "run", (1,), needed, tmp_path, failures=0, timeout_s=90)
    assert made.scaling_config.resources_per_worker == {"GPU": 0.25, "CPU": 1}
    assert made.scaling_config.use_gpu


@pytest.fixture
def policy() -> Sizes:
    return Sizes(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1}), (1, 2, 4))


@pytest.mark.parametrize(
    ("rooms", "workers"), [([], 0), ([1], 1), ([3], 2), ([1, 1, 1], 2), ([3, 1], 4), ([9], 4)]
)
def test_as_many_workers_as_there_is_room_for(policy: Sizes, rooms: list[int], workers: int) -> None:
    reserved = {f"host {i}": {"CPU": float(room)} for i, room in enumerate(rooms)}
    assert policy._count_possible_workers(reserved) == workers


def test_workers_are_added_when_an_epoch_was_reported_only(
    policy: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {"host": {"CPU": 2.0}})
    state = SimpleNamespace(num_workers=1, start_time=float("-inf"))

    def decide(report: object) -> Any:
        statuses = {0: SimpleNamespace(training_report=report)}
        return policy.make_decision_for_running_worker_group(state, SimpleNamespace(worker_statuses=statuses))

    assert not hasattr(decide(None), "num_workers")
    assert decide(object()).num_workers == 2


def test_hosts_that_are_gone_or_are_to_go_do_not_count(
    policy: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closed:
        ports = {"there": server.getsockname()[1], "leaves": server.getsockname()[1]}
        ports["killed"] = closed.getsockname()[1]
        closed.close()
        nodes = [
            {"NodeID": name, "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port in ports.items()
        ]
        reserved = {name: {"CPU": 1.0} for name in ports}
        asked = SimpleNamespace(get_reserved_resources=SimpleNamespace(remote=lambda *_, **__: None))
        monkeypatch.setattr(Sizes, "_autoscaling_coordinator", asked)
        monkeypatch.setattr(ray_internals.state, "get_draining_nodes", lambda: {"leaves": 0})
        monkeypatch.setattr(ray, "get", lambda *_, **__: reserved)
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        assert policy._get_reserved_resources() == {"there": {"CPU": 1.0}}


def test_a_run_that_has_to_make_room_stops_after_an_epoch_and_goes_on_later(
    digits: Path, tmp_path: Path
) -> None:
    job = small_job(digits, tmp_path / "runs", "llf", loader="torch", tracking={"wandb": "off"})
    store = open_store(tmp_path / "runs", job.recipe, images_of(job))
    asked: list[Row] = []

    def after_the_second(row: Row) -> bool:
        asked.append(row)
        return len(asked) == 2

    ended = train_to_end(job, store, World(), after_the_second)
    assert ended["status"] == "stopped"
    assert "about to be taken away; the same command goes on" in ended["reason"]
    assert store.status() == {"run_id": store.run_id, **ended}
    assert [row["global_epoch"] for row in store.rows()] == [0, 1]

    last = job.recipe.budget.epochs - 1
    ended = train_to_end(job, store, World(), lambda row: row["global_epoch"] == last)
    assert ended == {"status": "finished", "reason": ""}
    same_as_undisturbed(job, store, tmp_path / "alone")
