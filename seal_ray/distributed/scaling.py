"""How many workers train: what the cluster holds, and Ray Train's trainer for a number or a range of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_ray.errors import ClusterError
from seal_ray.recipe import Job


def team_sizes(jobs: Sequence[Job]) -> tuple[int, ...]:
    """How many workers may train the jobs, which share one placement, ascending.

    All numbers from its least to its most that divide the shards of each job: what is computed depends on
    neither.
    """
    placement, shards = jobs[0].placement, math.gcd(*(job.recipe.shards for job in jobs))
    return tuple(n for n in range(placement.min_workers, placement.max_workers + 1) if shards % n == 0)


def check_resources(job: Job) -> bool:
    """Whether the workers get GPUs. ClusterError when the cluster cannot hold the fewest of them at once."""
    import ray

    workers, wish = job.placement.min_workers, job.placement.use_gpu
    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    use_gpu = gpus > 0 if wish == "auto" else bool(wish)
    if use_gpu and gpus < workers:
        raise ClusterError(
            f"placement.workers: {workers} workers need a GPU each, the cluster has {gpus}; lower workers "
            "(recipe.shards may stay), or set placement.use_gpu to false"
        )
    if cpus < workers:
        raise ClusterError(
            f"placement.workers: {workers} workers need a CPU each, the cluster has {cpus}; lower workers "
            "(recipe.shards may stay)"
        )
    return use_gpu


def room_that_stays(use_gpu: bool) -> int:
    """How many workers the hosts hold that are not about to be taken away."""
    import ray
    from ray._private.state import state

    leaving, kinds = state.get_draining_nodes(), ("CPU", "GPU") if use_gpu else ("CPU",)
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return sum(min(int(host.get(kind, 0)) for kind in kinds) for host in hosts)


def trainer(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    name: str,
    sizes: Sequence[int],
    use_gpu: bool,
    folder: Path,
    failures: int,
) -> Any:
    """A TorchTrainer that runs `loop` on as many workers as there is room for, one of `sizes` (ascending).

    With more than one size it is elastic. `folder` gets nothing that matters.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from seal_ray.distributed.elastic import LOOK, SizedTrainer

    return SizedTrainer(
        loop,
        sizes=sizes,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]),
            elastic_resize_monitor_interval_s=LOOK,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=failures, controller_failure_limit=failures),
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
    )
