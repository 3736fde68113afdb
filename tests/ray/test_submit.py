"""Runs and sweeps as jobs of a cluster that wants a token, as a person submits them from another folder."""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
import yaml

from seal_ray.data.prepare import prepare
from seal_ray.data.sources import open_source
from seal_ray.errors import ClusterError
from seal_ray.jobs import (
    analysis_spec,
    connect,
    describe_job,
    follow,
    list_jobs,
    logs,
    stop,
    submit,
    training_spec,
)
from seal_ray.recipe import dump_job, load_job
from seal_ray.runs.folder import Store, open_store
from seal_ray.sweeps.tune import run_sweep
from tests.faults.conftest import images_of, make_job, same_as_undisturbed
from tests.plugins import method_of_docs
from tests.ray.conftest import TOKEN, head
from tests.sweeps import leaderboard_of, metrics_of, screen, small_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LONGER = ["recipe.budget.epochs=24"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_the_token_nothing_runs(address: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list_jobs(client)
    for token in (None, "wrong-wrong-wrong-wrong"):
        if token is None:
            monkeypatch.delenv("RAY_AUTH_TOKEN")
        else:
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        with pytest.raises(ClusterError, match=r"refuses: no token, or not its own.*RAY_AUTH_TOKEN"):
            connect(address)
        request = urllib.request.Request(f"{address}/api/jobs/", b'{"entrypoint": "touch ran"}')
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {token}")
        with pytest.raises(HTTPError, match=r"40[13]"):
            urllib.request.urlopen(request, timeout=30)
    assert list_jobs(client) == before
    with pytest.raises(ClusterError, match="has no job nobody-a1"):
        describe_job(client, "nobody-a1")


def test_two_who_submit_the_same_at_once_get_one_job_which_says_why_it_fails(
    client: Any, tmp_path: Path
) -> None:
    Path("run.yaml").write_text(dump_job(make_job(tmp_path / "none", tmp_path / "runs", "llf")))
    spec = training_spec("train", Path("run.yaml"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: submit(client, spec, lambda _: None), range(4)))
    assert set(found) == {f"{spec.name}-a1"}
    printed: list[str] = []
    assert follow(client, spec.name, printed.append) == "failed"
    [job] = [one for one in list_jobs(client) if one["id"].startswith(spec.name)]
    assert job["status"] == "failed"
    assert job["last"].startswith(f"error: {tmp_path / 'none'} holds no data set")
    assert job["last"] in "".join(printed)
    assert not (tmp_path / "runs").exists()


def test_a_run_is_stopped_and_killed_and_ends_as_if_undisturbed(client: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(open_source("digits", source=None), data, classes=4, per_class=100)
    Path("run.yaml").write_text(dump_job(make_job(data, tmp_path / "runs", "llf")))
    job = load_job("run.yaml", LONGER)
    store = open_store(job.placement.storage, job.recipe, images_of(job))
    said: list[str] = []

    def again(epochs: int) -> str:
        """The id of the job that has, once this returns, committed so many epochs."""
        submitted = submit(client, training_spec("train", Path("run.yaml"), LONGER), said.append)
        until(lambda: len(store.rows()) >= epochs or describe_job(client, submitted)["status"] == "failed")
        assert len(store.rows()) >= epochs, logs(client, submitted)
        return submitted

    first = again(2)
    assert first.startswith("faults-")
    assert first.endswith("-a1")
    assert submit(client, training_spec("train", Path("run.yaml"), LONGER), said.append) == first
    assert said[-1] == f"{first}: is running already, so nothing was submitted"
    [listed] = [one for one in list_jobs(client) if one["id"] == first]
    assert (listed["kind"], listed["file"], listed["status"]) == ("train", "run.yaml", "running")
    assert listed["last"].startswith(("g", store.run_id))

    assert stop(client, first, said.append) == "stopped"
    assert store.status()["status"] == "stopped"
    stopped = store.latest()
    assert stopped is not None
    epochs = len(store.rows())
    assert 2 <= epochs == len(stopped.rows) < 24
    assert "stopping at the next epoch boundary" in logs(client, first)
    assert f"{store.run_id}: stopped" in logs(client, first)

    second = again(epochs + 1)
    assert second == first.removesuffix("1") + "2"
    assert f"going on after epoch {epochs}" in logs(client, second)
    psutil.Process(int(client.get_job_info(second).driver_info.pid)).suspend()
    assert stop(client, second, said.append, now=True) == "stopped"
    assert f"{store.run_id}: " not in logs(client, second).partition("going on after epoch")[2]

    third = again(0)
    printed: list[str] = []
    assert follow(client, third, printed.append) == "succeeded"
    text = "".join(printed)
    assert text == logs(client, third)
    assert f"{store.run_id}: finished" in text
    assert stop(client, first, said.append) == "stopped"
    assert describe_job(client, first.removesuffix("-a1"))["id"] == third
    assert TOKEN not in text + "".join(said) + str(client.list_jobs())
    same_as_undisturbed(job, Store(store.folder, store.run_id), tmp_path / "alone")


def test_a_job_has_the_environment_that_is_given_and_only_ray_shows_it(client: Any, tmp_path: Path) -> None:
    secret = "0123456789-sesame"
    Path("run.yaml").write_text(dump_job(make_job(tmp_path / "none", tmp_path / "runs", "llf")))
    spec = training_spec("train", Path("run.yaml"))
    said: list[str] = []
    job = submit(client, spec, said.append, {"WANDB_API_KEY": secret, "SEAL_RAY_CACHE": "/somewhere"})
    follow(client, job, said.append)
    assert client.get_job_info(job).runtime_env["env_vars"]["WANDB_API_KEY"] == secret  # as the docs say
    assert secret not in "".join(said) + logs(client, job) + str(list_jobs(client)) + str(
        describe_job(client, job)
    )


def test_a_plain_job_that_would_store_in_its_own_folder_is_refused(client: Any, digits: Path) -> None:
    for name, storage in {"relative": "runs", "absolute": "$PWD/runs"}.items():
        Path("run.yaml").write_text(dump_job(make_job(digits, Path("runs"), "llf", width=4)))
        job = client.submit_job(
            entrypoint=f'python -m seal_ray train run.yaml --address auto --storage "{storage}"',
            runtime_env={"working_dir": ".", "env_vars": {"PYTHONPATH": str(ROOT)}},
            submission_id=f"plain-{name}",
        )
        assert follow(client, job, lambda _: None) == "failed"
        last = describe_job(client, job)["last"]
        assert last.startswith("error: placement.storage: ")
        assert "is in the folder of this Ray job, which is deleted with it; give the absolute path" in last


def test_a_head_without_its_environment_says_which_python_lacks_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    (tmp_path / "bin").mkdir()
    bare = tmp_path / "bin" / "python"  # what `python` is on such a head: nothing is installed for it
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    Path("run.yaml").write_text(dump_job(make_job(tmp_path / "none", tmp_path / "runs", "llf")))
    with head(tmp_path / "bin") as address:
        client = connect(address)
        job = submit(client, training_spec("train", Path("run.yaml")), lambda _: None)
        assert follow(client, job, lambda _: None) == "failed"
        last = describe_job(client, job)["last"]
    assert last.startswith(f"error: {sys.executable} (Python ")
    assert "cannot run seal_ray, it lacks pydantic, ray, torch, typer" in last
    assert "start Ray on every host from one that is activated" in last


def test_a_method_of_ones_own_is_sent_along(client: Any, digits: Path, tmp_path: Path) -> None:
    Path("weight_noise.py").write_text(method_of_docs())
    job = yaml.safe_load(dump_job(make_job(digits, tmp_path / "runs", "llf", width=4)))
    job["recipe"]["method"] = "weight_noise"
    Path("run.yaml").write_text(yaml.safe_dump({"plugins": ["./weight_noise.py"], **job}))
    submitted = submit(client, training_spec("train", Path("run.yaml")), lambda _: None)
    printed: list[str] = []
    assert follow(client, submitted, printed.append) == "succeeded", "".join(printed)
    assert "code: weight_noise.py sha256 " in "".join(printed)
    [folder] = (tmp_path / "runs").glob("weight_noise-*")
    assert (folder / "plugins" / "weight_noise.py").read_text() == method_of_docs()


def test_a_sweep_gives_the_leaderboard_that_it_gives_here(client: Any, digits: Path, tmp_path: Path) -> None:
    axes = {"method": {"normal": "normal", "llf": "llf"}}
    runs = small_sweep(digits, tmp_path / "runs", Path("sweep.yaml"), axes=axes)
    submitted = submit(client, training_spec("sweep", Path("sweep.yaml")), lambda _: None)
    printed: list[str] = []
    assert follow(client, submitted, printed.append) == "succeeded", "".join(printed)
    here = small_sweep(digits, tmp_path / "here", Path("here.yaml"), axes=axes)
    run_sweep(here, screen()[0], share=True, address=None, concurrent=None, in_process=True)
    assert metrics_of(runs) == metrics_of(here)
    assert {run["status"] for run in leaderboard_of(runs)["runs"]} == {"finished"}
    analysis = analysis_spec("analyze", Path("sweep.yaml"), {"--what": ["calibration"], "--workers": ["1"]})
    printed.clear()
    assert follow(client, submit(client, analysis, lambda _: None), printed.append) == "succeeded", "".join(
        printed
    )
    assert all((one.store.folder / "analysis").is_dir() for one in runs.planned)
