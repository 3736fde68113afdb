"""`analyze` in this process: results that oracles confirm, each computed once; failures that stay alone."""

from __future__ import annotations

import io
import json
import math
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score, log_loss

import seal_ray.analysis.run
from seal_ray.analysis import ANALYSES
from seal_ray.analysis.depth import Examples, measure_depth
from seal_ray.analysis.moments import Moment
from seal_ray.analysis.run import analyze_moments, summary
from seal_ray.analysis.tasks import (
    AnalysisSettings,
    Task,
    TaskOutcome,
    load_settings,
    read_arrays,
    read_result,
    result_path,
)
from seal_ray.data.augment import normalise
from seal_ray.data.images import Images
from seal_ray.data.prepared import load_dataset
from seal_ray.errors import ConfigError
from seal_ray.networks import build
from seal_ray.recipe import load_job
from seal_ray.runs.folder import Store
from tests.unit.analysis.conftest import run_of

SMALL = load_settings(
    "quick",
    [
        "depth.k=5",
        "depth.points=20",
        "depth.listed=3",
        "curvature.images=12",
        "curvature.steps=6",
        "curvature.top=2",
        "similarity.barrier_images=24",
        "similarity.barrier_points=3",
    ],
)


CHEAP = ["depth", "similarity", "calibration"]


def ask(path: Path, *changes: str, **asked: Any) -> tuple[list[TaskOutcome], str]:
    """The outcomes of `analyze` in this process, and what it printed."""
    printed = io.StringIO()
    settings = load_settings("quick", changes) if changes else SMALL
    console = Console(file=printed, width=200, soft_wrap=True)
    return analyze_moments(
        path, console, **{"settings": settings, "in_process": True, **asked}
    ), printed.getvalue()


def statuses(outcomes: Sequence[TaskOutcome]) -> Counter[str]:
    return Counter(outcome.status for outcome in outcomes)


def result(moment: Moment, what: str) -> dict[str, Any]:
    held = read_result(moment, what)
    assert held is not None
    return held


@pytest.fixture(scope="module")
def analysed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the trained runs with a sweep's analyses, curvature at ascents alone; what was printed."""
    storage = tmp_path_factory.mktemp("analysed") / "runs"
    shutil.copytree(trained, storage)
    ask(run_of(storage, "seal"), what=["curvature"], moments=["ascended"])
    outcomes, printed = ask(storage / "sweeps/small", what=CHEAP)
    assert set(statuses(outcomes)) == {"computed", "copied"}
    return storage, printed


