"""The Compose file: valid, nobody's root, limited, open to this machine alone, without a secret in it."""

from __future__ import annotations

from typing import Any

import compose_spec
import pytest
import yaml
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION

from tests.cluster.material import CLUSTER, check_ray, our_version

# The safe loader has merged `<<` already, as Compose does.
FILE: dict[str, Any] = yaml.safe_load((CLUSTER / "compose/compose.yaml").read_text())
SERVICES = FILE["services"]


def validate(file: dict[str, Any]) -> None:
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(file)).to_spec()


def test_it_is_a_compose_file() -> None:
    validate(FILE)
    misspelt = {**FILE, "services": {"head": {**SERVICES["head"], "shm_sise": "1gb"}}}
    with pytest.raises(ValueError, match="shm_sise"):
        validate(misspelt)


def test_it_is_a_head_and_two_workers_that_share_storage() -> None:
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert {tuple(one["volumes"]) for one in SERVICES.values()} == {("storage:/storage",)}
    assert SERVICES["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "1000:1000"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["image"] == f"seal-ray:{our_version()}-cpu"
    store = DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * size(service["deploy"]["resources"]["limits"]["memory"])
    assert store < size(service["shm_size"])


def size(text: str) -> int:
    """Bytes, as Docker reads them."""
    return int(text.rstrip("gb")) * 2**30


def test_the_dashboard_is_reached_from_this_machine_alone() -> None:
    assert SERVICES["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in SERVICES["worker"]
    assert not any("network_mode" in one for one in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_the_token_is_required_and_comes_from_outside(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{SERVICES[name]['secrets'][0]}"
    assert environment["WANDB_API_KEY"] is None  # taken from the shell
    assert FILE["secrets"] == {"ray_token": {"environment": "RAY_AUTH_TOKEN"}}


@pytest.mark.parametrize("name", SERVICES)
def test_ray_knows_its_command(name: str) -> None:
    for command in (SERVICES[name]["command"], SERVICES[name].get("healthcheck", {}).get("test", [])[1:]):
        if command:
            assert command[0] == "ray"
            check_ray(command[1:])
