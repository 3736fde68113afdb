"""What W&B's variables, its settings files and a job's YAML make of one another, and what of it W&B gets."""

from __future__ import annotations

import io
import json
import subprocess
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from seal_ray import jobs
from seal_ray.api import sweep
from seal_ray.errors import ConfigError, SealRayWarning
from seal_ray.recipe import Job, Placement, Tracking, load_job
from seal_ray.sweeps.tune import run_sweep
from seal_ray.tracking import wandb as tracking
from seal_ray.tracking.environment import (
    git_commit,
    overruled,
    sent_variables,
    settled,
    unanswered,
    wandb_mode,
)
from seal_ray.tracking.wandb import open_tracker
from tests.runs import tiny_recipe
from tests.sweeps import screen, small_sweep
from tests.unit.tracking.test_wandb import until
from tests.wandb_server import KEY as SECRET
from tests.wandb_server import Server, closed_port, deaf_server

LOGIN = f"machine {{}}\n login user\n password {'x' * 40}\n"
KEY, ELSEWHERE = {"WANDB_API_KEY": "x" * 40}, {"WANDB_BASE_URL": "https://wandb.example.org:8080"}


def told(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def written(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o600)


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize(
    ("asked", "environment", "netrc", "mode"),
    [
        *((mode, KEY, "", mode) for mode in ("online", "offline", "off")),
        ("auto", {}, "", "offline"),
        ("auto", KEY, "", "online"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "/run/token"}, "", "online"),
        ("auto", {}, LOGIN.format("api.wandb.ai"), "online"),
        ("auto", ELSEWHERE, LOGIN.format("api.wandb.ai"), "offline"),
        ("auto", ELSEWHERE, LOGIN.format("wandb.example.org"), "online"),
        ("auto", ELSEWHERE, LOGIN.format("wandb.example.org:8080"), "online"),
        ("auto", {}, "machine\n", "offline"),
        *(
            ("auto", {**KEY, "WANDB_MODE": said}, "", mode)
            for said, mode in {"offline": "offline", "dryrun": "offline", "disabled": "off"}.items()
        ),
        *(("auto", {"WANDB_MODE": said}, "", "online") for said in ("online", "run", "shared")),
        ("auto", {**KEY, "WANDB_DISABLED": "true"}, "", "off"),
        ("auto", {"WANDB_MODE": "online", "WANDB_DISABLED": "1"}, "", "off"),
        ("auto", {**KEY, "WANDB_DISABLED": "false"}, "", "online"),
        ("auto", {**KEY, "WANDB_MODE": ""}, "", "online"),
        ("online", {"WANDB_MODE": "disabled"}, "", "online"),
    ],
)
def test_a_mode_is_taken_and_auto_is_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, environment: Any, netrc: str, mode: str
) -> None:
    told(monkeypatch, **environment)
    if netrc:
        written(tmp_path, "home/.netrc", netrc)
    assert wandb_mode(asked) == mode


@pytest.mark.usefixtures("no_key")
def test_what_wandb_has_no_mode_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, WANDB_MODE="of")
    with pytest.raises(ConfigError, match="WANDB_MODE=of: give online, offline or disabled"):
        wandb_mode("auto")


