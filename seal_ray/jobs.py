"""Training and analyses as jobs of a Ray cluster: what is sent, submit it, watch it, stop it.

What is sent is this package as it is here, so that the cluster runs the same code and needs only its
dependencies, and the YAML files with the plugin files that they name, each at its place below the working
directory. Nothing else is: data and storage are named by paths that the cluster's hosts see, keys and tokens
are the cluster's own, or those variables of the environment that the user names.

The same job has the same name, `<name>-<8 hex digits>`: of what is computed and where it is stored. The
run id would do as well, but needs the data, which may be on the cluster only. Ray never accepts a
submission id twice, so the attempts at a job are `<name>-a1`, `<name>-a2`, ...; each goes on where the run
folders stand.

A stopped job gets SIGTERM, which `train` and `sweep` obey at the next epoch boundary; analyses end at once
and lose the pieces in hand. By default Ray kills a job 3 s later; the process that does so has the job's own
environment, through which we give it STOP_TIMEOUT.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError

from seal_ray.config.document import override, read, stored_in
from seal_ray.config.plugin_files import FOLDER
from seal_ray.distributed.launch import RAY_SETTINGS
from seal_ray.errors import ClusterError, ConfigError
from seal_ray.recipe import Job, load_job
from seal_ray.storage.paths import AnyPath, ObjectPath, storage_path, with_home
from seal_ray.sweeps.file import load_sweep
from seal_ray.tracking.environment import sent_variables

JobKind = Literal["train", "sweep", "analyze", "transfer", "fewshot"]

UPLOAD_LIMIT = 100 * 2**20
"""Bytes that are sent at most; the head keeps them in memory."""
STOP_TIMEOUT = 3600
"""Seconds that a job which was asked to stop has for the epoch it is in, before Ray kills it."""
HEAD_TIMEOUT = 10.0
"""Seconds until an address where nobody answers is given up; Ray's own client waits for minutes."""
AGENT_TIMEOUT = 60.0
"""Seconds that a head which has just started gets until it accepts jobs."""
STATUS_INTERVAL = 1.0
"""Seconds between two questions to the cluster."""
TRIES = 5
"""How often a connection that carries a job's log may break without having carried anything."""
VERSION_BYTES = 2**16
"""Of what is said of a version, how much is read."""
OTHER = "not as Ray's dashboard, which is usually at port 8265; see --address"
JOB_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
METADATA_KEY = "seal_ray"
"""The key of a job's metadata that holds its kind."""
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell of each upload and each closed connection."""


@dataclass(frozen=True)
class JobSpec:
    """What a job does: `python -m seal_ray KIND ARGUMENTS`."""

    kind: JobKind
    name: str  # the same for the same work; the submission ids begin with it
    files: tuple[Path, ...]  # the YAML file and what it refers to, below the working directory
    arguments: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The command. `exec` leaves no shell between Ray, which sends signals, and the driver.

        A head that was started without its environment activated often has a python3 only; that one then says
        what it lacks.
        """
        words = shlex.join(["-m", "seal_ray", self.kind, *self.arguments])
        return f'exec "$(command -v python || command -v python3)" {words}'


