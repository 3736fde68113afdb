"""What is sent to a cluster, under which name, and what is said when it cannot be reached."""

from __future__ import annotations

import platform
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from seal_ray import jobs
from seal_ray.cli import app
from seal_ray.errors import ClusterError, ConfigError
from seal_ray.jobs import (
    JobSpec,
    analysis_spec,
    attempts,
    connect,
    job_environment,
    sent_files,
    training_spec,
)
from seal_ray.storage.paths import RAY_JOB

RUN = {
    "recipe": {
        "data": {"path": "/data/x"},
        "method": "seal",
        "budget": {"epochs": 4, "generation_length": 2},
    },
    "placement": {"storage": "/mnt/runs"},
}
SWEEP = {"base": "../runs/run.yaml", "axes": {"method": ["normal", "llf"]}, "seeds": 2}
TOKEN = "sesame-sesame-sesame"
SECRET = "0123456789-sesame"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run and a sweep, and no token but ours."""
    for place, fields in {"runs/run.yaml": RUN, "sweeps/sweep.yaml": SWEEP}.items():
        (tmp_path / "work" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / place).write_text(yaml.safe_dump(fields))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "work"


def run(*overrides: str) -> JobSpec:
    return training_spec("train", Path("runs/run.yaml"), overrides)


def test_the_command_of_a_job_is_that_of_the_user() -> None:
    spec = training_spec("train", Path("runs/run.yaml"), ["recipe.method={name: llf}"], ["--workers", "1"])
    words = shlex.split(spec.entrypoint)
    assert words[:5] == ["exec", "$(command -v python || command -v python3)", "-m", "seal_ray", "train"]
    assert words[5:8] == ["runs/run.yaml", "--set", "recipe.method={name: llf}"]
    assert words[8:] == ["--workers", "1", "--address", "auto"]


def test_a_name_says_what_is_computed_and_where_it_is_stored() -> None:
    name = run().name
    assert name.startswith("run-")
    assert len(name) == len("run-") + 8
    assert run("placement.retries=7", "placement.tracking.wandb=off").name == name
    assert run("recipe.seed=0").name == name
    others = [
        run("recipe.seed=1"),
        run("recipe.data.path=/data/y"),
        run("placement.storage=/mnt/other"),
        training_spec("sweep", Path("sweeps/sweep.yaml")),
        training_spec("sweep", Path("sweeps/sweep.yaml"), ["seeds=3"]),
    ]
    assert len({name, *(other.name for other in others)}) == 1 + len(others)


def test_a_name_fits_into_an_address() -> None:
    assert run('name="a b/ü?\\n#"').name.startswith("a-b-")
    assert run('name="ü"').name.startswith("train-")
    assert len(run(f"name={'x' * 300}").name) < 60


def test_the_package_and_the_files_of_a_sweep_are_sent_and_nothing_else(here: Path) -> None:
    (here / ".env").write_text("WANDB_API_KEY=secret")
    found = sent_files(training_spec("sweep", Path("sweeps/sweep.yaml")))
    places = {str(place) for place in found}
    assert {"sweeps/sweep.yaml", "runs/run.yaml", "seal_ray/jobs.py", "seal_ray/methods/seal.py"} <= places
    assert "seal_ray/analysis/__init__.py" in places
    assert {place.split("/")[0] for place in places} == {"sweeps", "runs", "seal_ray"}
    assert not [place for place in places if "__pycache__" in place]


def test_more_than_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "UPLOAD_LIMIT", 10_000)
    with pytest.raises(ConfigError, match=r"MiB would be sent.*largest file is .*seal_ray"):
        sent_files(run())


def test_a_file_outside_the_working_directory_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="outside the working directory"):
        monkeypatch.chdir(here / "sweeps")
        training_spec("train", here / "runs" / "run.yaml")
    with pytest.raises(ConfigError, match=r"run\.yaml: is outside the working directory"):
        training_spec("sweep", Path("sweep.yaml"))
    monkeypatch.chdir(here)
    assert training_spec("train", here / "runs" / "run.yaml").files == (Path("runs/run.yaml"),)


def test_a_base_that_would_not_be_found_on_the_cluster_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"base: .* is absolute"):
        training_spec("sweep", Path("sweeps/sweep.yaml"), [f"base={here}/runs/run.yaml"])


def test_paths_that_end_with_the_job_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        run("placement.storage=runs", "recipe.data.path=data/digits")
    storage, data = str(error.value).split("\n")
    assert storage.startswith("runs/run.yaml: placement.storage: runs is relative")
    assert "--set placement.storage=/mnt/runs" in storage
    assert "recipe.data.path: data/digits is relative" in data
    run("placement.storage=s3://bucket/runs")


COMMANDS = [
    ["train", "runs/run.yaml"],
    ["sweep", "sweeps/sweep.yaml"],
    ["analyze", "sweeps/sweep.yaml"],
    ["transfer", "sweeps/sweep.yaml", "--to", "/data/y"],
    ["fewshot", "runs/run.yaml", "--on", "/data/y"],
]
FOLDERS = [
    ["analyze", "kept"],
    ["transfer", "kept", "--to", "/data/y"],
    ["fewshot", "kept", "--on", "/data/y"],
]


@pytest.mark.parametrize("place", ["kept", "{here}/kept"])
@pytest.mark.parametrize("words", [*COMMANDS, *FOLDERS], ids=" ".join)
def test_within_a_ray_job_nothing_is_stored_where_it_is_deleted(
    words: list[str], place: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = here / "_ray_pkg_0123456789abcdef"  # as Ray calls the folder that a job is in
    shutil.copytree(here, package)
    (package / "kept").mkdir()
    monkeypatch.chdir(package)
    monkeypatch.setenv(RAY_JOB, "{}")
    place = place.format(here=package)
    words = [place if word == "kept" else word for word in words]
    given = [] if place in words else ["--storage", place]
    done = CliRunner().invoke(app, [*words, *given])
    assert isinstance(done.exception, ConfigError)
    assert f"{place} is in the folder of this Ray job, which is deleted with it" in str(done.exception)
    assert "/mnt/kept, or s3://BUCKET/PATH" in str(done.exception)
    assert not any((package / "kept").iterdir())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_within_a_ray_job_a_folder_that_stays_is_taken(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAY_JOB, "{}")
    done = CliRunner().invoke(app, [*words, "--storage", str(tmp_path / "kept")])
    assert "/data/x" in str(done.exception)  # the next thing that is not there


def test_an_analysis_of_a_sweep_is_sent_with_its_evaluation(here: Path) -> None:
    (here / "cars.yaml").write_text("kind: transfer\ntargets: [cars]\n")
    options = {"--evaluation": [str(here / "cars.yaml")], "--data": ["/mnt/data"], "--workers": ["2"]}
    sent = analysis_spec("transfer", Path("sweeps/sweep.yaml"), options)
    assert shlex.split(sent.entrypoint)[4:] == [
        *["transfer", "sweeps/sweep.yaml", "--data", "/mnt/data", "--evaluation", "cars.yaml"],
        *["--workers", "2", "--address", "auto"],
    ]
    assert {Path("sweeps/sweep.yaml"), Path("runs/run.yaml"), Path("cars.yaml")} <= set(sent_files(sent))
    assert sent.name.startswith("transfer-sweep-")
    (here / "cars.yaml").write_text("kind: transfer\ntargets: [cars, dogs]\n")
    others = [
        analysis_spec("transfer", Path("sweeps/sweep.yaml"), options),
        analysis_spec("transfer", Path("sweeps/sweep.yaml"), {**options, "--data": ["/mnt/other"]}),
        analysis_spec("analyze", Path("sweeps/sweep.yaml"), {}),
        analysis_spec("analyze", Path("/mnt/runs"), {}),
        analysis_spec("analyze", Path("/mnt/runs"), {"--set": ["depth.k=3"]}),
    ]
    assert len({sent.name, *(other.name for other in others)}) == 1 + len(others)


def test_an_analysis_is_sent_with_its_plugin_file(here: Path) -> None:
    (here / "rank.py").write_text("first = 1\n")
    asked = {"--what": ["rank"], "--plugin": [str(here / "rank.py")]}
    sent = analysis_spec("analyze", Path("/mnt/runs"), asked)
    assert shlex.split(sent.entrypoint)[4:] == [
        *["analyze", "/mnt/runs", "--plugin", "rank.py", "--what", "rank", "--address", "auto"]
    ]
    assert sent_files(sent)[Path("rank.py")] == Path("rank.py")
    (here / "rank.py").write_text("second = 2\n")
    assert analysis_spec("analyze", Path("/mnt/runs"), asked).name != sent.name
    with pytest.raises(ConfigError, match=r"--plugin: none\.py cannot be read: No such file"):
        analysis_spec("analyze", Path("/mnt/runs"), {"--plugin": ["none.py"]})


def test_an_analysis_that_would_not_find_its_things_on_the_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runs/x: is no file here, and as a folder .* absolute"):
        analysis_spec("analyze", Path("runs/x"), {})
    with pytest.raises(ConfigError, match="--data: name the folder"):
        analysis_spec("fewshot", Path("/mnt/runs"), {"--on": ["cars"]})
    with pytest.raises(ConfigError, match="--in-process: is not for a job"):
        analysis_spec("analyze", Path("/mnt/runs"), {"--in-process": ["True"]})
    with pytest.raises(ConfigError, match=r"placement\.storage: here is relative"):
        analysis_spec("analyze", Path("sweeps/sweep.yaml"), {"--storage": ["here"]})


def test_the_options_of_an_analysis_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[JobSpec] = []
    monkeypatch.setattr("seal_ray.jobs.connect", lambda address: address)
    monkeypatch.setattr("seal_ray.jobs.submit", lambda client, spec, *_: sent.append(spec))
    words = ["submit", "analyze", "/mnt/runs", "--address", "http://h:1", "--what", "depth", "--workers", "2"]
    done = CliRunner().invoke(app, [*words, "--set", "depth.k=3", "--set", "depth.seed=1"])
    assert done.exit_code == 0, done.output
    assert shlex.split(sent[0].entrypoint)[4:] == [
        *["analyze", "/mnt/runs", "--set", "depth.k=3", "--set", "depth.seed=1"],
        *["--what", "depth", "--workers", "2", "--address", "auto"],
    ]
    done = CliRunner().invoke(app, [*words, "--shots", "5"])
    assert done.exit_code == 2
    assert "--shots" in done.output
    done = CliRunner().invoke(
        app, ["submit", "train", "runs/run.yaml", "--address", "http://h:1", "--what", "x"]
    )
    assert "--what: is no option of this" in str(done.exception)
    assert len(sent) == 1


def test_an_environment_is_of_files_and_of_what_is_given(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "a value = of mine")
    (here / "keys.env").write_text(
        "# of W&B\n\nA=1\n  B= two words # and this\nFROM_HERE\nC='quoted'\nEMPTY=\n"
    )
    assert job_environment(["B=2", "D=x=y"], [here / "keys.env"]) == {
        "A": "1",
        "B": "2",
        "FROM_HERE": "a value = of mine",
        "C": "'quoted'",
        "EMPTY": "",
        "D": "x=y",
    }
    assert job_environment(files=[here / "keys.env"])["B"] == " two words # and this"
    assert job_environment() == {}


@pytest.mark.parametrize(
    ("given", "lines", "said"),
    [
        (["A=1", "my key=sesame"], "", "--env 2: is not NAME=VALUE"),
        (["=sesame"], "", "--env 1: is not NAME=VALUE"),
        (["sesame-opens"], "", "--env 1: is not NAME=VALUE"),
        (["A=1", "NOT_SET"], "", "--env 2: no variable NOT_SET is set here; give NAME=VALUE"),
        ([], "A=1\n\nexport B=sesame\n", "keys.env:3: is not NAME=VALUE"),
        ([], "sesame_opens\n", "keys.env:1: no variable of that name is set here"),
        ([], "A=\udcff", "keys.env cannot be read: it is not UTF-8"),
        ([], None, "keys.env cannot be read: No such file"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said_without_its_values(
    given: list[str], lines: str | None, said: str, here: Path
) -> None:
    if lines is not None:
        (here / "keys.env").write_text(lines, errors="surrogateescape")
    with pytest.raises(ConfigError) as error:
        job_environment(given, [] if given else [Path("keys.env")])
    assert said in str(error.value)
    assert "sesame" not in str(error.value)


def test_the_environment_given_to_submit_is_the_job_s_and_nothing_shows_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, str]] = []
    running = SimpleNamespace(submission_id="", status=SimpleNamespace(value="RUNNING"))

    class Client:
        """Runs what it is sent, for ever."""

        def list_jobs(self) -> list[SimpleNamespace]:
            return [running] if sent else []

        def get_address(self) -> str:
            return "http://h:1"

        def submit_job(self, entrypoint: str, submission_id: str, **given: dict[str, dict[str, str]]) -> None:
            assert SECRET not in entrypoint + str(given["metadata"])
            running.submission_id, running.entrypoint = submission_id, entrypoint
            sent.append(given["runtime_env"]["env_vars"])

    monkeypatch.setattr("seal_ray.jobs.connect", lambda address: Client())
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    (here / "keys.env").write_text(f"AWS_SECRET_ACCESS_KEY={SECRET}\nAWS_REGION=eu-central-1\n")
    words = ["submit", "train", "runs/run.yaml", "--address", "http://h:1"]
    words += ["--env", "WANDB_API_KEY", "--env", "WANDB_PROJECT=mine", "--env-file", "keys.env"]
    printed = [CliRunner().invoke(app, words).output for _ in range(2)]
    other = CliRunner().invoke(app, [*words, "--set", "placement.retries=7"]).output
    assert "it has other options: train runs/run.yaml --address auto" in other
    assert "other options" not in printed[1]
    refused = CliRunner().invoke(app, [*words, "--env", "RAY_ADDRESS=h:1"]).exception
    assert str(refused) == "--env 3: RAY_ADDRESS is set by Ray in its jobs; leave it out"
    assert "submitted" in printed[0]
    assert "nothing was submitted; its environment stays as it is" in printed[1]
    assert SECRET not in "".join(printed)
    [variables] = sent
    assert variables.items() >= {
        ("WANDB_API_KEY", SECRET),
        ("WANDB_PROJECT", "mine"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "eu-central-1"),
        ("RAY_JOB_STOP_WAIT_TIME_S", str(jobs.STOP_TIMEOUT)),
    }


def test_a_python_without_the_package_s_dependencies_says_what_it_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "seal_ray", "train", "run.yaml"],  # without what is installed
        cwd=Path(jobs.__file__).parents[1],
        env={},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith(
        f"error: {sys.executable} (Python {platform.python_version()}) cannot run seal_ray"
    )
    assert "it lacks pydantic, ray, torch, typer: use the Python of an environment that has seal-ray" in said
    assert "start Ray on every host from one that is activated" in said


def test_attempts_at_the_same_work_are_told_by_their_number() -> None:
    ids = ["a-1-a10", "a-1-a2", None, "a-1-a0", "xa-1-a3", "a-1-a4-a1", "a.1-a5", "raysubmit_a-1-a1"]
    listed = [SimpleNamespace(submission_id=submitted) for submitted in ids]
    assert list(attempts("a-1", listed)) == [2, 10]


@contextmanager
def dashboard(code: int) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers everything with one code; its address, and the tokens it was shown."""
    shown: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()


