"""A run that fails, or is stopped, says why, and the others of its sweep go on: in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from seal_ray.api import fit
from seal_ray.cli import app
from seal_ray.recipe import load_job
from tests.plugins import write_broken

PLACEMENT = {"storage": "runs", "loader": "torch", "tracking": {"wandb": "off"}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def runs() -> list[dict[str, str]]:
    """What `seal-ray runs` says, by method."""
    done = CliRunner().invoke(app, ["runs", "--json"])
    assert done.exit_code == 0, done.output
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_an_exception_is_the_end_of_its_run_alone(tmp_path: Path, digits: Path) -> None:
    write_broken(tmp_path, digits, placement=PLACEMENT)
    sweep = {"base": "broken.yaml", "axes": {"method": ["broken", "normal"]}}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = CliRunner().invoke(app, ["sweep", "sweep.yaml", "--in-process"])
    assert done.exit_code == 1
    assert "failed: KeyError: 'layer9'" in done.output
    assert 'raise KeyError("layer9")' in done.output  # a traceback shows where
    assert [(run["method"], run["status"], run["reason"], run["epochs_done"]) for run in runs()] == [
        ("broken", "failed", "KeyError: 'layer9'", 1),
        ("normal", "finished", "", 2),
    ]


def test_an_exception_in_a_loop_of_ones_own(tmp_path: Path, digits: Path) -> None:
    job = load_job(write_broken(tmp_path, digits))
    with pytest.raises(KeyError, match="layer9"):
        list(fit(job.recipe, storage="runs"))
    [status] = [json.loads(path.read_text()) for path in Path("runs").glob("*/status.json")]
    assert (status["status"], status["reason"]) == ("failed", "KeyError: 'layer9'")
