"""A small prepared data set for the tests that train on real images."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source
from seal_ray.storage.paths import ObjectPath
from tests.s3 import bucket_at, serving

# How long an example takes is the machine's business.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")


def pytest_configure() -> None:
    """A shell ignores Ctrl-C for its background jobs, and so would the processes that tests interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """To be safe from power cuts takes as long as to train. Tests that look for it watch `os.fsync`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_convolutions(pytestconfig: pytest.Config) -> Iterator[None]:
    """No oneDNN in `make test`: for four channels it looks up a convolution for longer than it computes it.

    What is chosen by its mark, as `-m ray`, computes as users do: it is compared with other processes.
    """
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.getoption("markexpr").startswith("not "):
            patch.setattr(torch.backends.mkldnn, "enabled", False)
        yield


@pytest.fixture(scope="module")
def onednn() -> Iterator[None]:
    """Convolutions as users have them, in `make test` too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", True)
        yield


TOGETHER = "tests/unit/reports/"
"""A folder whose tests share what takes long to make: a sweep with all its analyses."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but for a folder that stays together, in the order in which tests are collected.

    That begins with what takes longest, tests/contract: no process is left with it alone.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says nothing of how long they take
    return Files(config, log)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the digits, prepared."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(open_source("digits", source=None), folder, classes=4, per_class=24)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def bucket(
    s3_server: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectPath]:
    """An empty bucket for the tests of a module; the environment leads there."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    with bucket_at(s3_server, f"bucket-{name}", tmp_path_factory.mktemp("cache")) as made:
        yield made
