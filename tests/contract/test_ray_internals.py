"""The private names of Ray that we use are there, take what they took, and are asked as before."""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import ray

ROOT = Path(__file__).parents[2]
ADAPTER = Path("seal_ray/distributed/ray_internals.py")
SAID = f"Ray {ray.__version__} is not the one of {ADAPTER}: change that, or pin the version before"
POLICY = "ray.train.v2._internal.execution.scaling_policy:ElasticScalingPolicy"
TRAINER = "ray.train.torch:TorchTrainer"


def held(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"{name} is not there ({error}). {SAID}") from None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (f"{POLICY}.make_decision_for_non_running_worker_group", "self"),
        (
            f"{POLICY}.make_decision_for_running_worker_group",
            "self worker_group_state worker_group_status",
        ),
        (f"{POLICY}._count_possible_workers", "self reserved_resources"),
        (f"{POLICY}._get_reserved_resources", "self"),
        (f"{POLICY}._maybe_send_resource_request", "self"),
        (f"{TRAINER}._initialize_and_run_controller", "self controller_init_kwargs"),
        ("ray._private.state:state.get_draining_nodes", ""),
    ],
)
def test_what_is_overridden_or_called_takes_what_it_took(name: str, parameters: str) -> None:
    assert list(inspect.signature(held(name)).parameters) == parameters.split(), f"{name}: {SAID}"


@pytest.mark.parametrize(
    ("name", "uses"),
    [
        (f"{TRAINER}.fit", "_initialize_and_run_controller scaling_policy"),
        (
            f"{POLICY}.make_decision_for_non_running_worker_group",
            "_get_reserved_resources _count_possible_workers NoopDecision",
        ),
        (
            f"{POLICY}.make_decision_for_running_worker_group",
            "_get_reserved_resources _count_possible_workers elastic_resize_monitor_interval_s",
        ),
        (f"{POLICY}._get_reserved_resources", "_autoscaling_coordinator _requester_id"),
        ("ray.train.v2._internal.execution.worker_group:WorkerGroupPollStatus", "worker_statuses"),
        ("ray.train.v2._internal.execution.worker_group:WorkerStatus", "training_report"),
    ],
)
def test_ray_still_does_it_as_it_did(name: str, uses: str) -> None:
    text = inspect.getsource(held(name))
    assert [word for word in uses.split() if word not in text] == [], f"{name}: {SAID}"


def test_no_other_module_knows_a_private_name_of_ray() -> None:
    private = re.compile(r"^\s*(from|import) ray(\.\w+)*\._|^\s*from ray[.\w]* import _", re.MULTILINE)
    files = [path for folder in ("seal_ray", "analysis") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert {file.relative_to(ROOT) for file in files if private.search(file.read_text())} == {ADAPTER}
