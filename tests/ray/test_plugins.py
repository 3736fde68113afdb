"""The documentation's method and analysis on Ray, from their files: a run, a sweep, actors."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

import seal_ray.analysis.run
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.run import analyze_moments
from seal_ray.analysis.tasks import read_result
from seal_ray.data.images import Images
from seal_ray.data.prepared import load_dataset
from seal_ray.distributed.launch import launch, prepare_job
from seal_ray.recipe import load_job
from seal_ray.runs.folder import Store, open_store
from seal_ray.sweeps.tune import train_sweep
from seal_ray.training.loop import fit
from tests.plugins import method_of_docs, of_docs
from tests.ray.conftest import Screen
from tests.runs import without_speeds
from tests.sweeps import metrics_of, small_sweep
from tests.sweeps import screen as shown


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_of_ones_own_method_is_trained_by_workers(digits: Path, tmp_path: Path, screen: Screen) -> None:
    (tmp_path / "weight_noise.py").write_text(method_of_docs())
    recipe = {
        "data": {"path": str(digits)},
        "model": {"arch": "resnet18", "width": 4},
        "method": "weight_noise",
        "budget": {"epochs": 4, "generation_length": 2},
        "optimizer": {"warmup_share": 0.0},
        "batch_size": 32,
        "shards": 2,
    }
    storage = str(tmp_path / "runs")
    placement = {"workers": 2, "threads": 1, "storage": storage, "tracking": {"wandb": "off"}}
    job = {"plugins": ["./weight_noise.py"], "recipe": recipe, "placement": placement}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(job))
    planned = prepare_job(load_job(tmp_path / "run.yaml"))
    assert launch(planned, screen[0])["status"] == "finished"
    folder = tmp_path / "runs" / planned.run_id
    assert folder.name.startswith("weight_noise-s0-")
    assert (folder / "plugins" / "weight_noise.py").read_text() == method_of_docs()

    (tmp_path / "weight_noise.py").unlink()
    read = load_job(folder / "job.yaml").recipe
    images = Images.from_dataset(load_dataset(digits), loader="torch")
    alone = open_store(tmp_path / "alone", read, images)
    list(fit(read, images, store=alone))
    assert alone.run_id == folder.name
    rows = Store(folder, folder.name).rows()
    assert without_speeds(rows, "workers") == without_speeds(alone.rows(), "workers")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_with_ones_own_method_shares_what_it_has_in_common_with_others(
    digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "weight_noise.py").write_text(method_of_docs())
    found = []
    for place in ("ray", "here"):
        runs = small_sweep(
            digits,
            tmp_path / place,
            plugins=["weight_noise.py"],
            axes={"method": ["normal", "weight_noise"]},
            recipe={"budget": {"epochs": 4, "generation_length": 2}},
        )
        console, printed = shown()
        train_sweep(runs, console, share=True, concurrent=None, in_process=place == "here")
        assert printed.getvalue().count("generation 0 taken over from") == 1
        assert {one.store.status()["status"] for one in runs.planned} == {"finished"}
        found.append(metrics_of(runs))
    assert found[0] == found[1]
    assert sorted(run.split("-")[0] for run in found[0]) == ["normal", "weight_noise"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ones_own_analysis_is_computed_by_actors(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_ray.analysis.run, "ray_session", lambda *_: contextlib.nullcontext())
    runs = small_sweep(digits, tmp_path / "runs", axes={"method": {"normal": "normal"}})
    train_sweep(runs, shown()[0], share=True, concurrent=None, in_process=True)
    (tmp_path / "rank.py").write_text(of_docs("analysis"))
    folder = runs.planned[0].store.folder
    outcomes = analyze_moments(
        folder, shown()[0], what=["effective_rank"], plugins=[tmp_path / "rank.py"], workers=2
    )
    assert [one.status for one in outcomes] == ["computed"] * 3
    for moment in find_runs(folder).runs[0].moments():
        held = read_result(moment, "effective_rank")
        assert held is not None
        weight = moment.weights()["fc.weight"].double().numpy()
        shares = (values := np.linalg.svd(weight, compute_uv=False)) / values.sum()
        assert held["scalars"]["effective_rank/rank"] == pytest.approx(math.exp(-(shares @ np.log(shares))))
