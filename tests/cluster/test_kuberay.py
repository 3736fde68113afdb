"""The KubeRay manifests: what they promise about users, limits, secrets, ports and commands."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

import pytest
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION

from seal_ray.recipe import load_job
from tests.cluster.material import (
    KUBERAY,
    MANIFESTS,
    ROOT,
    check_job,
    cluster_spec,
    containers,
    documents,
    manifest,
    our_version,
    pods,
    version,
    walk,
)

JOBS = ("run.yaml", "sweep.yaml")
BASE = {one["kind"]: one for one in documents(KUBERAY / "base.yaml")}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_container_runs_as_a_user_without_privileges(name: str) -> None:
    document = manifest(name)
    confined = [cluster_spec(document)["autoscalerOptions"]["securityContext"]]
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        confined += [one["securityContext"] for one in containers(pod)]
    for context in confined:
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "runAsUser" not in context
    assert all(pod["automountServiceAccountToken"] is False for pod in pods(document)[1:])


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_container_has_limits(name: str) -> None:
    document = manifest(name)
    limited = [cluster_spec(document)["autoscalerOptions"]["resources"]]
    limited += [one["resources"] for pod in pods(document) for one in containers(pod)]
    for resources in limited:
        assert {"cpu", "memory"} <= set(resources["requests"]) & set(resources["limits"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_versions_are_pinned(name: str) -> None:
    document = manifest(name)
    assert document["apiVersion"] == "ray.io/v1"
    assert cluster_spec(document)["rayVersion"] == version("ray")
    for pod in pods(document):
        for one in containers(pod):
            assert one["image"].endswith(f"/seal-ray:{our_version()}-cuda")


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_token_is_wanted_and_no_secret_is_written_down(name: str) -> None:
    document = manifest(name)
    assert cluster_spec(document)["authOptions"] == {"mode": "token", "secretName": "seal-ray-token"}
    names = set()
    for one in walk(document):
        assert one.get("kind") != "Secret"
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD", str(one.get("name", ""))):
            names.add(one["name"])
            assert "value" not in one
            assert "secretKeyRef" in one["valueFrom"]
    assert names == {"WANDB_API_KEY"}


def admits_strangers(policy: dict[str, Any]) -> bool:
    """Whether a NetworkPolicy lets Pods of other namespaces, or addresses, reach a Pod of its namespace."""
    spec = policy["spec"]
    if spec["podSelector"] or "Ingress" not in spec["policyTypes"]:
        return True
    for rule in spec.get("ingress", []):
        peers = rule.get("from", [])
        if not peers or any(set(peer) != {"podSelector"} for peer in peers):
            return True
    return False


def test_no_port_is_open_to_other_namespaces() -> None:
    policy = BASE["NetworkPolicy"]
    assert not admits_strangers(policy)
    rules: list[dict[str, Any]] = [{"from": [{"namespaceSelector": {}}]}, {"ports": [{"port": 8265}]}]
    for rule in rules:
        opened = copy.deepcopy(policy)
        opened["spec"]["ingress"].append(rule)
        assert admits_strangers(opened)


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_is_published_and_all_is_in_the_namespace_of_the_policy(name: str) -> None:
    document = manifest(name)
    assert document["metadata"]["namespace"] == BASE["NetworkPolicy"]["metadata"]["namespace"]
    assert cluster_spec(document)["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
    assert not any("hostPort" in one or one.get("hostNetwork") for one in walk(document))


@pytest.mark.parametrize("name", MANIFESTS)
def test_all_pods_share_the_storage(name: str) -> None:
    claim = BASE["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(manifest(name)):
        assert {"claimName": claim["metadata"]["name"]} in [
            one["persistentVolumeClaim"] for one in pod["volumes"]
        ]
        assert all(
            {"name": "storage", "mountPath": "/storage"} in one["volumeMounts"] for one in containers(pod)
        )


@pytest.mark.parametrize("name", MANIFESTS)
def test_workers_are_gpus_that_come_and_go(name: str) -> None:
    spec = cluster_spec(manifest(name))
    (group,) = spec["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert "nvidia.com/gpu.product" in pod["nodeSelector"]
    assert {"nvidia.com/gpu", "spot"} == {one["key"] for one in pod["tolerations"]}
    for one in pod["containers"]:
        assert one["resources"]["limits"]["nvidia.com/gpu"] == "1"  # KubeRay's --num-gpus, and what is seen
        assert "NCCL_SOCKET_IFNAME" in {variable["name"] for variable in one["env"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_object_store_fits_into_shared_memory(name: str) -> None:
    for pod in pods(manifest(name)):
        for one in pod["containers"]:
            assert not any(mount["mountPath"] == "/dev/shm" for mount in one["volumeMounts"])
            # KubeRay mounts a memory volume there, as large as the request; Ray takes its share of the limit.
            store = DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * gibibytes(one["resources"]["limits"]["memory"])
            assert store < gibibytes(one["resources"]["requests"]["memory"])


def gibibytes(text: str) -> int:
    assert text.endswith("Gi")
    return int(text.removesuffix("Gi"))


@pytest.mark.parametrize("name", JOBS)
def test_a_job_names_a_command_and_a_valid_file_and_stores_on_the_shared_volume(name: str) -> None:
    words = shlex.split(manifest(name)["spec"]["entrypoint"])
    check_job(words)
    assert words[words.index("--address") + 1] == "auto"
    assert words[words.index("--storage") + 1].startswith("/storage/")


def test_the_workers_of_a_run_are_there_when_it_starts() -> None:
    document = manifest("run.yaml")
    workers = load_job(ROOT / shlex.split(document["spec"]["entrypoint"])[4]).placement.workers
    assert cluster_spec(document)["workerGroupSpecs"][0]["minReplicas"] >= workers


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_the_cluster_of_cluster_yaml_and_removes_it(name: str) -> None:
    document = manifest(name)
    mine, theirs = cluster_spec(document), cluster_spec(manifest("cluster.yaml"))
    for spec in (mine, theirs):
        for key in ("replicas", "minReplicas"):
            spec["workerGroupSpecs"][0].pop(key)
    assert mine == theirs
    assert document["spec"]["shutdownAfterJobFinishes"] is True
    assert document["spec"]["backoffLimit"] > 0
