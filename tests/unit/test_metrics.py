"""Metrics of placements against scikit-learn and hand arithmetic, and where their values go."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from torch import Tensor

from seal_ray.errors import ConfigError, SealRayError, SealRayWarning
from seal_ray.metrics import BalancedAccuracy, CalibrationError, metric
from seal_ray.recipe import Job, Placement, check_sendable, load_job, received_job
from seal_ray.runs.lineage import generation_keys, run_id
from seal_ray.runs.sharing import branch
from seal_ray.testing import check_metric, on_ranks, tiny_images, tiny_recipe
from seal_ray.training.loop import evaluate, fit
from seal_ray.training.run import Run
from seal_ray.training.world import World
from tests.plugins import of_docs, write_job
from tests.runs import EVERYTHING, keeping, open_store, train_run
from tests.unit.test_plugins import forget_files as forget_files
from tests.unit.test_plugins import refused

BOTH = (BalancedAccuracy(), CalibrationError(bins=10))
SHORT = {"epochs": 2, "generation_length": 2}


@dataclass(frozen=True)
class Gives:
    """Gives a fixed value."""

    name: ClassVar[str] = "gives"
    value: Any = 0.5

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        return self.value() if callable(self.value) else self.value


@dataclass(frozen=True)
class Mean(Gives):
    """All bits of the logits, and their order."""

    name: ClassVar[str] = "mean"

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        places = torch.arange(logits.numel(), dtype=torch.float64).view(logits.shape) + labels[:, None]
        return float((logits.double() * places).sum())


@dataclass(frozen=True)
class InPlace(Gives):
    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        return float(logits.mul_(2).mean())


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    logits = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 30 + [3] * 5)  # none of class 4
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, logits.argmax(dim=1))
    assert BalancedAccuracy()(logits, labels) == pytest.approx(100 * expected)


def test_calibration_error_by_hand_is_in_per_cent() -> None:
    # Confidences 0.8 (right), 0.8 (wrong) and 0.6 (right) in bins of a fifth: (|1 - 1.6| + 0.4) / 3.
    logits = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1, 1])
    assert CalibrationError(bins=20)(logits, labels) == pytest.approx(100 * (0.6 + 0.4) / 3)
    assert CalibrationError(bins=1)(logits, labels) == pytest.approx(100 * 0.2 / 3)
    assert CalibrationError().bins == 15


def test_rows_have_each_metric_and_the_run_is_the_same() -> None:
    recipe = tiny_recipe("normal", budget={"epochs": 4, "generation_length": 4})
    plain, rows = (
        [epoch.row for epoch in train_run(recipe, None, placement=Placement(eval_every=3, metrics=metrics))]
        for metrics in ((), (*BOTH, Mean()))
    )
    for before, row in zip(plain, rows, strict=True):
        assert row.keys() - before.keys() == {"val_balanced_accuracy", "val_ece", "val_mean"}
        assert row["weights_sha256"] == before["weights_sha256"]
        assert row["val_loss"] == before["val_loss"]
    for name in ("val_balanced_accuracy", "val_ece", "val_mean"):
        assert [row[name] is None for row in rows] == [row["val_top1"] is None for row in rows]
    assert [row["val_ece"] is None for row in rows] == [True, True, False, False]


def test_logits_are_those_of_all_images_in_index_order() -> None:
    kept: list[Tensor] = []

    @dataclass(frozen=True)
    class Keeps(Gives):
        def __call__(self, logits: Tensor, labels: Tensor) -> float:
            kept.extend((logits, labels))
            return 0.0

    run = Run(tiny_recipe(), tiny_images(val=600), None, World(), Placement(metrics=(Keeps(),)))
    scores = evaluate(run)
    logits, labels = kept
    assert labels.tolist() == [i % 3 for i in range(600)]
    assert (logits.shape, logits.dtype, labels.dtype) == ((600, 3), torch.float32, torch.int64)
    assert 100 * float((logits.argmax(1) == labels).double().mean()) == pytest.approx(scores["val_top1"])
    loss = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert float(loss) == pytest.approx(scores["val_loss"], rel=1e-5)


def values(val: int) -> dict[str, Any]:
    placement = Placement(metrics=(*BOTH, Mean()))
    run = Run(tiny_recipe(shards=6), tiny_images(val=val), None, World.current(), placement)
    return {key: value for key, value in evaluate(run).items() if key != "seconds_eval"}


@pytest.mark.parametrize("val", [17, 600])
def test_values_are_bit_for_bit_the_same_on_any_number_of_workers(val: int) -> None:
    (one,), two = (on_ranks(workers, values, val) for workers in (1, 2))
    assert two == [one, one]
    assert one["val_mean"] != 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "is nan"),
        (float("inf"), "is inf"),
        ("much", "fails: ValueError: could not convert string to float: 'much'"),
    ],
)
def test_what_fails_or_is_not_finite_is_null_with_a_warning(value: Any, said: str, tmp_path: Path) -> None:
    recipe, placement = tiny_recipe("normal", budget=SHORT), Placement(metrics=(Gives(value), *BOTH))
    with pytest.warns(SealRayWarning, match=f"^the metric gives {said}; val_gives is null there$"):
        results = train_run(recipe, tmp_path, placement=placement)
    assert results[-1].status == "finished"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["val_gives"] for row in rows] == [None, None]
    assert all(row["val_ece"] >= 0 for row in rows)


def test_generations_that_another_run_has_trained_lack_what_that_did_not_compute(tmp_path: Path) -> None:
    images, rows = tiny_images(), []
    for method, metrics in (("normal", ()), ({"name": "seal", "ascent_rate": 0.3}, BOTH)):
        recipe = tiny_recipe(method)
        store = open_store(recipe, tmp_path / run_id(recipe, images.identity))
        store.record_generations(generation_keys(recipe, images.identity), EVERYTHING)
        branch(store, recipe, images.identity, EVERYTHING)
        placement = keeping(EVERYTHING, metrics=metrics)
        list(fit(recipe, images, store=store, placement=placement))
        rows = store.rows()
    assert ["val_ece" in row for row in rows] == [False] * 4 + [True] * 8


# By name


def job(folder: Path, *metrics: Any, plugins: Any = ("./brier.py",)) -> Path:
    (folder / "brier.py").write_text(of_docs("metric"))
    return write_job(folder / "run.yaml", "normal", plugins, placement={"metrics": list(metrics)})


def test_a_metric_of_a_plugin_file_goes_where_a_run_goes(tmp_path: Path) -> None:
    loaded = load_job(job(tmp_path, "brier", {"name": "ece", "bins": 10}))
    brier, ece = loaded.placement.metrics
    assert ece == CalibrationError(bins=10)
    assert received_job(loaded.model_dump(mode="json")) == loaded
    check_sendable(loaded)
    assert refused(lambda: check_sendable(loaded.model_copy(update={"plugins": {}}))).startswith(
        "placement.metrics.0: Brier is not among what the job's workers load; decorate it with @"
    )
    logits, labels = torch.randn(40, 3, dtype=torch.float64), torch.arange(40) % 3
    expected = brier_score_loss(labels, logits.softmax(dim=1), labels=[0, 1, 2], scale_by_half=False)
    assert brier(logits, labels) == pytest.approx(expected)
    row = next(fit(loaded.recipe, tiny_images(), placement=Placement(metrics=loaded.placement.metrics))).row
    assert 0 < row["val_brier"] < 2
    assert Job.model_validate(loaded.model_dump() | {"placement": {}}).placement.metrics == ()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["balanced_acuracy"], r":\d+: placement\.metrics\.0: .*; did you mean 'balanced_accuracy'\?"),
        ([{"name": "ece", "bins": 0}], r":\d+: placement\.metrics\.0\.bins: must be at least 1, not 0"),
        (
            [{"name": "ece", "bin": 5}],
            r":\d+: placement\.metrics\.0\.bin: unknown field; did you mean 'bins'.*",
        ),
        (["ece", {"name": "ece", "bins": 5}], r":\d+: placement\.metrics\.1: ece is there twice, and .*"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_its_place(
    metrics: list[Any], said: str, tmp_path: Path
) -> None:
    path = job(tmp_path, *metrics)
    assert re.fullmatch(re.escape(str(path)) + said, refused(lambda: load_job(path)))


@pytest.mark.parametrize("name", ["loss", "top1", "top5"])
def test_a_name_that_rows_have_already_is_refused(name: str) -> None:
    cls = dataclasses.make_dataclass("Mine", [], bases=(Gives,), namespace={"name": name}, frozen=True)
    with pytest.raises(
        ConfigError, match=f"the metric Mine is called '{name}', and val_{name} is in every row"
    ):
        metric(cls)


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="the metric object is no frozen dataclass"):
        metric(object)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Gives(1), "is 1 and no finite float"),
        (Gives(float("nan")), "is nan and no finite float"),
        (Gives(lambda: float(torch.rand(()))), "of the same logits is "),
        (InPlace(), "changes the logits or labels"),
        (Gives(lambda: 1 / 0), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_promise_is_named(broken: Gives, said: str) -> None:
    with pytest.raises(SealRayError, match=f"(?s)breaks its promises.*: {said}"):
        check_metric(broken)


@pytest.mark.parametrize("kept", BOTH, ids=lambda one: one.name)
def test_built_in_metrics_keep_their_promises(kept: Any) -> None:
    check_metric(kept)
