"""A storage that release 0.1.0 made: it is listed, reported and exported, and never taken for finished work.

`tests/data/release-0.1.0` is what its `seal-ray sweep` and `seal-ray analyze` left behind of two runs of a
network of width 1 on a hundred digits, without pictures.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from seal_ray.data.images import Images
from seal_ray.data.prepared import open_dataset
from seal_ray.distributed.launch import begin, prepare_job
from seal_ray.recipe import Placement, load_job
from seal_ray.storage.lease import hold_lease
from seal_ray.training.loop import fit
from tests.unit.conftest import Command

NORMAL, SEAL = "normal-s0-7716547bab", "seal-s0-6ecee1c593"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parents[1] / "data" / "release-0.1.0", tmp_path / "runs"))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_is_listed(storage: Path, run: Command) -> None:
    code, out, err = run("runs", "--storage", storage, "--json")
    assert (code, err) == (0, "")
    found = {one["id"]: one for one in json.loads(out)}
    assert found.keys() == {NORMAL, SEAL}
    for name, one in found.items():
        rows = lines_of(storage / name)
        assert one["status"] == "finished"
        assert one["top1"] == rows[-1]["val_top1"]
        assert one["weights_sha256"] == rows[-1]["weights_sha256"]


def test_it_is_reported_with_its_analyses(storage: Path, run: Command, tmp_path: Path) -> None:
    code, _, err = run("report", storage, "-o", tmp_path / "page.html")
    assert (code, err) == (0, "")
    page = re.sub(r"<[^>]+>", " ", (tmp_path / "page.html").read_text())
    for name in (NORMAL, SEAL):
        assert name in page
        assert f"{lines_of(storage / name)[-1]['val_top1']:.2f}" in page
        curvature = json.loads((storage / name / "analysis/curvature-g001-relearned.json").read_text())
        assert f"{curvature['result']['parts']['all']['largest'][0]['value']:.3g}" in page
        depth = json.loads((storage / name / "analysis/depth-g001-relearned.json").read_text())
        assert f"{depth['result']['val']['all']['mean']:.2f}" in page


def test_it_is_exported(storage: Path, run: Command, tmp_path: Path) -> None:
    code, _, err = run("export", storage / SEAL, "-o", tmp_path / "seal.safetensors")
    assert (code, err) == (0, "")
    ours = load_file(tmp_path / "seal.safetensors")
    kept = load_file(storage / SEAL / "moments/g001-relearned/weights.safetensors")
    assert ours["fc.weight"].equal(kept["fc.weight"])
    assert ours["conv1.weight"].equal(kept["conv1.weight"])


def test_its_recipes_are_trained_anew_and_take_nothing_over(storage: Path, digits: Path) -> None:
    job = load_job(
        storage / SEAL / "job.yaml", [f"recipe.data.path={digits}", f"placement.storage={storage}"]
    )
    job = job.model_copy(update={"placement": job.placement.model_copy(update={"loader": "torch"})})
    planned, notes = prepare_job(job), list[str]()
    assert planned.run_id != SEAL
    known = json.loads((storage / SEAL / "generations.json").read_text())
    assert not set(known["keys"]) & set(planned.keys)
    with hold_lease(planned.store.folder):
        begin(planned, notes.append)
    images = Images.from_dataset(open_dataset(str(digits)), loader="torch")
    trained = list(fit(planned.job.recipe, images, store=planned.store, placement=Placement()))
    assert len(trained) == 4
    assert notes == []
    assert {row["trained_by"] for row in planned.store.rows()} == {planned.run_id}