@pytest.mark.parametrize("code", [401, 403])
def test_a_cluster_that_refuses_our_token_never_has_it_printed(code: int) -> None:
    with dashboard(code) as (address, shown), pytest.raises(ClusterError, match="RAY_AUTH_TOKEN") as error:
        connect(address + "/")
    assert shown == [f"Bearer {TOKEN}"]
    assert TOKEN not in str(error.value)


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent() -> str | None:
        with dashboard(401) as (address, shown), pytest.raises(ClusterError):
            connect(address)
        return shown[0]

    (tmp_path / "token").write_text("in-a-file\n")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("at-home\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert sent() == f"Bearer {TOKEN}"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert sent() == "Bearer in-a-file"
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    assert sent() == "Bearer at-home"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert sent() is None
    monkeypatch.delenv("RAY_AUTH_MODE")
    (tmp_path / ".ray" / "auth_token").unlink()
    assert sent() is None


def test_a_token_that_cannot_be_sent_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "two\nlines")
    with pytest.raises(ClusterError, match="must be one line of ASCII") as error:
        connect("http://127.0.0.1:1")
    assert "two" not in str(error.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH: .*none cannot be read"):
        connect("http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["head:8265", "auto", "ray://head:10001", ""])
def test_an_address_that_is_not_a_dashboards_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="http://HEAD:8265"):
        connect(address)


def test_a_head_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "HEAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ClusterError, match="no Ray dashboard answers"):
            connect(f"http://127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers.*reachable"):
        connect(f"http://127.0.0.1:{port}")
    with dashboard(500) as (address, _), pytest.raises(ClusterError, match="answers 500"):
        connect(address)


@pytest.mark.parametrize(
    "answer",
    [
        # HTTP/2's settings frame, which Ray's own port (gRPC) begins with, padded to a line
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x7f\xff\xff\xff\x1b[31m\x07\r\n",
        b"SSH-2.0-x\x1b]0;sesame\x07\r\n",
        b"HTTP/1.1 200 \x1b[2J\r\n\r\nwelcome\x1b[31m",
        b"HTTP/1.1 404 \x1b[2J\r\n\r\n",
    ],
)
def test_what_answers_and_is_no_dashboard_is_called_that(answer: bytes) -> None:
    def serve(listening: socket.socket) -> None:
        asker, _ = listening.accept()
        asker.recv(2**16)
        asker.sendall(answer)
        asker.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        with pytest.raises(ClusterError, match=r"answers.*, but not as Ray's dashboard.* 8265") as error:
            connect(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert str(error.value).isprintable()


def test_what_a_server_sends_does_not_steer_the_terminal() -> None:
    status = SimpleNamespace(value="FAILED")
    job = SimpleNamespace(
        **{"submission_id": "x-a1", "status": status, "entrypoint": "rm\x1b]0;x\x07 y", "metadata": None},
        **{"message": "one\n\x1b[32mtwo\x1b[0m\tthree\x07\n", "start_time": None, "end_time": None},
    )
    client = SimpleNamespace(list_jobs=lambda: [job], get_address=lambda: "http://h:1")
    [found] = jobs.list_jobs(client)
    assert found["last"] == "two three"
    assert all(str(value).isprintable() for value in found.values())

    def failing() -> list[object]:
        raise RuntimeError("Request failed with status code 500: \x1b[2Jgone\x07.")

    with pytest.raises(ClusterError, match="status code 500") as error:
        jobs.list_jobs(SimpleNamespace(list_jobs=failing, get_address=lambda: "http://h:1"))
    assert str(error.value).isprintable()


def test_an_address_before_the_command_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*words: str) -> None:
        assert CliRunner().invoke(app, ["jobs", *words]).exit_code

    with dashboard(401) as (address, shown), dashboard(401) as (other, by_other):
        for command in ("logs", "status", "stop"):
            asked("--address", address, command, "a-b-c")
        assert (len(shown), len(by_other)) == (3, 0)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", other)
        asked("--address", address, "logs", "a-b-c")
        assert (len(shown), len(by_other)) == (4, 0)
        asked("logs", "a-b-c")
        assert (len(shown), len(by_other)) == (4, 1)
        asked("--address", other, "logs", "--address", address, "a-b-c")
        assert (len(shown), len(by_other)) == (5, 1)
