"""Several runs on a GPU that is not there, as Ray counts it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ASKED = """
import json
import ray
from seal_ray.distributed.workers import lacking_room, needs, room_that_stays
from seal_ray.errors import ClusterError
from seal_ray.recipe import Job
from seal_ray.sweeps.tune import concurrency
from tests.runs import tiny_recipe

ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, logging_level="ERROR")

def job(share):
    placement = {"gpus_per_worker": share}
    return Job.model_validate({"name": "a", "recipe": tiny_recipe("normal"), "placement": placement})

found = {str(share): [concurrency(job(share), None), room_that_stays(needs(job(share), True))]
         for share in (1.0, 0.5, 0.25, 0.2, 0.4)}
try:
    concurrency(job(0.5), 5)
except ClusterError as error:
    found["too many"] = str(error)
Busy = ray.remote(num_gpus=0.25)(type("Busy", (), {"here": lambda self: ray.get_gpu_ids()}))
busy = [Busy.remote() for _ in range(8)]
found["on"] = sorted(ray.get([one.here.remote() for one in busy]))
found["waits"] = lacking_room(job(0.25), True)
print(json.dumps(found))
"""


@pytest.mark.ray
def test_runs_share_gpus_and_a_sweep_fills_them() -> None:
    printed = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True).stdout
    found = json.loads(printed.splitlines()[-1])
    assert found["1.0"] == [2, 2]
    assert found["0.5"] == [4, 4]
    assert found["0.25"] == found["0.2"] == [8, 8]  # of eight CPUs
    assert found["0.4"] == [4, 4]
    assert found["too many"] == (
        "--concurrent 5: 5 runs of 1 workers need 2.5 GPUs, the cluster has 2; give at most 4"
    )
    assert found["on"] == [[0]] * 4 + [[1]] * 4
    assert found["waits"] == "waits for 0.25 GPU; 0 of the cluster's 2 free"