def test_last_is_the_last_relearned_moment_of_each_run(trained: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(trained, storage)
    runs = [folder for folder in storage.iterdir() if (folder / "moments").is_dir()]
    shutil.rmtree(run_of(storage, "seal") / "moments" / "g002-relearned")
    ends = {run.name: max(one.name for one in run.glob("moments/*-relearned")) for run in runs}
    assert set(ends.values()) == {"g001-relearned", "g002-relearned"}
    outcomes, _ = ask(storage, "calibration.bins=3", what=["calibration"], moments=["last"])
    assert {outcome.run_id: outcome.moment for outcome in outcomes} == ends
    assert len(outcomes) == len(runs)


def test_numbers_are_printed_as_the_files_have_them(trained: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(trained, storage)
    asked = {"what": ["calibration", "depth"], "moments": ["relearned"]}
    for _ in ("computed", "known"):
        _, printed = ask(run_of(storage, "seal"), **asked)
    folder = run_of(storage, "seal")
    found: dict[str, dict[str, dict[str, str]]] = {}
    for line in printed.splitlines():
        cells = line.split()
        if cells in (["calibration"], ["depth"]):
            table = found.setdefault(cells[0], {})
        elif cells[:2] == ["run", "moment"]:
            names = cells[2:]
        elif cells[:1] == [folder.name]:
            table[cells[1]] = dict(zip(names, cells[2:], strict=True))
    labels = [f"g{generation:03d}-relearned" for generation in range(3)]
    assert {what: list(table) for what, table in found.items()} == {"calibration": labels, "depth": labels}
    for label in labels:
        held = {what: json.loads((folder / f"analysis/{what}-{label}.json").read_text()) for what in found}
        assert found["calibration"][label]["ece"] == f"{held['calibration']['result']['ece']:.4g}"
        depth = held["depth"]["result"]["val"]
        assert found["depth"][label]["val_mean"] == f"{depth['all']['mean']:.4g}"
        assert found["depth"][label]["val_mean_wrong"] == f"{depth['wrong']['mean']:.4g}"


def network_at(moment: Moment) -> torch.nn.Module:
    recipe = load_job(moment.run / "job.yaml").recipe
    network = build(
        recipe.model.arch,
        classes=4,
        stem=recipe.model.stem,
        width=recipe.model.width,
        generator=torch.Generator(),
    )
    network.load_state_dict(Store(moment.run, moment.run.name).moment(moment.name, moment.generation).weights)
    return network.eval()


def split_of(run: Path, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All normalised images of a split and their labels."""
    images = Images.from_dataset(
        load_dataset(Path(load_job(run / "job.yaml").recipe.data.path)), loader="torch"
    )
    loader = images.open(split, 10_000)
    (pixels,) = loader.batches(np.arange(len(loader.labels)))
    x = normalise(pixels, images.mean, images.std, torch.contiguous_format)
    return x, torch.from_numpy(loader.labels)


def test_results_say_what_they_are_of(analysed: tuple[Path, str]) -> None:
    seal = run_of(analysed[0], "seal")
    moment = Moment(seal, 1, "ascended")
    held = result(moment, "curvature")
    rows = Store(seal, seal.name).rows()
    assert held["weights_sha256"] == rows[2]["weights_sha256"]
    assert (held["run_id"], held["moment"], held["generation"], held["epochs"]) == (
        seal.name,
        "ascended",
        1,
        3,
    )
    assert held["settings"] == SMALL.of(ANALYSES)["curvature"].model_dump(mode="json")
    assert held["versions"]["torch"] == torch.__version__
    assert held["seconds"] > 0
    assert held["compared_with"] == {"before": f"{seal.name}/g000-relearned"}


def test_depths_are_those_of_the_run_s_own_network_and_images(analysed: tuple[Path, str]) -> None:
    moment = Moment(run_of(analysed[0], "llf"), 2, "relearned")
    (train, labels), (val, truth) = split_of(moment.run, "train"), split_of(moment.run, "val")
    depths = measure_depth(
        network_at(moment),
        Examples.from_tensors(train, labels),
        Examples.from_tensors(val, truth),
        k=5,
        points=20,
        support_size=1_000,
    )
    arrays = read_arrays(moment, "depth")
    for split, points in (("train", depths.train), ("val", depths.val)):
        assert arrays[f"{split}_indices"].tolist() == points.indices.tolist()
        assert arrays[f"{split}_depths"].tolist() == points.depths.tolist()
    held = result(moment, "depth")["result"]
    assert held["val"] == json.loads(json.dumps(depths.val.summary()))
    by_depth = sorted(zip(depths.val.depths.tolist(), depths.val.indices.tolist(), strict=True))
    shallow = [(one["depth"], one["index"]) for one in held["listed"]["val"]["shallowest"]]
    deep = [(one["depth"], one["index"]) for one in held["listed"]["val"]["deepest"]]
    assert shallow == by_depth[:3]
    assert deep == sorted(by_depth, key=lambda one: (-one[0], one[1]))[:3]
    pixels = arrays["val_listed_pixels"]
    assert pixels.shape == (6, 32, 32, 3)
    file = load_dataset(Path(load_job(moment.run / "job.yaml").recipe.data.path))
    loader = Images.from_dataset(file, loader="torch").open("val", 1)
    (first,) = loader.batches(np.array([deep[0][1]]))
    assert np.array_equal(pixels[0], first[0].numpy())
    assert result_path(moment, "depth", ".png").read_bytes().startswith(b"\x89PNG")


def test_calibration_agrees_with_the_network(analysed: tuple[Path, str]) -> None:
    moment = Moment(run_of(analysed[0], "normal"), 2, "relearned")
    images, labels = split_of(moment.run, "val")
    with torch.inference_mode():
        probabilities = network_at(moment)(images).double().softmax(dim=1).numpy()
    held = result(moment, "calibration")["result"]
    assert held["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(4)), rel=1e-5)
    assert held["top1"] == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(axis=1)))
    last = Store(moment.run, moment.run.name).rows()[-1]
    assert held["top1"] == pytest.approx(last["val_top1"])
    assert held["nll"] == pytest.approx(last["val_loss"], rel=1e-4)


def test_similarity_measures_movement_cka_and_the_barrier(analysed: tuple[Path, str]) -> None:
    storage = analysed[0]
    seal, normal = run_of(storage, "seal"), run_of(storage, "normal")
    held = result(Moment(seal, 1, "relearned"), "similarity")["result"]
    before, after = (network_at(Moment(seal, 1, name)) for name in ("ascended", "relearned"))
    moved = torch.cat(
        [(q - p).flatten() for p, q in zip(before.fc.parameters(), after.fc.parameters(), strict=True)]
    )
    assert held["movement"]["fc"]["distance"] == pytest.approx(moved.norm().item(), rel=1e-5)
    assert set(held["cka"]) == {"before", "baseline"}
    assert all(0 < value <= 1 + 1e-6 for value in held["cka"]["baseline"].values())
    assert held["barrier"]["positions"] == [0, 0.5, 1]
    assert held["barrier"]["height"] >= 0

    shared = result(Moment(seal, 0, "relearned"), "similarity")["result"]
    assert shared["cka"]["baseline"] == pytest.approx(dict.fromkeys(shared["cka"]["baseline"], 1.0))
    start = result(Moment(normal, 0, "init"), "similarity")["result"]
    assert start["cka"] == {}
    assert "movement" not in start


def test_an_ascent_s_movement_lies_partly_within_the_top_space(analysed: tuple[Path, str]) -> None:
    ascended = Moment(run_of(analysed[0], "seal"), 1, "ascended")
    found = result(ascended, "curvature")["result"]["parts"]["all"]
    within = found["ascent_within_top"]
    assert 0 < within["share"] <= 1
    assert within["of_a_random_direction"] == 2 / found["parameters"]
    arrays = read_arrays(ascended, "curvature")
    area = np.trapezoid(arrays["all_values"], arrays["all_grid"])
    assert area == pytest.approx(1, abs=1e-3)
    assert math.isclose(arrays["all_weights"].sum(), 2, rel_tol=1e-6)


def test_equal_weights_are_computed_once_and_a_second_call_computes_nothing(
    analysed: tuple[Path, str],
) -> None:
    storage, printed = analysed
    assert "copied: same weights as " in printed
    again, said = ask(storage / "sweeps/small", what=CHEAP)
    assert set(statuses(again)) == {"known"}
    known, *tables = said.splitlines()
    assert known == "48 analyses are there already, 0 to go"
    assert [line for line in tables if line in CHEAP] == CHEAP
    assert summary(again) == "48 known"


def test_only_what_is_missing_or_asked_otherwise_is_computed(storage: Path) -> None:
    run = run_of(storage, "normal")
    first, _ = ask(run, what=["calibration"])
    assert statuses(first) == {"computed": 4}
    result_path(Moment(run, 1, "relearned"), "calibration").unlink()
    second, _ = ask(run, what=["calibration"])
    assert statuses(second) == {"known": 3, "computed": 1}
    third, _ = ask(run, "calibration.bins=3", what=["calibration"], moments=["relearned"])
    assert statuses(third) == {"computed": 3}


def test_what_is_worked_on_is_named(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(storage, "normal")
    asked: dict[str, Any] = {"what": ["calibration"], "moments": ["g001-relearned", "g002-relearned"]}
    monkeypatch.setattr(seal_ray.analysis.run, "STILL", 0.1)
    real, long = (
        seal_ray.analysis.pool.compute_task,
        f"still at {run.name} g002-relearned calibration, for 0:0",
    )
    text = io.StringIO()

    def taking_long(task: Task, *arguments: Any, **named: Any) -> float:
        deadline = time.monotonic() + 60
        while task.moment.label == "g002-relearned" and text.getvalue().count(long) < 2:
            assert time.monotonic() < deadline
        return real(task, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(seal_ray.analysis.pool, "compute_task", taking_long)
        settings = load_settings("quick", ["calibration.bins=4"])
        analyze_moments(run, Console(file=text, width=200), settings=settings, in_process=True, **asked)
    assert text.getvalue().count(long) >= 2  # again and again
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True, color_system=None)
    analyze_moments(
        run, console, settings=load_settings("quick", ["calibration.bins=5"]), in_process=True, **asked
    )
    for seen in ("analysing", "1 of 2", f"{run.name} g001-relearned calibration", "of some 0 s"):
        assert seen in screen.getvalue()


def test_what_is_wrong_with_one_moment_stays_with_it(storage: Path) -> None:
    seal, normal = run_of(storage, "seal"), run_of(storage, "normal")
    for run, label in ((seal, "g002-relearned"), (run_of(storage, "llf"), "g000-relearned")):
        weights = run / "moments" / label / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    outcomes, printed = ask(storage, what=["calibration"], moments=["relearned"])
    failed = {(one.run_id, one.moment): one.reason for one in outcomes if one.status == "failed"}
    assert set(failed) == {(seal.name, "g002-relearned"), (run_of(storage, "llf").name, "g000-relearned")}
    assert "truncated or altered" in failed[seal.name, "g002-relearned"]
    assert "weights.safetensors: truncated or altered" in printed
    # generation 0 is the same in all runs, and intact in the others
    assert statuses(outcomes) == {"failed": 2, "computed": 6, "copied": 1}
    assert result(Moment(normal, 0, "relearned"), "calibration")["copied_from"] is None


def test_settings_that_the_data_cannot_serve_fail_alone(storage: Path) -> None:
    run = run_of(storage, "seal")
    outcomes, _ = ask(run, "depth.k=500", what=["depth", "calibration"], moments=["ascended"])
    by_what = {one.what: one for one in outcomes if one.moment == "g001-ascended"}
    assert by_what["depth"].status == "failed"
    assert "k: 500 neighbours, but a support of" in by_what["depth"].reason
    assert by_what["calibration"].status == "computed"
    with pytest.raises(ConfigError, match="--in-process: works without Ray"):
        ask(run, workers=2)


def test_ctrl_c_keeps_what_is_done(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import seal_ray.analysis.pool

    real, calls = seal_ray.analysis.pool.compute_task, Counter[str]()

    def interrupted(*arguments: Any, **named: Any) -> float:
        calls["made"] += 1
        if calls["made"] == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(seal_ray.analysis.pool, "compute_task", interrupted)
    run = run_of(storage, "llf")
    outcomes, printed = ask(run, what=["calibration"])
    assert statuses(outcomes) == {"computed": 2, "stopped": 4}
    assert printed.endswith("stopped; the same command goes on with what is left\n")
    outcomes, _ = ask(run, what=["calibration"])
    assert statuses(outcomes) == {"known": 2, "computed": 4}


def test_ctrl_c_that_falls_into_a_finaliser_counts(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import seal_ray.analysis.pool

    real, lost = seal_ray.analysis.pool.compute_task, []

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def interrupted(*arguments: Any, **named: Any) -> float:
        Finalised()
        return real(*arguments, **named)

    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    monkeypatch.setattr(seal_ray.analysis.pool, "compute_task", interrupted)
    outcomes, printed = ask(run_of(storage, "normal"), what=["calibration"])
    assert printed.count("stopping: what is done stays; press Ctrl-C again to stop at once\n") == 1
    assert [one.exc_type for one in lost] == [KeyboardInterrupt]
    assert [one.status for one in outcomes if one.status != "stopped"] == ["computed"]
    assert printed.endswith("stopped; the same command goes on with what is left\n")


def test_the_quick_preset_is_the_default() -> None:
    assert load_settings("quick") == AnalysisSettings()
    curvature = AnalysisSettings().of(ANALYSES)["curvature"]
    assert (curvature.images, curvature.probes, curvature.steps) == (100, 2, 20)
