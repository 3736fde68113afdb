"""Ctrl-C in real processes, which wait for what the test holds back: each says what becomes of its work."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def interrupted(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """A command that has been started in a folder, and what it prints."""
    return subprocess.Popen(
        [sys.executable, "-m", "seal_ray", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train held", "the same command goes on after the last committed epoch"),
        ("sweep held", "the same command goes on after the last committed epoch"),
        ("transfer runs --evaluation held --in-process", "the same command goes on with what is left"),
        ("submit train held --address http://127.0.0.1:1 --follow", "what was submitted goes on, `seal-ray"),
        (
            "data prepare folder --to there --source images --val-share 0.5 --size 8",
            "nothing half-done is left, the same command begins anew",
        ),
    ],
    ids=lambda text: text.split()[0],
)
def test_ctrl_c_says_what_becomes_of_the_work(arguments: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "images" / "cats").mkdir(parents=True)
    os.mkfifo(tmp_path / "held")
    (tmp_path / "images" / "cats" / "cat.png").symlink_to(tmp_path / "held")
    process = interrupted(arguments.split(), tmp_path)
    held = os.open(tmp_path / "held", os.O_WRONLY)  # waits until the command reads
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    os.close(held)
    assert process.returncode == 130, printed
    assert printed.startswith(f"stopped at once; {said}"), printed
    assert len(printed.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"held", "images"}


def test_ctrl_c_while_a_job_is_watched_leaves_the_job_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"http://127.0.0.1:{head.getsockname()[1]}"
        process = interrupted(["jobs", "logs", "mine-a1", "--follow", "--address", address], tmp_path)
        connection, _ = head.accept()  # a head that does not answer
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
        connection.close()
    assert process.returncode == 130
    assert printed == "stopped at once; what was submitted goes on, `seal-ray jobs` lists it\n"
