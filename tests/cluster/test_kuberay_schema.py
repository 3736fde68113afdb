"""The manifests against KubeRay's own schemas: `make test-manifests CRDS=DIR`.

DIR holds KubeRay's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (ray-operator/config/crd/bases).
"""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.material import MANIFESTS, cluster_spec, manifest

CRDS = os.environ.get("CRDS")
pytestmark = [
    pytest.mark.manifests,
    pytest.mark.skipif(not CRDS, reason="CRDS does not name a folder of KubeRay's schemas"),
]


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as a JSON schema that refuses unknown fields, as the API server warns of them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("anyOf", None)
        return {**closed, "type": ["integer", "string"]}
    if "properties" in schema:
        closed["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    return closed


@functools.cache
def validator_of(kind: str, version: str) -> jsonschema.Draft202012Validator:
    text = (Path(str(CRDS)) / f"ray.io_{kind.lower()}s.yaml").read_text()
    served = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(one["schema"]["openAPIV3Schema"] for one in served if one["name"] == version)
    return jsonschema.Draft202012Validator(strict(schema))


def errors(document: dict[str, Any]) -> list[str]:
    """What the schema of the document's kind and version has against it."""
    validator = validator_of(document["kind"], document["apiVersion"].partition("/")[2])
    return [f"{one.json_path}: {one.message}" for one in validator.iter_errors(document)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_schema(name: str) -> None:
    assert errors(manifest(name)) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_schema_refuses_a_slip(name: str) -> None:
    group = {"minReplica": 1}, {"maxReplicas": "8"}, {"groupName": None}
    for slip in group:
        wrong = copy.deepcopy(manifest(name))
        cluster_spec(wrong)["workerGroupSpecs"][0].update(slip)
        assert errors(wrong), slip
    wrong = copy.deepcopy(manifest(name))
    container = cluster_spec(wrong)["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "16 Gigabyte"
    assert errors(wrong)
