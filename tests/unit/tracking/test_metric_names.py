"""The table of metrics in seal_ray/tracking/README.md: what is in it is logged, and nothing else is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import seal_ray.tracking
from seal_ray.cli import app
from seal_ray.recipe import ANALYSES
from seal_ray.tracking.workspace import FURTHER, TRAINING, Panel, pattern
from tests.sweeps import small_sweep
from tests.unit.tracking.test_wandb import records

pytestmark = [
    pytest.mark.docs,
    # Features of networks trained for seconds are nearly collinear, and the smallest decays take long.
    pytest.mark.filterwarnings("ignore:.* logistic regressions did not converge"),
]

README = Path(seal_ray.tracking.__file__).with_name("README.md")
SMALL = (
    *("depth.k=5", "depth.points=20", "depth.listed=2", "depth.support_size=40"),
    *("curvature.images=12", "curvature.steps=30", "curvature.top=2"),
    *("similarity.barrier_images=24", "similarity.barrier_points=3"),
)
BUDGET = {"epochs": 4, "generation_length": 2}
MOMENT = re.compile("(forgotten|ascended|averaged)/")
SECTIONS = (*TRAINING, *(kind.section for kind in ANALYSES.values() if kind.section), *FURTHER)
PANELS = [panel for section in SECTIONS for panel in section.panels]


@dataclass(frozen=True)
class Described:
    """A line of the table."""

    unit: str
    axis: str
    logged_by: frozenset[str]


def table() -> dict[str, Described]:
    text = README.read_text().partition("## Runs in W&B")[0]
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip().strip("`") for cell in line] for line in lines]
    return {name: Described(unit, axis, frozenset(by.split(", "))) for name, unit, axis, by, _ in cells}


TABLE = table()


def described(metric: str) -> list[str]:
    """The names in the table that a name of a metric fits: one, unless something is wrong."""
    bare = MOMENT.sub("", metric, count=1) if MOMENT.match(metric) else metric
    return [name for name in TABLE if bare == name or re.fullmatch(pattern(name), bare)]


@dataclass(frozen=True)
class Logged:
    """What W&B was sent: names by job type, and the axis and summaries of those that were defined."""

    names: Mapping[str, set[str]]
    axes: Mapping[str, str]
    summaries: Mapping[str, set[str]]


@pytest.fixture(scope="module")
def logged(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """A sweep of two runs with everything that is made of it, each by its command, W&B offline."""
    folder = tmp_path_factory.mktemp("logged")
    file = folder / "small.yaml"
    placement = {
        "keep": {"moments": ["init", "forgotten", "ascended", "relearned", "averaged"]},
        "track_examples": True,
        "metrics": ["balanced_accuracy", "ece"],
        "tracking": {"wandb": "offline"},
    }
    seal = {"name": "seal", "ascent_rate": 0.5, "forget": "llf"}
    axes = {"method": {"normal": "normal", "seal": seal}}
    data = {"path": str(digits), "label_noise": 0.1, "holdout": 0.2}
    recipe = {"budget": BUDGET, "data": data, "averaging": "ema"}
    small_sweep(digits, folder / "runs", file, axes=axes, recipe=recipe, placement=placement)
    few = ["--shots", "2", "--episodes", "3", "--ways", "2", "--queries", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("WANDB_API_KEY", raising=False)
        for words in (
            ["sweep", file],
            ["analyze", file, *(word for one in SMALL for word in ("--set", one))],
            ["transfer", file, "--to", digits],
            ["transfer", file, "--to", digits, "--mode", "finetune", "--epochs", "1"],
            ["fewshot", file, "--on", digits, *few],
        ):
            done = CliRunner().invoke(app, [*map(str, words), "--in-process"])
            assert done.exit_code == 0, (words, done.output, done.exception)
    return read(folder)


def read(folder: Path) -> Logged:
    names: dict[str, set[str]] = defaultdict(set)
    axes, summaries = {}, {}
    for path in folder.glob("**/offline-run-*/*.wandb"):
        kind = ""
        for record in records(path):
            what = record.WhichOneof("record_type")
            if what == "run":
                kind = record.run.job_type
                assert {"digits", "resnet18"} <= set(record.run.tags)
                assert record.run.run_group == "small"
            elif what == "history":
                items = record.history.item
                names[kind] |= {item.key or item.nested_key[0] for item in items}
            elif what == "metric" and record.metric.name:
                metric = record.metric
                axes[metric.name] = metric.step_metric
                summaries[metric.name] = {
                    name for name in ("last", "max", "min") if getattr(metric.summary, name)
                }
    own = {kind: {name for name in found if not name.startswith("_")} for kind, found in names.items()}
    return Logged(own, axes, summaries)


def test_the_table_is_read_as_it_is_written() -> None:
    assert TABLE["generation_top1"] == Described("%", "generation", frozenset({"train"}))
    assert TABLE["leaderboard"] == Described("table", "", frozenset({"sweep"}))
    assert "`leaderboard`" in README.read_text()
    assert len(TABLE) > 50


def test_what_is_logged_is_in_the_table_with_who_logs_it(logged: Logged) -> None:
    assert logged.names.keys() == {"train", "analysis", "transfer", "fewshot", "sweep"}
    for kind, names in logged.names.items():
        for name in names:
            found = described(name)
            assert len(found) == 1, f"{kind} logs {name}, which is {found or 'not'} in {README}"
            assert kind in TABLE[found[0]].logged_by, f"{kind} logs {name}"


def test_what_is_in_the_table_is_logged_by_whom_it_says(logged: Logged) -> None:
    found = {kind: {one for name in names for one in described(name)} for kind, names in logged.names.items()}
    for name, line in TABLE.items():
        for kind in line.logged_by:
            assert name in found[kind], f"{README} says that {kind} logs {name}"


def test_axes_and_summaries_are_those_of_the_table(logged: Logged) -> None:
    for name, axis in logged.axes.items():
        assert axis == TABLE[name].axis
    assert logged.axes["generation_top1"] == "generation"
    assert {name: which for name, which in logged.summaries.items() if which} == {
        "val_top1": {"last", "max"},
        "generation_top1": {"last", "max"},
        "val_loss": {"last", "min"},
        "val_averaged_top1": {"last", "max"},
        "val_averaged_loss": {"last", "min"},
    }


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_shows_what_is_in_the_table(panel: Panel, logged: Logged) -> None:
    units = {"table": "table", "pictures": "picture"}
    for metric in panel.metrics:
        (name,) = described(metric)
        assert (TABLE[name].unit == units[panel.kind]) if panel.kind in units else True, metric
        names = [one for found in logged.names.values() for one in found]
        assert any(re.fullmatch(pattern(metric), one) for one in names), f"{metric} is never logged"
        if panel.summary:
            assert panel.summary in logged.summaries[metric]
    assert panel.axis in TABLE


def test_a_name_of_another_form_is_not_in_the_table() -> None:
    assert described("ascended/depth/val_mean") == ["depth/<split>_mean"]
    assert described("depth/val_mean_wrong") == ["depth/<split>_mean_wrong"]
    assert described("relearned/depth/val_mean") == []
    assert described("val_top") == []