def training_spec(
    kind: JobKind,
    file: Path,
    overrides: Sequence[str] = (),
    options: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> JobSpec:
    """The training that a YAML file describes, after overrides; options are those of `seal-ray KIND`.

    plugins: files of code beside those that the YAML names; all of them are sent. ConfigError for
    whatever is wrong with the file, for one outside the working directory, and for paths of data or storage
    that are relative: nobody would find again what is stored in a job's own folder.
    """
    if kind == "train":
        job = load_job(file, overrides, plugins)
        name, jobs, rest = job.name, [job], None
    else:
        sweep = load_sweep(file, overrides, plugins)
        name, jobs = sweep.name, [run.job for run in sweep.runs]
        rest = sweep.early_stopping and sweep.early_stopping.model_dump()
        if sweep.space is not None:
            rest = sweep.space.search.model_dump()
    sent = tuple(map(_below_here, [*_files_of(file, overrides), *plugins]))
    computed = [kind, *_computed(file, jobs), rest]
    computed += [jobs[0].plugins] if jobs[0].plugins else []
    given = [("--set", text) for text in overrides] + [("--plugin", str(_below_here(one))) for one in plugins]
    words = [word for pair in given for word in pair]
    arguments = (str(sent[0]), *words, *options, "--address", "auto")
    return JobSpec(kind, _name(name, kind, computed), sent, arguments)


def analysis_spec(kind: JobKind, target: AnyPath, options: Mapping[str, Sequence[str]]) -> JobSpec:
    """The analysis, transfer or few-shot of a sweep, by its YAML file, or of a folder that all hosts find.

    options: of `seal-ray KIND`, each with the words that follow it, once for each time it is given; none for
    a flag.
    ConfigError as training_spec, and for an option that a job cannot have.
    """
    for option in ("--address", "--in-process", "--weights", "--arch", "--trained-on"):
        if option in options:
            raise ConfigError(f"{option}: is not for a job on a cluster; leave it out")
    given = {option: list(values) for option, values in options.items()}
    files: list[Path] = []
    if isinstance(target, Path) and target.is_file():
        overrides = stored_in(*given.get("--storage", [None]))
        files = _files_of(target, overrides)
        computed: Any = _computed(target, [run.job for run in load_sweep(target, overrides).runs])
    elif _found_anywhere(str(target)):
        computed = str(target)
    else:
        raise ConfigError(
            f"{target}: is no file here, and as a folder on the cluster it must be absolute, such as "
            f"/mnt/{target.name}"
        )
    named: dict[Path, str] = {}
    for option in ("--evaluation", "--plugin"):
        if paths := [Path(value) for value in given.get(option, ())]:
            named |= {one: _text(option, one) for one in paths}
            given[option] = [str(_below_here(one)) for one in paths]
    targets = ",".join([*given.get("--to", []), *given.get("--on", [])]).split(",")
    by_name = kind != "analyze" and not all(map(_found_anywhere, targets))
    if by_name and not all(map(_found_anywhere, given.get("--data", ["data"]))):
        raise ConfigError(
            "--data: name the folder of the prepared data sets as the cluster's hosts find it, such as "
            "--data /mnt/data"
        )
    sent = tuple(map(_below_here, [*files, *named]))
    words = [
        word
        for option, values in sorted(given.items())
        for word in ([w for value in values for w in (option, value)] or [option])
    ]
    arguments = (str(target if computed == str(target) else sent[0]), *words, "--address", "auto")
    return JobSpec(
        kind,
        _name(f"{kind}-{target.stem}", kind, [kind, computed, words, [*named.values()]]),
        sent,
        arguments,
    )


def _text(option: str, file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"{option}: {file} cannot be read: {said}") from None


def _files_of(file: Path, overrides: Sequence[str]) -> list[Path]:
    """The file of a run or a sweep, and what it refers to: a sweep's base, and the plugin files of both."""
    held = override(read(file), overrides).value
    base = held.get("base")
    base = None if base is None else with_home(base)
    if base is not None and Path(base).is_absolute():
        raise ConfigError(f"{file}: base: {base} is absolute; to be sent it must be relative to {file}")
    code = [file.parent / entry for entry in held.get(FOLDER, ())]
    return [file, *code] if base is None else [file, *_files_of(file.parent / base, ()), *code]


def _computed(file: Path, jobs: Sequence[Job]) -> list[Any]:
    """What the jobs of a file compute and where it is stored; ConfigError for paths that are relative."""
    fields = [("placement.storage", jobs[0].placement.storage)]
    fields += [("recipe.data.path", path) for path in dict.fromkeys(one.recipe.data.path for one in jobs)]
    starts = dict.fromkeys(one.recipe.model.init_from for one in jobs)
    fields += [("recipe.model.init_from", path) for path in starts if path is not None]
    problems = [
        f"{file}: {field}: {path} is relative, on a cluster to a folder that is removed with the job; give "
        f"the path under which all its hosts find it, such as --set {field}=/mnt/{Path(path).name}"
        for field, path in fields
        if not _found_anywhere(path)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return [jobs[0].placement.storage, [one.recipe.model_dump(mode="json") for one in jobs]]


def _name(name: str, kind: JobKind, computed: Any) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:40].strip("-.") or kind
    return f"{readable}-{hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:8]}"


def _below_here(file: Path) -> Path:
    """The file's place below the working directory, which it has on the cluster too."""
    here = Path.cwd()
    full = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow links
    if not full.is_relative_to(here):
        raise ConfigError(
            f"{file}: is outside the working directory {here}; files are sent by their place below it, so "
            "give the command in a folder above all of them, or copy the file"
        )
    return full.relative_to(here)


def _found_anywhere(path: str) -> bool:
    """Whether a path means the same wherever a job runs."""
    place = storage_path(path)
    return isinstance(place, ObjectPath) or place.is_absolute()


def sent_files(spec: JobSpec) -> dict[Path, Path]:
    """What is sent: for each path in the job's folder the file here. ConfigError when it is too much."""
    package = Path(__file__).parent
    found = {file: file for file in spec.files}
    for folder in (package, package / "analysis"):  # a link in a checkout, which rglob does not follow
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        found |= {p.relative_to(package.parent): p for p in files if "__pycache__" not in p.parts}
    sizes = {source: source.stat().st_size for source in found.values()}
    if sum(sizes.values()) > UPLOAD_LIMIT:
        largest = max(sizes, key=lambda source: sizes[source])
        raise ConfigError(
            f"{sum(sizes.values()) / 2**20:,.0f} MiB would be sent, {UPLOAD_LIMIT // 2**20} are the limit; "
            f"the largest file is {largest}: move what is no code out of {package}"
        )
    return found


def connect(address: str) -> Any:
    """A client of the Jobs API at `address`, the http address of a cluster's dashboard.

    ClusterError when nobody answers there, or when the cluster wants another token than the one we have.
    """
    if not address:
        raise ConfigError("--address: name the cluster's dashboard, such as http://HEAD:8265")
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address: {address!r} is not the address of a Ray dashboard, such as http://HEAD:8265"
        )
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    _check_answers(address, headers)
    from ray.job_submission import JobSubmissionClient

    for talkative in TALKATIVE:
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with _cluster_errors(address), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        return JobSubmissionClient(address, headers=headers)


