"""Figures: which are drawn of what, the same files from equal results, and what W&B is sent."""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seal_ray.analysis import Result
from seal_ray.analysis.depth import Example
from seal_ray.analysis.figures import gather, picture, write_figures
from seal_ray.analysis.moments import AnalysedRun, Moment, find_runs
from seal_ray.analysis.tasks import AnalysisSettings, plan_analyses, write_result
from seal_ray.analysis.track import scalars, track
from seal_ray.errors import SealRayWarning

PROBES = ["input", "stem", "layer1.0", "softmax"]


def depth(seed: int) -> Result:
    """A result of depths that differ by seed."""
    histogram = [4 + seed, 3, 2, 1, seed]
    total = sum(histogram)
    mean = sum(i * n for i, n in enumerate(histogram)) / total
    split = {
        name: {"count": total, "mean": mean, "histogram": histogram} for name in ("all", "correct", "wrong")
    }
    listed = {"deepest": [{"index": 0, "depth": 4, "label": "a", "prediction": "b"}], "shallowest": []}
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    numbers = {"probes": PROBES, "train": split, "val": split, "listed": {"val": listed, "train": listed}}
    return Result(numbers, {"val_listed_pixels": pixels})


def curvature(seed: int) -> Result:
    grid = np.linspace(-1, 10 + seed, 50)
    bounds = {"relative": 1e-3, "low": 0.1, "high": 0.2}
    part = {
        "parameters": 1000,
        "density_sigma": 0.1,
        "largest": [{"value": 10.0 + seed, "residual": 0.0}],
        "smallest": [{"value": -0.5, "residual": 0.0}],
        "trace": {"value": 40.0 + seed, "standard_error": 1.0},
        "negative_mass": {"resolved": {**bounds, "value": 0.15}, "bounds": [{**bounds, "resolved": True}]},
        "sharpness": {"value": 3.0, "residual": 0.0},
        "gradient_overlap": 0.5,
    }
    arrays = {"all_grid": grid, "all_values": np.exp(-(grid**2)), "all_spread": grid}
    return Result({"parts": {"all": part}}, arrays)


@pytest.fixture
def drawn(storage: Path) -> Path:
    """Runs with made-up depths and curvatures of all moments."""
    for what, make in (("depth", depth), ("curvature", curvature)):
        planned = plan_analyses(find_runs(storage), [what], None, AnalysisSettings())
        for task in (*planned.todo, *(one for same in planned.copies.values() for one in same)):
            write_result(task.moment, task.what, task.head(), make(task.moment.generation))
    return storage


def test_figures_are_drawn_and_equal_results_give_equal_files(drawn: Path) -> None:
    target = find_runs(drawn)
    paths = write_figures(target)
    names = {"depth-histogram", "depth-mean", "spectral-density", "curvature"}
    assert {path.name for path in paths} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.parent for path in paths} == {drawn / "analysis"}
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figures(target)] == first
    for path in paths:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert min(pixels.shape[:2]) > 300
            assert (pixels[:, [0, -1]] == 255).all()  # nothing is cut off at the sides
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_a_figure_needs_results_of_its_own(drawn: Path) -> None:
    for path in drawn.glob("*/analysis/curvature-*"):
        path.unlink()
    assert {path.stem for path in write_figures(find_runs(drawn))} == {"depth-histogram", "depth-mean"}
    for path in drawn.glob("*/analysis/*-relearned.json"):
        path.unlink()
    assert write_figures(find_runs(drawn)) == []


def test_what_is_gathered_knows_its_epoch_and_its_setting(drawn: Path) -> None:
    found = gather(find_runs(drawn / "sweeps/small"), ["depth", "curvature"])
    places = {(one.label, one.moment.label): one.epochs for one in found}
    assert places["seal", "g001-ascended"] == 3
    assert places["llf", "g001-forgotten"] == 2
    assert places["normal", "g000-init"] == 0
    assert len(found) == 16
    assert list(dict.fromkeys(one.label for one in found)) == ["normal", "llf", "seal"]


def test_a_grid_shows_each_image_and_marks_wrong_predictions() -> None:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    pixels[0], pixels[1], pixels[2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    right = [Example(i, i, "a", "a") for i in range(3)]
    wrong = [Example(0, 0, "a", "b"), *right[1:]]
    images = [
        np.asarray(
            Image.open(io.BytesIO(picture({"deepest": one[:2], "shallowest": one[2:]}, pixels, 4))).convert(
                "RGB"
            )
        )
        for one in (right, wrong)
    ]
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (images[0] == colour).all(axis=2).sum() > 1000
    reddish = [((one[..., 0] == 0xB3) & (one[..., 1] == 0x40)).sum() for one in images]
    assert reddish[0] == 0 < reddish[1]


def names_of(results: dict[str, Any]) -> set[str]:
    return {
        name
        for what, held in results.items()
        for name, value in scalars(what, held).items()
        if value is not None
    }


def test_the_scalars_of_results() -> None:
    found = names_of({"depth": dict(depth(0).numbers), "curvature": dict(curvature(0).numbers)})
    assert {"depth/val_mean", "depth/train_mean_wrong", "curvature/top", "curvature/trace"} <= found
    assert "curvature/negative_mass" in found
    part = curvature(0).numbers["parts"]["all"]
    for unresolved in (
        {"resolved": None, "bounds": []},
        {"value": 0.1, "standard_error": 0.1},
    ):  # the old form
        numbers = {"parts": {"all": {**part, "negative_mass": unresolved}}}
        assert not [name for name in names_of({"curvature": numbers}) if "negative_mass" in name]
    empty = {"cka": {}, "weight_norms": {"fc": 2.0}}
    assert dict(scalars("similarity", empty)) == {"weight_norm/fc": 2.0, "barrier": None}


def tracked(drawn: Path, mode: str) -> tuple[AnalysedRun, list[tuple[Moment, str]]]:
    run = next(one for one in find_runs(drawn).runs if one.label == "seal")
    placement = run.job.placement
    tracking = placement.tracking.model_copy(update={"wandb": mode})
    job = run.job.model_copy(update={"placement": placement.model_copy(update={"tracking": tracking})})
    results = [(moment, what) for moment in run.moments() for what in ("depth", "curvature")]
    return AnalysedRun(run.folder, job, run.label), results


def test_an_analysis_is_a_wandb_run_of_its_own(drawn: Path) -> None:
    one = tracked(drawn, "offline")
    figures = write_figures(find_runs(drawn))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SealRayWarning)
        track([one], figures)
    (folder,) = (one[0].folder / "analysis/wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    assert log.name == f"run-{one[0].run_id}-analysis.wandb"
    text = log.read_bytes()
    for said in (
        b"depth/val_mean",
        b"curvature/top",
        b"ascended/depth/val_mean",
        b"figures/curvature",
        b"parent",
    ):
        assert said in text
    assert not (one[0].folder / "wandb").exists()  # where training looks for its own


def test_a_failing_wandb_is_one_warning(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import seal_ray.analysis.track

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(seal_ray.analysis.track, "init_run", refuse)
    run, results = tracked(drawn, "offline")
    with pytest.warns(SealRayWarning, match="did not get the analyses of seal.*OSError: no route") as seen:
        track([(run, results)] * 2, [])
    assert len(seen) == 1
    shutil.rmtree(run.folder / "analysis")
    track([tracked(drawn, "off")], [])
