"""How many workers train: numbers that divide the shards, from hosts that are there and stay."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig

import seal_ray.distributed.elastic
from seal_ray.distributed.elastic import Sizes
from seal_ray.distributed.scaling import team_sizes
from seal_ray.recipe import Job, Workers
from tests.runs import tiny_recipe


def job(shards: int, workers: object) -> Job:
    recipe = tiny_recipe("normal", shards=shards)
    return Job.model_validate({"name": "sized", "recipe": recipe, "placement": {"workers": workers}})


def test_team_sizes_divide_the_shards_of_every_job() -> None:
    assert team_sizes([job(12, 4)]) == (4,)
    assert team_sizes([job(12, {"min": 1, "max": 12})]) == (1, 2, 3, 4, 6, 12)
    assert team_sizes([job(12, {"min": 2, "max": 6})]) == (2, 3, 4, 6)
    both = {"min": 1, "max": 2}
    assert team_sizes([job(12, both), job(2, both), job(4, both)]) == (1, 2)
    placement = job(4, {"min": 2, "max": 4}).placement
    assert placement.workers == Workers(min=2, max=4)
    assert (placement.min_workers, placement.max_workers) == (2, 4)


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
            {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port in ports.items()
        ]
        reserved = {name: {"CPU": 1.0} for name in ports}
        asked = SimpleNamespace(get_reserved_resources=SimpleNamespace(remote=lambda *_, **__: None))
        monkeypatch.setattr(Sizes, "_autoscaling_coordinator", asked)
        monkeypatch.setattr(seal_ray.distributed.elastic.state, "get_draining_nodes", lambda: {"leaves": 0})
        monkeypatch.setattr(ray, "get", lambda *_, **__: reserved)
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        assert policy._get_reserved_resources() == {"there": {"CPU": 1.0}}
