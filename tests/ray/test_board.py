"""Where the board of a sweep lies, in a cluster of several nodes on this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

LOSE_THE_OTHERS = """
import time

import ray
from ray.cluster_utils import Cluster

from seal_ray.sweeps.tune import open_board

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(cluster.address, log_to_driver=False)
others = [cluster.add_node(num_cpus=4) for _ in range(2)]
cluster.wait_for_nodes()
boards = [open_board(1) for _ in range(6)]
ray.get([board.put.remote({"token": "t", "news": [], "retries": 0}) for board in boards])
for node in others:
    cluster.remove_node(node, allow_graceful=False)
while sum(node["Alive"] for node in ray.nodes()) > 1:
    time.sleep(0.1)
taken = ray.get([board.take.remote(0, 1) for board in boards])
print([one["token"] for one in taken])
ray.shutdown()
cluster.shutdown()
"""


def test_the_boards_of_sweeps_outlive_every_node_but_the_drivers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSE_THE_OTHERS], capture_output=True, text=True, timeout=200, check=False
    )
    assert str(["t"] * 6) in done.stdout.splitlines(), done.stderr