def _token() -> str | None:
    """The token where Ray looks for it; None when there is none, or RAY_AUTH_MODE names another mode."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    token, named = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token:
        path = Path(named or "~/.ray/auth_token").expanduser()
        try:
            token = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            if named:
                raise ClusterError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read: {error}") from None
    token = token.strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ClusterError("the Ray token holds characters that cannot be sent; it must be one line of ASCII")
    return token or None


def _check_answers(address: str, headers: dict[str, str]) -> None:
    """Ask for the version, to see that Ray's dashboard answers, whatever else listens there."""
    # `connect` has seen to it that this is http or https.
    request = urllib.request.Request(f"{address}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=HEAD_TIMEOUT) as answer:  # nosec B310
            said = answer.read(VERSION_BYTES)
    except HTTPError as error:
        if error.code in (401, 403):
            raise _refused(address) from None
        raise ClusterError(f"{address}: answers {error.code}, but {OTHER}") from None
    except (OSError, InvalidURL, ValueError) as error:
        raise ClusterError(
            f"{address}: no Ray dashboard answers ({error}); see that the head runs, with --dashboard-host, "
            "and that its port is reachable from here: on Kubernetes by `kubectl port-forward`, elsewhere "
            "through an SSH tunnel"
        ) from None
    except HTTPException:  # its text is what was sent
        raise ClusterError(f"{address}: answers, but {OTHER}") from None
    if b'"ray_version"' not in said:
        raise ClusterError(f"{address}: answers, but {OTHER}")


def _refused(address: str) -> ClusterError:
    return ClusterError(
        f"{address}: the cluster refuses: no token, or not its own; nothing was done. Set RAY_AUTH_TOKEN, or "
        "RAY_AUTH_TOKEN_PATH to a file, to what the head was started with"
    )


@contextlib.contextmanager
def _cluster_errors(address: str) -> Iterator[None]:
    """What goes wrong between us and the cluster becomes a ClusterError."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise _refused(address) from None
    except (OSError, RuntimeError) as error:
        said = (str(error).strip(" .\n") or type(error).__name__).splitlines()[-1]
        raise ClusterError(f"{address}: {_printable(said)}; jobs that run are not affected") from error


def _printable(text: str) -> str:
    """What somebody else sent, without colours, and with a space for what would steer a terminal."""
    plain = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text)
    return "".join(one if one.isprintable() else " " for one in plain)


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide environment variables: Ray lets them win over the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def job_environment(given: Sequence[str] = (), files: Sequence[Path] = ()) -> dict[str, str]:
    """Environment variables for a job: of files first, then those given as NAME=VALUE, or NAME as it is here.

    A file has one such line a variable; values are taken as they stand, and # begins a comment line.
    ConfigError says which one is wrong, and of what stands there no more than the NAME of a command line: the
    rest may be a secret.
    """
    lines = [(f"--env-file: {file}:{number}", line) for file in files for number, line in _lines(file)]
    found = {}
    for where, text in [*lines, *((f"--env {number}", text) for number, text in enumerate(given, 1))]:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"{where}: is not NAME=VALUE, or NAME of a variable that is set here")
        if not equals and name not in os.environ:
            said = name if where.startswith("--env ") else "of that name"  # a file's line may be half a key
            raise ConfigError(f"{where}: no variable {said} is set here; give NAME=VALUE, or set it first")
        if name == "RAY_ADDRESS":
            raise ConfigError(f"{where}: RAY_ADDRESS is set by Ray in its jobs; leave it out")
        found[name] = value if equals else os.environ[name]
    return found


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a file that are neither empty nor comments, and their numbers."""
    lines = enumerate(map(str.strip, _text("--env-file", file).splitlines()), 1)
    return [(n, line) for n, line in lines if line and line[0] != "#"]


def submit(
    client: Any, spec: JobSpec, note: Callable[[str], None], environment: Mapping[str, str] | None = None
) -> str:
    """Start the job unless one that does the same runs; returns its submission id.

    environment: variables for all processes of the job, see `job_environment`.
    """
    environment = environment or {}
    with tempfile.TemporaryDirectory(prefix="seal-ray-submit-") as scratch:
        for place, source in sent_files(spec).items():
            (Path(scratch) / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, Path(scratch) / place)
        while True:
            held = attempts(spec.name, _all_jobs(client))
            running = [job for job in held.values() if job.status not in JOB_ENDED]
            if running:
                found = running[-1]
                kept = "; its environment stays as it is" if environment else ""
                if found.entrypoint != spec.entrypoint:
                    other = _printable(found.entrypoint.partition("seal_ray ")[2])
                    kept += f"; it has other options: {other}"
                note(f"{found.submission_id}: is {_status(found)} already, so nothing was submitted{kept}")
                return str(found.submission_id)
            attempt = f"{spec.name}-a{max(held, default=0) + 1}"
            if _start(client, spec, attempt, scratch, environment):
                note(f"{attempt}: submitted")
                return attempt


def _start(client: Any, spec: JobSpec, attempt: str, folder: str, environment: Mapping[str, str]) -> bool:
    """Start a job; False when somebody else has just used its id."""
    variables = {
        **sent_variables(),
        **RAY_SETTINGS,
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT),
        **environment,
    }
    deadline = time.monotonic() + AGENT_TIMEOUT
    while True:
        with _cluster_errors(client.get_address()):
            try:
                client.submit_job(
                    entrypoint=spec.entrypoint,
                    submission_id=attempt,
                    runtime_env={"working_dir": folder, "env_vars": variables},
                    metadata={METADATA_KEY: spec.kind, "file": str(spec.files[0]), "work": spec.name},
                )
                return True
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                if "No available agent" not in str(error):
                    raise
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{client.get_address()}: the head accepts no jobs: its agent does not run. Its log, "
                "dashboard_agent.log, says why; often --dashboard-agent-listen-port is taken"
            )
        time.sleep(STATUS_INTERVAL)


