"""All that we use of Ray's inside: its elastic workers with a choice of how many and when, hosts that leave.

Ray Train's own elastic scaling, `ScalingConfig(num_workers=(min, max))`, does most of it. But in 2.60 it
starts any number of workers between the two (and 3 cannot share 4 shards), resizes in the middle of an epoch,
and counts on hosts that have just gone or are about to be taken away; a scaling policy cannot be given to it,
and `ray.nodes()` does not tell which hosts leave. So this module overrides what Ray Train asks its policy.
No other one knows private names of Ray. `tests/contract/test_ray_internals.py` says when they change, and the
package asks for the minor version that was tested.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import state
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

RESIZE_INTERVAL = 10.0
"""Seconds from a start of the workers, and from the last look, until it is looked for room for more."""
ROOM_INTERVAL = 1.0
"""Seconds between two looks for room while there is too little."""
RESOURCES_TIMEOUT = 10.0
"""Seconds that the cluster gets to say what there is."""
HOST_TIMEOUT = 2.0
"""Seconds after which a host that does not let us connect counts as gone."""


class Sizes(ElasticScalingPolicy):  # type: ignore[misc]
    """As many workers as there is room for, of the given numbers; more of them from an epoch's end on."""

    def __init__(self, scaling_config: Any, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = tuple(sizes)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start with what there is; Ray Train asks again at once, without a pause of its own."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(ROOM_INTERVAL)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Resize when an epoch has just been reported, which costs nothing that was computed."""
        self._maybe_send_resource_request()  # it expires
        if all(one.training_report is None for one in worker_group_status.worker_statuses.values()):
            return NoopDecision()
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._sizes if size <= room), default=0)

    def _get_reserved_resources(self) -> Any:
        """What hosts that are there now, and are to stay, hold for us; the policy itself knows what was."""
        coordinator = self._autoscaling_coordinator
        asked = coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            reserved = ray.get(asked, timeout=RESOURCES_TIMEOUT)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None
        there = {node["NodeID"] for node in staying_nodes() if _answers(node)}
        return {node: held for node, held in reserved.items() if node in there}


def staying_nodes() -> list[dict[str, Any]]:
    """The hosts that Ray counts on and that are not about to be taken away, as `ray.nodes` has them."""
    leaving = state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def rooms_held() -> int:
    """How many placement groups of this process's Ray job that hold CPUs, as Ray Train's of workers do, have
    their room.

    The id of a group ends with that of its job.
    """
    own = ray.get_runtime_context().get_job_id()
    groups = [found for group, found in ray.util.placement_group_table().items() if group.endswith(own)]
    return sum(
        found["state"] == "CREATED" and any(one.get("CPU", 0) >= 1 for one in found["bundles"].values())
        for found in groups
    )


def _answers(node: dict[str, Any]) -> bool:
    """Whether a host can be reached. Ray goes on counting on one that has died for up to half a minute."""
    with contextlib.suppress(OSError):
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), HOST_TIMEOUT).close()
        return True
    return False


class SizedTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer whose workers, when there is a choice, are as many as one of `sizes`."""

    def __init__(self, loop: Any, *, sizes: Sequence[int], **settings: Any) -> None:
        super().__init__(loop, **settings)
        self._sizes = tuple(sizes)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            settings["scaling_policy"] = Sizes(self.scaling_config, self._sizes)
        return super()._initialize_and_run_controller(**settings)
