"""The sbatch script, run by a real bash; Slurm, Ray and seal-ray are stand-ins that note what is asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.cluster.material import CLUSTER, succeeds, tool

SCRIPT = CLUSTER / "slurm/seal-ray.sbatch"
STANDINS = {
    # A node counts once it has come up; the head takes a moment.
    "ray": """
        echo "ray $* auth=$RAY_AUTH_MODE" >> log
        case "$1" in
          get-auth-token) mkdir -p "$HOME/.ray"; printf secret-token | tee "$HOME/.ray/auth_token" ;;
          status) for _ in nodes/*; do echo " 1 node_0123abc"; done ;;
          start)
            [[ "$*" = *--head* ]] && sleep 5
            [ -e broken ] || touch "nodes/$$"
            trap 'echo "ended $*" >> log; exit 0' TERM
            while :; do sleep 5; done ;;
        esac
        """,
    "srun": """
        echo "srun $* nodes=$(ls nodes | wc -l)" >> log
        trap 'kill $(jobs -p); wait; exit 0' TERM
        tasks=1
        for word in "$@"; do
          shift
          case "$word" in --ntasks=*) tasks=${word#*=} ;; --*) ;; *) break ;; esac
        done
        for ((i = 0; i < tasks; i++)); do "$word" "$@" & done
        while :; do wait; sleep 5; done
        """,
    "scontrol": """
        echo "scontrol $*" >> log
        case "$*" in
          "show hostnames "*) printf '%s\\n' ${HOSTS} ;;
          "show job "*) echo "JobId=7 JobState=${STATE} Reason=None" ;;
        esac
        """,
    "seal-ray": """
        echo "seal-ray $* nodes=$(ls nodes | wc -l)" >> log
        trap 'echo "stopping at the epoch" >> log; sleep 5; sleep 5; exit 1' TERM
        while [ -e endless ]; do sleep 5; done
        exit "$ENDS"
        """,
    "sleep": "exec /bin/sleep 0.05",
}


@dataclass
class Slurm:
    """A submit folder with stand-ins, and the jobs that were started in it."""

    folder: Path
    jobs: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, hosts: str = "n1 n2 n3", state: str = "RUNNING", ends: int = 0) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_GPUS_ON_NODE": "4",
            "HOSTS": hosts,
            "STATE": state,
            "ENDS": str(ends),
        }
        for node in (self.folder / "nodes").iterdir():
            node.unlink()
        self.jobs.append(
            subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )

    def signal(self) -> None:
        """What --signal=B:TERM does: the script's shell alone gets it."""
        self.jobs[-1].send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """The job's exit code and its output, once it has ended."""
        output, _ = self.jobs[-1].communicate(timeout=60)
        return self.jobs[-1].returncode, output

    def log(self) -> list[str]:
        """What the stand-ins were told, apart from looks at how many nodes there are."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("ray status")]

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (tmp_path / "nodes").mkdir()
    for name, body in STANDINS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\nshopt -s nullglob\n{body.strip()}\n")
        (programs / name).chmod(0o755)
    slurm = Slurm(tmp_path)
    yield slurm
    for job in slurm.jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def starts(log: list[str], command: str, word: str = "") -> list[int]:
    return [i for i, line in enumerate(log) if line.startswith(command) and word in line]


RUN = ("train", "jobs/runs/laptop/seal.yaml", "--workers", "2")


def test_shellcheck_finds_nothing() -> None:
    succeeds(tool("shellcheck"), SCRIPT)


def test_slurm_is_asked_to_warn_and_to_queue_again() -> None:
    asked = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)
    (warning,) = [one for one in asked if one.startswith("--signal=")]
    assert re.fullmatch(r"--signal=B:TERM@\d+", warning)


def test_the_head_then_the_workers_then_the_driver(slurm: Slurm) -> None:
    slurm.start(*RUN)
    code, output = slurm.end()
    assert code == 0, output
    log = slurm.log()
    (head,) = starts(log, "ray start", "--head")
    (step,) = starts(log, "srun")
    workers = starts(log, "ray start", "--address=n1:20007")
    (driver,) = starts(log, "seal-ray")
    assert head < step < min(workers)
    assert len(workers) == 2
    assert max(workers) < driver
    assert "--nodes=2 --ntasks=2 --exclude=n1 --cpus-per-task=8" in log[step]
    assert log[step].endswith("nodes=1")  # the head's
    assert "--port=20007 --include-dashboard=false --num-cpus=8 --num-gpus=4" in log[head]
    assert log[driver] == f"seal-ray {' '.join(RUN)} --address auto nodes=3"
    assert all("auth=token" in log[i] for i in (head, *workers))
    assert not starts(log, "scontrol requeue")


def test_workers_wait_for_the_head(slurm: Slurm) -> None:
    (slurm.folder / "broken").touch()
    slurm.start(*RUN)
    code, output = slurm.end()
    assert code == 1
    assert "error: of 1 Ray nodes 0 have come up" in output
    assert not starts(slurm.log(), "srun")
    assert not starts(slurm.log(), "seal-ray")


def test_one_node_needs_no_step(slurm: Slurm) -> None:
    slurm.start(*RUN, hosts="n1")
    assert slurm.end()[0] == 0
    assert not starts(slurm.log(), "srun")
    assert starts(slurm.log(), "seal-ray", "nodes=1")


def test_a_failure_is_the_job_s_and_ray_ends_with_it(slurm: Slurm) -> None:
    slurm.start(*RUN, ends=3)
    assert slurm.end()[0] == 3
    assert len(starts(slurm.log(), "ended start")) == 3
    assert not any(str(slurm.folder) in str(one.info["cwd"]) for one in psutil.process_iter(["cwd"]))


def test_term_reaches_the_driver_and_the_job_queues_again_and_goes_on(slurm: Slurm) -> None:
    (slurm.folder / "endless").touch()
    slurm.start(*RUN)
    slurm.until(lambda: bool(starts(slurm.log(), "seal-ray")))
    slurm.signal()
    assert slurm.end()[0] == 1  # as a stopped run ends
    log = slurm.log()
    (stopping,) = starts(log, "stopping at the epoch")
    (requeue,) = starts(log, "scontrol requeue 7")
    assert stopping < requeue < min(starts(log, "ended start"))  # Ray stays until the epoch is committed
    (slurm.folder / "endless").unlink()
    slurm.start(*RUN)
    assert slurm.end()[0] == 0
    first, second = starts(slurm.log(), "seal-ray")
    assert slurm.log()[first] == slurm.log()[second]


def test_what_was_cancelled_does_not_come_back(slurm: Slurm) -> None:
    (slurm.folder / "endless").touch()
    slurm.start(*RUN, state="COMPLETING")
    slurm.until(lambda: bool(starts(slurm.log(), "seal-ray")))
    slurm.signal()
    slurm.end()
    assert starts(slurm.log(), "stopping at the epoch")
    assert not starts(slurm.log(), "scontrol requeue")


def test_term_before_the_driver_starts_nothing_more(slurm: Slurm) -> None:
    (slurm.folder / "broken").touch()
    slurm.start(*RUN)
    slurm.until(lambda: bool(starts(slurm.log(), "ray start")))
    slurm.signal()
    slurm.end()
    assert starts(slurm.log(), "scontrol requeue 7")
    assert not starts(slurm.log(), "seal-ray")


def test_the_token_is_made_once_for_its_owner_alone_and_never_shown(slurm: Slurm) -> None:
    for _ in range(2):
        slurm.start(*RUN)
        assert "secret-token" not in slurm.end()[1]
    token = slurm.folder / "home/.ray/auth_token"
    assert token.stat().st_mode & 0o077 == 0
    assert len(starts(slurm.log(), "ray get-auth-token")) == 1
    assert "secret-token" not in "".join(slurm.log())


def test_without_a_file_it_says_how_it_is_used(slurm: Slurm) -> None:
    slurm.start("train")
    code, output = slurm.end()
    assert code == 2
    assert output.startswith("usage: sbatch cluster/slurm/seal-ray.sbatch train|sweep FILE")