@pytest.mark.usefixtures("no_key")
def test_settings_files_are_heeded_and_variables_win_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `wandb login --host`, `wandb offline` and `wandb init` write them."""
    monkeypatch.chdir(tmp_path)
    told(monkeypatch, **KEY)
    written(tmp_path, "home/.config/wandb/settings", "[default]\nentity = all\nproject = theirs\n")
    written(tmp_path, "wandb/settings", "[default]\nmode = offline\nproject = mine\n")
    found = settled(Tracking())
    assert (found.wandb, found.project, found.entity) == ("offline", "mine", "all")
    assert sent_variables() == {"WANDB_MODE": "offline", "WANDB_PROJECT": "mine", "WANDB_ENTITY": "all"}
    told(monkeypatch, WANDB_MODE="online", WANDB_PROJECT="now")
    found = settled(Tracking())
    assert (found.wandb, found.project) == ("auto", "now")


def test_whoever_answers_answers(server: Server) -> None:
    assert unanswered() == ""  # 404, to what only a real server has


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("server", [deaf_server, closed_port], ids=["hangs", "unreachable"])
def test_a_sweep_asks_a_dead_server_once_and_logs_offline(
    server: Callable[[], Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seal_ray.tracking.environment.SERVER_TIMEOUT", 0.2)
    small_sweep(digits, tmp_path / "runs", placement={"tracking": {}}, seeds=2, tracking={"wandb": "auto"})
    changes = ["recipe.budget={epochs: 1, generation_length: 1}"]
    with server() as url, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SealRayWarning)
        told(monkeypatch, WANDB_API_KEY=SECRET, WANDB_BASE_URL=url)
        sweep(tmp_path / "small.yaml", changes, in_process=True, console=Console(file=io.StringIO()))
    (said,) = [str(one.message) for one in caught]
    assert said.startswith(f"W&B does not answer ({url}: ")
    assert said.endswith("); metrics are logged offline, and `seal-ray sync` brings W&B what it lacks")
    stored = [load_job(path) for path in (tmp_path / "runs").glob("*/job.yaml")]
    assert [one.placement.tracking.wandb for one in stored] == ["offline"] * 6
    assert len(list((tmp_path / "runs").glob("*/wandb/offline-run-*"))) == 6


@pytest.mark.usefixtures("no_key")
def test_the_yaml_wins_over_the_environment_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, WANDB_PROJECT="theirs", WANDB_ENTITY="all", WANDB_RUN_GROUP="g", WANDB_TAGS="a, b,")
    told(monkeypatch, WANDB_MODE="disabled")
    left_open = Tracking()
    assert list(overruled(left_open)) == []
    found = settled(left_open)
    assert found == Tracking(wandb="off", project="theirs", entity="all", group="g", tags=("a", "b"))
    assert settled(found) == found
    ours = Tracking(wandb="online", project="ours", entity="us", group="trial", tags=("x", "y"))
    assert settled(ours) == ours
    assert list(overruled(ours)) == [
        "placement.tracking.project: ours wins over WANDB_PROJECT",
        "placement.tracking.entity: us wins over WANDB_ENTITY",
        "placement.tracking.group: trial wins over WANDB_RUN_GROUP",
        "placement.tracking.tags: x, y wins over WANDB_TAGS",
        "placement.tracking.wandb: online wins over WANDB_MODE=disabled",
    ]
    assert list(overruled(Tracking(wandb="off", project="theirs"))) == []


def test_a_submitted_job_is_told_what_is_said_here_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, WANDB_API_KEY="x" * 40, WANDB_MODE="offline", WANDB_DIR="/here", WANDB_TAGS="a,b")
    sent: list[dict[str, Any]] = []
    client = SimpleNamespace(get_address=lambda: "head", submit_job=lambda **job: sent.append(job))
    spec = jobs.JobSpec("train", "x", (Path("x.yaml"),), ())
    assert jobs._start(client, spec, "x-a1", "folder", {})
    (job,) = sent
    variables = job["runtime_env"]["env_vars"]
    assert (variables["WANDB_MODE"], variables["WANDB_TAGS"]) == ("offline", "a,b")
    assert not {"WANDB_API_KEY", "WANDB_DIR"} & variables.keys()
    assert "x" * 40 not in str(sent)


@pytest.mark.parametrize("said", [{"WANDB_MODE": "offline"}, {"WANDB_DISABLED": "true"}, {}])
def test_a_sweep_goes_where_the_environment_says(
    server: Server, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    """With a key for a server that answers."""
    monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 120.0)  # it ends when W&B has all
    told(monkeypatch, WANDB_PROJECT="theirs", WANDB_RUN_GROUP="friday", WANDB_TAGS="a,b", **said)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "here"))
    axes: dict[str, Any] = {"method": {"llf": "llf"}}
    with pytest.warns(SealRayWarning, match="project: trial wins over WANDB_PROJECT"):
        runs = small_sweep(digits, tmp_path / "runs", axes=axes, placement={"tracking": {"project": "trial"}})
    (planned,) = runs.planned
    run_sweep(runs, screen()[0], share=True, address=None, concurrent=None, in_process=True)
    offline = list((tmp_path / "here").glob(f"wandb/offline-run-*-{planned.run_id}"))
    assert len(offline) == ("WANDB_MODE" in said)
    assert not list((tmp_path / "runs").glob("**/wandb"))
    if said:
        assert server.runs == server.history == {}
        return
    found = server.runs[planned.run_id]
    assert (found["project"], found["groupName"]) == ("trial", "friday")
    assert set(found["tags"]) == {"llf", "resnet18", "digits", "a", "b"}
    assert len(server.rows(planned.run_id)) == 6
    assert json.loads(found["config"])["setting"] == {"value": "method=llf"}


def test_a_run_says_where_and_with_what_it_was_made_and_no_secret(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 120.0)
    told(
        monkeypatch, WANDB__STATS_SAMPLING_INTERVAL="0.1", AWS_SECRET_ACCESS_KEY="only-mine", NOTE="not-yours"
    )
    for name in ("on", "off"):
        fields = {"wandb": "online", "system_metrics": name == "on"}
        placement = Placement.model_validate({"workers": 2, "storage": "/mnt/runs", "tracking": fields})
        job = Job(name="trial", recipe=tiny_recipe("llf", shards=2), placement=placement)
        tracker = open_tracker(job, name, tmp_path / name, "digits")
        if name == "on":
            until(lambda: any("wandb-events.jsonl" in one and "cpu" in one for one in server.said))
        tracker.log({"global_epoch": 0, "generation": 0, "val_top1": None})
        tracker.close()
        assert len(server.rows(name)) == 1
    assert not [one for one in server.said if "/off/" in one and "wandb-events.jsonl" in one]
    sent = json.loads(server.runs["on"]["config"])
    config = {key: sent[key]["value"] for key in ("placement", "seal_ray", "hardware", "git_commit")}
    assert config["placement"] == placement.model_dump(mode="json", exclude={"tracking"})
    assert config["seal_ray"] == version("seal-ray")
    assert config["hardware"]["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 1024**3, abs=0.1)
    assert config["hardware"]["cores"] == len(psutil.Process().cpu_affinity() or [])
    here = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert config["git_commit"] == here.stdout.strip()
    secrets = (SECRET, "only-mine", "not-yours")
    assert [one for one in secrets if any(one in said for said in server.said)] == []


@pytest.mark.usefixtures("no_key")
def test_the_commit_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    assert "WANDB_GIT_COMMIT" not in sent_variables()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (head,) = (tmp_path / ".git" / "refs" / "heads").iterdir()
    assert git_commit() == sent_variables()["WANDB_GIT_COMMIT"] == head.read_text().strip()
    told(monkeypatch, WANDB_GIT_COMMIT="f" * 40)
    assert git_commit() == "f" * 40
    told(monkeypatch, WANDB_DISABLE_GIT="true")
    assert git_commit() is None
