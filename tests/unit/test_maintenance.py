"""What people who carry on the work use: workflows, templates, the citation; checked as the data they are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import seal_ray
from tests.cluster.material import check_seal_ray, commands

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / ".github"


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)  # YAML 1.2, where `on` is text


def steps(workflow: str) -> list[dict[str, Any]]:
    [job] = read(HOUSE / "workflows" / workflow)["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_the_workflow_runs_the_stages_that_need_no_outside_data() -> None:
    asked = re.findall(r'^stage \d+ ".+" make (\S+)$', (ROOT / ".ci/run").read_text(), re.MULTILINE)
    workflow = read(HOUSE / "workflows/ci.yml")
    assert set(workflow["on"]) == {"push", "pull_request"}
    assert workflow["jobs"]["stage"]["strategy"]["matrix"]["target"] == asked
    assert steps("ci.yml")[-1]["run"] == "make ${{ matrix.target }}"
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in asked)


@pytest.mark.parametrize(("tag", "right"), [(f"v{seal_ray.__version__}", True), ("v9.9.9", False)])
def test_a_release_has_the_version_that_its_tag_says(tag: str, right: bool) -> None:
    [check] = [one["run"] for one in steps("release.yml") if one.get("name") == "The tag is the version"]
    done = subprocess.run(
        ["bash", "-c", check], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
    )
    assert (done.returncode == 0) == right


def test_a_release_is_built_then_tried_then_published() -> None:
    runs = [one["run"] for one in steps("release.yml") if "run" in one]
    order = [
        next(i for i, run in enumerate(runs) if word in run)
        for word in ("-m build", "dist/*.whl", "gh release")
    ]
    assert order == sorted(order)
    words = [one for one in commands(runs[order[1]]) if one[0] == "seal-ray"]
    assert [one[1] for one in words] == ["--version", "doctor", "data", "train", "analyze", "report"]
    for one in words:
        if one[1] != "--version":
            check_seal_ray(one[1:])
        assert all((ROOT / word).is_file() for word in one if word.startswith("jobs/"))


def test_a_report_of_a_bug_holds_what_doctor_says() -> None:
    form = read(HOUSE / "ISSUE_TEMPLATE/bug.yml")
    fields = {one["id"]: one for one in form["body"]}
    assert set(form) == {"name", "description", "labels", "body"}
    assert "seal-ray doctor" in fields["doctor"]["attributes"]["label"]
    assert all(one["validations"]["required"] for one in fields.values())


def test_a_change_is_asked_for_what_contributing_asks_for() -> None:
    text = (HOUSE / "PULL_REQUEST_TEMPLATE.md").read_text()
    assert all(word in text for word in ("make lint", "make test", "SEMANTICS", "CHANGELOG.md"))


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    held = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(
        held
    )  # what version 1.2.0 of the format demands
    assert held["version"] == seal_ray.__version__
    assert f'license = "{held["license"]}"' in (ROOT / "pyproject.toml").read_text()
    [paper] = held["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2304.04858"}]
    assert "arXiv 2304.04858" in (ROOT / "seal_ray/methods/seal.py").read_text()
