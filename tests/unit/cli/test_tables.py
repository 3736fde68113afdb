"""Tables on narrow terminals, and where nothing is as narrow as one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from seal_ray.cli.tables import jobs_table, runs_table
from seal_ray.tracking.table import Column, FittedTable

ROOT = Path(__file__).parents[3]
IDS = ["first-25b188aa-a1", "paper-tiny-imagenet-0c1d2e3f-a12"]
LAST = "2026-11-29 02:00:00 seal-s0-1427417236: generation 3 of 10, top1  58.2 %, 12 epochs left"
JOBS = [
    {
        **{"id": name, "kind": kind, "file": "jobs/sweeps/paper-tiny-imagenet.yaml", "status": status},
        **{"started": "2026-11-29T01:58:03+00:00", "ended": None, "last": LAST},
    }
    for name, kind, status in zip(IDS, ["train", "transfer"], ["succeeded", "running"], strict=True)
]


def printed(table: object, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [60, 80, 100, 1000])
def test_ids_kinds_and_statuses_of_jobs_are_whole(width: int) -> None:
    lines = printed(jobs_table(JOBS, "http://127.0.0.1:8265"), width)
    assert max(map(len, lines)) <= width
    for job in JOBS:
        [line] = [line for line in lines if str(job["id"]) in line]
        assert {job["kind"], job["status"]} <= set(line.split())
    assert (LAST in "\n".join(lines)) == (width == 1000)


def test_what_ran_last_is_folded_before_it_is_left_out() -> None:
    lines = printed(jobs_table(JOBS[:1], ""), 80)
    assert lines[0].split() == ["id", "kind", "file", "status", "last"]
    assert LAST.split() == " ".join(line[lines[0].index("last") :] for line in lines[2:]).split()


def test_runs_are_whole_at_80_columns() -> None:
    run: dict[str, Any] = {
        **{"id": "a-sweep-of-mine-s12-1427417236", "epochs_done": 4, "epochs": 160, "reason": ""},
        **{"status": "interrupted", "top1": 58.2, "best_top1": 60.0, "images_per_second": 12_345.0},
        "ascents": [{"loss_before": 1.5, "loss_after": 2.5}] * 9,
    }
    lines = printed(runs_table([run], "runs"), 80)
    assert max(map(len, lines)) <= 80
    [line] = [line for line in lines if run["id"] in line]
    assert line.split()[1:4] == ["4/160", "interrupted", "58.2"]
    assert " ".join(lines).split().count("1.50") == 9


def test_where_nothing_else_does_every_cell_is_folded() -> None:
    table = FittedTable("", [Column("id"), Column("of")], [[IDS[1], "1234567890"]])
    lines = printed(table, 24)
    assert max(map(len, lines)) <= 24
    at = lines[0].index("of")
    assert "".join(line[:at].strip() for line in lines[2:]) == IDS[1]
    assert "".join(line[at:].strip() for line in lines[2:]) == "1234567890"


def test_a_pipe_gets_all_of_a_table(tmp_path: Path) -> None:
    """From the command itself, and a dashboard that answers as Ray's does."""
    listed = [
        {
            **{"type": "SUBMISSION", "submission_id": job["id"], "status": "SUCCEEDED", "message": LAST},
            **{"entrypoint": "exec x", "metadata": {"seal_ray": job["kind"], "file": job["file"]}},
        }
        for job in JOBS
    ]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"ray_version": "99.0"} if self.path == "/api/version" else listed
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [sys.executable, "-m", "seal_ray", "jobs"]
        address = f"http://127.0.0.1:{server.server_port}"
        here = {**os.environ, "COLUMNS": "40", "HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": address}
        here["RAY_AUTH_TOKEN"] = "a" * 32
        done = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for job in JOBS:
        [line] = [line for line in lines if str(job["id"]) in line]
        assert [job["kind"], job["file"], "succeeded", "-"] == line.split()[1:5]
        assert LAST in line