def attempts(name: str, jobs: Sequence[Any]) -> dict[int, Any]:
    """The attempts at a job among the cluster's jobs, by their number, in order."""
    pattern = re.compile(re.escape(name) + r"-a([1-9]\d*)")
    matches = [(pattern.fullmatch(job.submission_id or ""), job) for job in jobs]
    return dict(sorted(((int(match[1]), job) for match, job in matches if match), key=lambda pair: pair[0]))


def list_jobs(client: Any) -> list[dict[str, Any]]:
    """The cluster's jobs, oldest first, each as `describe_job` has it."""
    jobs = [job for job in _all_jobs(client) if job.submission_id and _kind(job) != "kill"]
    return [_described(client, job) for job in sorted(jobs, key=lambda job: job.start_time or 0)]


def describe_job(client: Any, name: str) -> dict[str, Any]:
    """One job: id, kind, file, status, started, ended and `last`, the last line it printed.

    That line says where its run or sweep is. name: a submission id, or a job's name for its last attempt.
    ClusterError when there is no such job. Times are ISO 8601, UTC; of jobs that others submitted the kind
    is null and the file their command.
    """
    return _described(client, _find(client, name))


def logs(client: Any, name: str) -> str:
    """What a job has printed so far."""
    return _printed(client, _find(client, name))


