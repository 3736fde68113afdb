"""The example for `ray up`, through Ray's own validation, and what it promises."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.material import CLUSTER, check_ray, commands

FILE: dict[str, Any] = yaml.safe_load((CLUSTER / "ray-up/aws.yaml").read_text())


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(copy.deepcopy(FILE)))
    misspelt = copy.deepcopy(FILE)
    misspelt["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(misspelt))


def test_only_ssh_is_open_and_not_to_everybody() -> None:
    for rule in FILE["provider"]["security_group"]["IpPermissions"]:
        assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
        for allowed in rule["IpRanges"]:
            assert int(allowed["CidrIp"].partition("/")[2]) >= 24


def test_the_container_is_confined_and_wants_the_token() -> None:
    docker = FILE["docker"]
    assert {"--env=RAY_AUTH_MODE=token", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(
        docker["run_options"]
    )
    assert docker["image"].rpartition(":")[2] != "latest"
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
