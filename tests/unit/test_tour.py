"""The notebook of the documentation runs as it stands, cell after cell, and says what it is meant to show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.ipynb"


@pytest.mark.docs
def test_the_tour_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    cells = [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "tour.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error:::seal_ray", str(script)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    folders = sorted((tmp_path / "runs" / "tour").glob("*-s0-*"))
    assert [folder.name.partition("-")[0] for folder in folders] == ["new_early", "normal", "normal", "seal"]
    accuracies = []
    for folder in folders:
        assert json.loads((folder / "status.json").read_text())["status"] == "finished"
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        accuracies.append(row["val_top1"])
        assert f"{row['val_top1']:.1f} %" in ran.stdout
    assert sorted(accuracies)[1] > 50  # of ten classes; one network is not made for so few pixels
    depths = re.findall(r"^(\w+) +(g\d{3}-\w+) +mean depth ([\d.]+) of (\d+)$", ran.stdout, re.MULTILINE)
    assert {method for method, *_ in depths} == {"normal", "seal"}
    assert all(0 <= float(mean) <= int(probes) for *_, mean, probes in depths)
    (page,) = (tmp_path / "runs" / "tour").glob("report.html")
    assert all(folder.name in page.read_text() for folder in folders)


def test_the_tour_is_committed_without_what_it_prints() -> None:
    for cell in json.loads(TOUR.read_text())["cells"]:
        assert cell.get("outputs", []) == []
