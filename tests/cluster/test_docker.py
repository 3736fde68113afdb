"""The image: clean for hadolint, pinned, not run by root, free of an entrypoint."""

from __future__ import annotations

import re

import pytest

from tests.cluster.material import (
    CLUSTER,
    ROOT,
    commands,
    image_environment,
    our_version,
    shell_blocks,
    succeeds,
    tool,
    version,
)

DOCKERFILE = CLUSTER / "docker/Dockerfile"
TEXT = DOCKERFILE.read_text()


def test_hadolint_finds_nothing() -> None:
    succeeds(tool("hadolint"), DOCKERFILE)


def test_bases_are_pinned_by_version() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", TEXT, re.MULTILINE))
    bases = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)
    for base in bases:
        for name, value in arguments.items():
            base = base.replace(f"${{{name}}}", value)
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert len(bases) == 2


def test_ray_starts_in_it_as_a_user() -> None:
    last = TEXT[TEXT.rindex("FROM ") :]
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert users == ["1000:1000"]
    assert not re.search(r"^(ENTRYPOINT|CMD)", TEXT, re.MULTILINE)
    assert "RAY_AUTH_MODE=token" in last


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_both_variants_take_every_version_from_the_constraints(variant: str) -> None:
    assert re.search(rf"^ +{variant}\) pip install ", TEXT, re.MULTILINE)
    installs = re.findall(r"pip install (?:--no-deps )?(-c constraints\.txt)?", TEXT)
    assert len(installs) == 4
    assert all(installs)


def test_it_has_what_the_head_of_ray_up_starts_workers_with() -> None:
    last = TEXT[TEXT.rindex("FROM ") :]
    assert {"openssh-client", "rsync"} <= set(last[: last.index("useradd")].split())
    assert re.search(r"^RUN pip install -c constraints\.txt \. boto3$", TEXT, re.MULTILINE)
    assert version("boto3")


def test_gpus_compute_in_it_where_they_are_given_to_it() -> None:
    environment = image_environment()
    assert set(environment["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    # A Pod that asked for no GPU would see all of its node's.
    assert "NVIDIA_VISIBLE_DEVICES" not in environment


def test_the_readme_s_containers_have_shared_memory_gpus_and_no_key_in_their_command() -> None:
    [block] = [one for one in shell_blocks(CLUSTER / "docker/README.md") if "docker run" in one]
    runs = [words for words in commands(block) if words[:2] == ["docker", "run"]]
    for words in runs:
        [image] = [word for word in words if word.startswith(f"seal-ray:{our_version()}-")]
        assert "--shm-size=2g" in words
        assert ("--gpus" in words) == image.endswith("-cuda")
        assert not any(word.startswith("WANDB_API_KEY=") for word in words)
    assert any("WANDB_API_KEY" in words for words in runs)


def test_what_it_copies_exists() -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_it_holds_no_secret() -> None:
    assert not re.search(r"(?i)\b(ARG|ENV)\b.*(API_KEY|AUTH_TOKEN|PASSWORD)", TEXT)