def follow(client: Any, name: str, write: Callable[[str], object]) -> str:
    """Pass on what a job prints, from its beginning, until it has ended; returns its status.

    A connection that breaks is made anew. Interrupting it leaves the job alone.
    """
    from aiohttp import ClientError

    job = str(_find(client, name).submission_id)
    shown = fruitless = 0

    async def pass_on() -> None:
        nonlocal shown
        seen = 0
        async for text in client.tail_job_logs(job):  # each time from the beginning
            fresh = text[max(0, shown - seen) :]
            seen += len(text)
            shown = max(shown, seen)
            write(fresh)

    while True:
        before = shown
        try:
            asyncio.run(pass_on())
        except BrokenPipeError:
            raise  # nobody reads what is written
        except (ClientError, OSError, RuntimeError):  # the connection broke
            fruitless = 0 if shown > before else fruitless + 1
        found = _find(client, job)
        if found.status in JOB_ENDED:
            write(_printed(client, found)[shown:])
            return _status(found)
        if fruitless > TRIES:
            raise ClusterError(
                f"{client.get_address()}: does not pass on what {job} prints, perhaps for a proxy without "
                f"WebSockets; the job goes on, see `seal-ray jobs logs {job}`"
            )
        time.sleep(STATUS_INTERVAL)


def stop(client: Any, name: str, note: Callable[[str], None], *, now: bool = False) -> str:
    """Let a job end at its next epoch boundary and wait until it has; returns its status.

    now: kill it, which costs what came after the last committed epoch. Interrupting the wait changes nothing.
    """
    job = _find(client, name)
    if job.status in JOB_ENDED:
        note(f"{job.submission_id}: has ended already")
        return _status(job)
    with _cluster_errors(client.get_address()):
        client.stop_job(job.submission_id)
    if now:
        _kill(client, job)
    else:
        trains = _kind(job) in ("train", "sweep")
        when = " at the next epoch boundary; `--now` would not wait for it" if trains else ""
        note(f"{job.submission_id}: stopping{when}")
    while (job := _find(client, job.submission_id)).status not in JOB_ENDED:
        time.sleep(STATUS_INTERVAL)
    return _status(job)


def _kill(client: Any, job: Any) -> None:
    """Kill a job's driver, by a job on its host. One that has no driver yet ends when it is asked to."""
    if job.driver_info is None or job.driver_node_id is None:
        return
    # Its environment names the job; another process may have its number by now.
    process = f"/proc/{int(job.driver_info.pid)}"
    with _cluster_errors(client.get_address()):
        client.submit_job(
            entrypoint=f"grep -qaF {shlex.quote(job.submission_id)} {process}/environ && "
            f"kill -KILL {int(job.driver_info.pid)}",
            entrypoint_label_selector={"ray.io/node-id": job.driver_node_id},
            metadata={METADATA_KEY: "kill"},
        )


def _all_jobs(client: Any) -> list[Any]:
    with _cluster_errors(client.get_address()):
        return list(client.list_jobs())


def _find(client: Any, name: str) -> Any:
    jobs = _all_jobs(client)
    found = [job for job in jobs if job.submission_id == name] or list(attempts(name, jobs).values())
    if not found:
        raise ClusterError(f"{client.get_address()}: has no job {name}; `seal-ray jobs` lists them")
    return found[-1]


def _printed(client: Any, job: Any) -> str:
    with _cluster_errors(client.get_address()):
        return str(client.get_job_logs(job.submission_id))


def _described(client: Any, job: Any) -> dict[str, Any]:
    said = _printed(client, job) if job.status == "RUNNING" else job.message or ""
    return {
        "id": _printable(job.submission_id),
        "kind": _kind(job),
        "file": _printable((job.metadata or {}).get("file", job.entrypoint)),
        "status": _status(job),
        "started": _time(job.start_time),
        "ended": _time(job.end_time),
        "last": _printable((said.strip().splitlines() or [""])[-1]).strip(),
    }


def _kind(job: Any) -> str | None:
    kind = (job.metadata or {}).get(METADATA_KEY)
    return _printable(kind) if kind else None


def _status(job: Any) -> str:
    return str(job.status.value).lower()


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
