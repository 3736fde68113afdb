"""Send work to a Ray cluster as jobs, watch them, and stop them between two epochs.

Ray never accepts a submission id twice, so the attempts at some work are `<name>-a1`, `<name>-a2`, ...; each
goes on where the run folders stand.

A stopped job gets SIGTERM, which `train` and `sweep` obey at the next epoch boundary; analyses end at once
and lose the pieces in hand. By default Ray kills a job 3 s later; the process that does so has the job's own
environment, through which we give it STOP_WAIT.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seal_ray.distributed.launch import RAY_SETTINGS
from seal_ray.errors import ClusterError
from seal_ray.head import asking
from seal_ray.work import Work, contents

STOP_WAIT = 3600
"""Seconds that a job which was asked to stop has for the epoch it is in, before Ray kills it."""
PATIENCE = 60.0
"""Seconds that a head which has just started gets until it accepts jobs."""
POLL = 1.0
"""Seconds between two questions to the cluster."""
TRIES = 5
"""How often a connection that carries a job's log may break without having carried anything."""
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
TRAINS = ("train", "sweep")
"""Kinds of work that end between two epochs."""
MARK = "seal_ray"
"""The key of a job's metadata that holds its kind."""


def submit(client: Any, work: Work, note: Callable[[str], None]) -> str:
    """Start the work, or attach to the job that does it; returns its submission id."""
    with tempfile.TemporaryDirectory(prefix="seal-ray-submit-") as scratch:
        for place, source in contents(work).items():
            (Path(scratch) / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, Path(scratch) / place)
        while True:
            with asking(client.get_address()):
                held = attempts(work.name, client.list_jobs())
            running = [job for job in held.values() if job.status not in ENDED]
            if running:
                found = running[-1]
                note(f"{found.submission_id}: is {_status(found)} already, attached to it")
                return str(found.submission_id)
            attempt = f"{work.name}-a{max(held, default=0) + 1}"
            if _start(client, work, attempt, scratch):
                note(f"{attempt}: submitted")
                return attempt


def attempts(name: str, jobs: Sequence[Any]) -> dict[int, Any]:
    """The attempts at some work among the cluster's jobs, by their number, in order."""
    pattern = re.compile(re.escape(name) + r"-a([1-9]\d*)")
    matches = [(pattern.fullmatch(job.submission_id or ""), job) for job in jobs]
    return dict(sorted(((int(match[1]), job) for match, job in matches if match), key=lambda pair: pair[0]))


def list_jobs(client: Any) -> list[dict[str, Any]]:
    """The cluster's jobs, oldest first, each as `describe` has it."""
    with asking(client.get_address()):
        jobs = [job for job in client.list_jobs() if job.submission_id and _kind(job) != "kill"]
    return [_described(client, job) for job in sorted(jobs, key=lambda job: job.start_time or 0)]


def describe(client: Any, name: str) -> dict[str, Any]:
    """One job: id, kind, file, status, started, ended and `last`, the last line it printed.

    That line says where its run or sweep is. name: a submission id, or some work's name for its last attempt.
    ClusterError when there is no such job. Times are ISO 8601, UTC; of jobs that others submitted the kind
    is null and the file their command.
    """
    return _described(client, _find(client, name))


def logs(client: Any, name: str) -> str:
    """What a job has printed so far."""
    found = _find(client, name)
    with asking(client.get_address()):
        return str(client.get_job_logs(found.submission_id))


def follow(client: Any, name: str, write: Callable[[str], object]) -> str:
    """Pass on what a job prints, from its beginning, until it has ended; returns its status.

    A connection that breaks is made anew. Interrupting it leaves the job alone.
    """
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
        except _breaks():
            fruitless = 0 if shown > before else fruitless + 1
        found = _find(client, job)
        if found.status in ENDED:
            write(logs(client, job)[shown:])
            return _status(found)
        if fruitless > TRIES:
            raise ClusterError(
                f"{client.get_address()}: does not pass on what {job} prints, perhaps for a proxy without "
                f"WebSockets; the job goes on, see `seal-ray jobs logs {job}`"
            )
        time.sleep(POLL)


def stop(client: Any, name: str, note: Callable[[str], None], *, now: bool = False) -> str:
    """Let a job end at its next epoch boundary and wait until it has; returns its status.

    now: kill it, which costs what came after the last committed epoch. Interrupting the wait changes nothing.
    """
    job = _find(client, name)
    if job.status in ENDED:
        note(f"{job.submission_id}: has ended already")
        return _status(job)
    with asking(client.get_address()):
        client.stop_job(job.submission_id)
    if now:
        _kill(client, job)
    else:
        when = " at the next epoch boundary; `--now` would not wait for it" if _kind(job) in TRAINS else ""
        note(f"{job.submission_id}: stopping{when}")
    while (job := _find(client, job.submission_id)).status not in ENDED:
        time.sleep(POLL)
    return _status(job)


def _start(client: Any, work: Work, attempt: str, folder: str) -> bool:
    """Start a job; False when somebody else has just used its id."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with asking(client.get_address()):
            try:
                client.submit_job(
                    entrypoint=work.entrypoint,
                    submission_id=attempt,
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {**RAY_SETTINGS, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT)},
                    },
                    metadata={MARK: work.kind, "file": str(work.files[0]), "work": work.name},
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                if "No available agent" not in str(error):
                    raise
            else:
                return True
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{client.get_address()}: the head accepts no jobs: its agent does not run. Its log, "
                "dashboard_agent.log, says why; often --dashboard-agent-listen-port is taken"
            )
        time.sleep(POLL)


def _find(client: Any, name: str) -> Any:
    with asking(client.get_address()):
        jobs = client.list_jobs()
    found = [job for job in jobs if job.submission_id == name] or list(attempts(name, jobs).values())
    if not found:
        raise ClusterError(f"{client.get_address()}: has no job {name}; `seal-ray jobs` lists them")
    return found[-1]


def _described(client: Any, job: Any) -> dict[str, Any]:
    said = job.message or ""
    if job.status == "RUNNING":
        with asking(client.get_address()):
            said = client.get_job_logs(job.submission_id)
    return {
        "id": job.submission_id,
        "kind": _kind(job),
        "file": (job.metadata or {}).get("file", job.entrypoint),
        "status": _status(job),
        "started": _time(job.start_time),
        "ended": _time(job.end_time),
        "last": (said.strip().splitlines() or [""])[-1].strip(),
    }


def _kind(job: Any) -> str | None:
    kind = (job.metadata or {}).get(MARK)
    return str(kind) if kind else None


def _status(job: Any) -> str:
    return str(job.status.value).lower()


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _breaks() -> tuple[type[Exception], ...]:
    """What is raised when a connection breaks."""
    from aiohttp import ClientError

    return ClientError, OSError, RuntimeError


def _kill(client: Any, job: Any) -> None:
    """Kill a job's driver, by a job on its host. One that has no driver yet ends when it is asked to."""
    if job.driver_info is None or job.driver_node_id is None:
        return
    # Its environment names the job; another process may have its number by now.
    process = f"/proc/{int(job.driver_info.pid)}"
    with asking(client.get_address()):
        client.submit_job(
            entrypoint=f"grep -qaF {shlex.quote(job.submission_id)} {process}/environ && "
            f"kill -KILL {int(job.driver_info.pid)}",
            entrypoint_label_selector={"ray.io/node-id": job.driver_node_id},
            metadata={MARK: "kill"},
        )
