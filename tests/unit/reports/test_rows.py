"""The table of runs: what run folders and results.json say, a row each."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from seal_ray import api
from seal_ray.errors import ConfigError
from tests.pages import LAST


def test_a_row_holds_what_the_run_folder_and_the_leaderboard_say(small: Path, tmp_path: Path) -> None:
    api.report(small, tmp_path / "page.html", csv=tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {run["run_id"]: run for run in json.loads((small / "results.json").read_text())["runs"]}
    assert sorted(row["run"] for row in rows) == sorted(told)
    for row in rows:
        run, folder = told[row["run"]], small.parent.parent / row["run"]
        assert {axis: row[axis] for axis in run["setting"]} == run["setting"]
        for name in ("seed", "status", "epochs", "epochs_trained", "images", "passes"):
            assert row[name] == str(run[name])
        assert [float(row[name]) for name in ("top1", "best_top1")] == [run["top1"], run["best_top1"]]
        assert [float(row[f"after_{g}"]) for g in (1, 2, 3)] == run["generation_top1"]
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        for name in last:
            if name.startswith(("train_", "val_", "weights_sha256")):
                assert row[name] == ("" if last[name] is None else str(last[name])), name
        depth = json.loads((folder / "analysis" / f"depth-{LAST}.json").read_text())["result"]
        assert float(row["relearned:depth/val_mean"]) == depth["val"]["all"]["mean"]
        assert row["held_top1"] == row["averaged_top1"] == ""


def test_a_folder_is_no_file_for_it(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--csv: .* is a folder; name a file in it"):
        api.report(small, tmp_path / "page.html", csv=tmp_path)
