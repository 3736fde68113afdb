"""The example for `ray up`, through Ray's own validation, and what it promises."""

from __future__ import annotations

import copy
import json
import re
import shlex
from typing import Any

import boto3
import jsonschema
import pytest
import yaml
from moto import mock_aws
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.aws.config import _configure_security_group, _get_subnets_or_die
from ray.autoscaler._private.command_runner import DockerCommandRunner
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.material import (
    CLUSTER,
    check_ray,
    commands,
    image_environment,
    our_version,
    shell_blocks,
)

FILE: dict[str, Any] = yaml.safe_load((CLUSTER / "ray-up/aws.yaml").read_text())


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(copy.deepcopy(FILE)))
    misspelt = copy.deepcopy(FILE)
    misspelt["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(misspelt))


def opened(config: dict[str, Any]) -> set[str]:
    """The networks that Ray lets in on port 22 when it has set up security groups, on moto's AWS."""
    with mock_aws():
        ec2 = boto3.resource("ec2", "us-east-1")
        [vpc] = ec2.vpcs.all()
        for one in config["available_node_types"].values():
            one["node_config"]["SubnetIds"] = [next(iter(vpc.subnets.all())).id]
        _configure_security_group(config)
        rules = [rule for group in ec2.security_groups.all() for rule in group.ip_permissions]
    return {allowed["CidrIp"] for rule in rules if rule.get("FromPort") == 22 for allowed in rule["IpRanges"]}


def test_ray_opens_no_port_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for forget in (utils.resource_cache, utils.client_cache, _get_subnets_or_die):
        forget.cache_clear()
    assert opened(copy.deepcopy(FILE)) == set()
    without = copy.deepcopy(FILE)
    for one in without["available_node_types"].values():
        del one["node_config"]["SecurityGroupIds"]
    assert opened(without) == {"0.0.0.0/0"}


def test_the_group_of_the_readme_lets_in_ssh_from_a_small_network_and_the_nodes() -> None:
    blocks = shell_blocks(CLUSTER / "ray-up/README.md")
    rules = [
        words for block in blocks for words in commands(block) if "authorize-security-group-ingress" in words
    ]
    options = [dict(zip(words[3::2], words[4::2], strict=True)) for words in rules]
    ssh, among = options
    assert (ssh["--protocol"], ssh["--port"]) == ("tcp", "22")
    assert int(ssh["--cidr"].partition("/")[2]) >= 24
    assert among == {"--group-id": "$GROUP", "--protocol": "-1", "--source-group": "$GROUP"}


class Instance:
    """A host behind SSH: answers what Ray's command runner asks it, and notes what it is told to do."""

    ssh_user, cluster_name = "ubuntu", FILE["cluster_name"]

    def __init__(self, gpus: bool) -> None:
        self.gpus = gpus
        self.told: list[str] = []

    def run(self, command: str, **_: Any) -> bytes:
        self.told.append(command)
        if command == "nvidia-smi" and not self.gpus:
            raise RuntimeError("no devices were found")
        answers = {
            "command -v docker": "/usr/bin/docker",
            "docker info": "map[nvidia:{nvidia-container-runtime [] <nil>} runc:{runc [] <nil>}]",
            "docker inspect -f '{{json .Config.Env}}'": json.dumps(
                [f"{name}={value}" for name, value in image_environment().items()]
            ),
            "cat /proc/meminfo": f"MemAvailable: {AVAILABLE // 1024} kB",
        }
        return next((text for start, text in answers.items() if command.startswith(start)), "").encode()


AVAILABLE = 30 * 2**30
"""Bytes of memory of an instance."""


def docker_run(*, head: bool) -> list[str]:
    """The words of the `docker run` by which Ray's own command runner starts a node."""
    host = Instance(gpus=not head)
    runner = DockerCommandRunner.__new__(DockerCommandRunner)  # without its SSH
    runner.__dict__.update(
        ssh_command_runner=host,
        container_name=FILE["docker"]["container_name"],
        docker_config=FILE["docker"],
        docker_cmd="docker",
        home_dir=None,
        initialized=False,
    )
    runner.run_init(as_head=head, file_mounts=FILE["file_mounts"], sync_run_yet=True)
    [started] = [one for one in host.told if one.startswith("docker run ")]
    return shlex.split(started)


def test_a_worker_s_container_sees_its_gpus_and_the_head_s_asks_for_none() -> None:
    worker, head = docker_run(head=False), docker_run(head=True)
    assert {"--gpus=all", "--runtime=nvidia"} <= set(worker)
    assert not [word for word in head if "gpu" in word or "nvidia" in word]  # Docker would refuse it
    assert "compute" in image_environment()["NVIDIA_DRIVER_CAPABILITIES"]


@pytest.mark.parametrize("head", [True, False])
def test_a_container_has_shared_memory_storage_the_token_and_the_host_s_network(head: bool) -> None:
    words = docker_run(head=head)
    [shared] = [word.partition("=")[2] for word in words if word.startswith("--shm-size=")]
    assert float(shared.rstrip("b")) > DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * AVAILABLE
    assert "--volume=/mnt/storage:/storage" in words
    mounted = {words[i + 1].partition(":")[2] for i, word in enumerate(words) if word == "-v"}
    assert mounted == {"/home/ray/.ray/auth_token"}
    assert "--net=host" in words
    [prefix] = [word.rpartition("=")[2] for word in words if "NCCL_SOCKET_IFNAME" in word]
    cards = ["lo", "docker0", "ens5", "enp39s0"]  # NCCL takes those whose names begin so
    assert [name for name in cards if name.startswith(prefix)] == ["ens5", "enp39s0"]
    assert words[-2:] == [f"registry.example.com/team/seal-ray:{our_version()}-cuda", "bash"]


def test_no_key_is_in_it_and_it_says_where_w_and_b_s_goes() -> None:
    text = (CLUSTER / "ray-up/aws.yaml").read_text()
    assert not re.search(r"(?i)api_key|secret", text)
    optional = yaml.safe_load(text.replace("# /home/ray/.netrc", "/home/ray/.netrc"))
    assert optional["file_mounts"]["/home/ray/.netrc"] == "~/.netrc"
    assert set(FILE["file_mounts"]) == set(optional["file_mounts"]) - {"/home/ray/.netrc"}


def test_every_host_mounts_the_storage_before_its_container_starts() -> None:
    client, *_, mounted, _ = FILE["initialization_commands"]
    assert "nfs-common" in client
    assert re.search(r"mount -t nfs4 .* /mnt/storage$", mounted)


def test_the_container_is_confined_and_wants_the_token() -> None:
    docker = FILE["docker"]
    assert {"--env=RAY_AUTH_MODE=token", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(
        docker["run_options"]
    )
    assert "/home/ray/.ray/auth_token" in FILE["file_mounts"]


def test_workers_are_spot_gpus_that_come_and_go() -> None:
    gpu = FILE["available_node_types"]["gpu"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 1 <= gpu["min_workers"] <= gpu["max_workers"] <= FILE["max_workers"]
    assert FILE["available_node_types"][FILE["head_node_type"]]["resources"]["CPU"] == 0


def test_ray_knows_its_commands() -> None:
    lines = FILE["head_start_ray_commands"] + FILE["worker_start_ray_commands"]
    for line in lines:
        for words in commands(line):
            assert words[0] == "ray"
            check_ray(words[1:])
    head = next(line for line in lines if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in head
