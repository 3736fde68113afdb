"""Sweep files: which runs they make, what those are called, and what is said of files that make none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from seal_ray.config.document import Document, at, override, put, read
from seal_ray.errors import ConfigError
from seal_ray.methods.llf import Llf
from seal_ray.methods.normal import Normal
from seal_ray.methods.seal import Seal
from seal_ray.phases.optimizers import OPTIMIZERS
from seal_ray.phases.schedule import Budget, Rise
from seal_ray.recipe import load_job
from seal_ray.sweeps.draws import Random, sample
from seal_ray.sweeps.file import EarlyStopping, Sweep, is_sweep, load_sweep

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([*(ROOT / "jobs/sweeps").glob("*.yaml"), *(ROOT / "jobs/studies").glob("*.yaml")])
RUN = """\
recipe:
  data: {path: x}
  method: {name: seal, ascent_rate: 0.5}
  budget: {epochs: 16, generation_length: 8}
  optimizer: {lr: 0.1, momentum: 0.8}
placement:
  storage: there
  keep: {checkpoints: 5}
"""


def file(folder: Path, text: str, name: str = "trial.yaml") -> Path:
    """A sweep over the run above; `text` are its lines after `base`."""
    (folder / "run.yaml").write_text(RUN)
    path = folder / name
    path.write_text("base: run.yaml\n" + text)
    return path


def sweep(folder: Path, text: str, overrides: Sequence[str] = ()) -> Sweep:
    return load_sweep(file(folder, text), overrides)


def names(found: Sweep) -> list[dict[str, str]]:
    return [dict(run.setting) for run in found.runs]


# What the modes make of axes.


def test_a_grid_crosses_its_axes_the_last_one_fastest(tmp_path: Path) -> None:
    found = sweep(tmp_path, "axes:\n  method: [normal, llf]\n  optimizer.lr: [0.1, 1.0e-5, 2]\n")
    assert names(found) == [
        {"method": "normal", "optimizer.lr": "0.1"},
        {"method": "normal", "optimizer.lr": "1e-05"},
        {"method": "normal", "optimizer.lr": "2"},
        {"method": "llf", "optimizer.lr": "0.1"},
        {"method": "llf", "optimizer.lr": "1e-05"},
        {"method": "llf", "optimizer.lr": "2"},
    ]
    recipes = [run.job.recipe for run in found.runs]
    assert [replace(r.method, split_at=None) for r in recipes] == [Normal()] * 3 + [Llf()] * 3
    assert [r.optimizer.lr for r in recipes] == [0.1, 1e-5, 2.0] * 2
    base = load_job(tmp_path / "run.yaml")
    for run in found.runs:
        assert run.job.name == "trial"
        assert run.job.placement == base.placement
        assert run.job.recipe.optimizer.momentum == 0.8
        assert run.job.recipe.data == base.recipe.data


def test_zip_walks_along_its_axes_together(tmp_path: Path) -> None:
    found = sweep(tmp_path, "mode: zip\naxes:\n  batch_size: [32, 64, 64]\n  optimizer.lr: [0.1, 0.1, 0.2]\n")
    pairs = [(run.job.recipe.batch_size, run.job.recipe.optimizer.lr) for run in found.runs]
    assert pairs == [(32, 0.1), (64, 0.1), (64, 0.2)]
    assert found.baseline == {"batch_size": "32", "optimizer.lr": "0.1"}


def test_a_list_is_its_settings_the_rest_as_in_base(tmp_path: Path) -> None:
    found = sweep(
        tmp_path,
        "mode: list\naxes:\n- {method: normal}\n- {optimizer.weight_decay: 0, method: llf}\n- {seed: 7}\n",
    )
    assert names(found) == [
        {"method": "normal", "optimizer.weight_decay": "-", "seed": "-"},
        {"method": "llf", "optimizer.weight_decay": "0", "seed": "-"},
        {"method": "-", "optimizer.weight_decay": "-", "seed": "7"},
    ]
    recipes = [run.job.recipe for run in found.runs]
    assert [replace(r.method, split_at=None) for r in recipes] == [Normal(), Llf(), Seal(ascent_rate=0.5)]
    assert [r.optimizer.weight_decay for r in recipes] == [5e-4, 0.0, 5e-4]
    assert found.baseline == names(found)[0]


def test_a_labelled_setting_is_known_by_its_label_alone(tmp_path: Path) -> None:
    named = (
        "mode: list\naxes:\n  plain: {method: normal}\n  short: {budget.epochs: 8, method: {name: seal}}\n"
    )
    found = sweep(tmp_path, named + "  off: {method.ascent_rate: 0.1}\n")
    assert names(found) == [{"setting": "plain"}, {"setting": "short"}, {"setting": "off"}]
    recipes = [run.job.recipe for run in found.runs]
    base = load_job(tmp_path / "run.yaml").recipe
    assert [replace(r.method, split_at=None) for r in recipes] == [Normal(), Seal(), Seal(ascent_rate=0.1)]
    assert [r.budget.epochs for r in recipes] == [base.budget.epochs, 8, base.budget.epochs]
    assert found.baseline == {"setting": "plain"}
    with pytest.raises(ConfigError, match=r"baseline.*setting: plain, short"):
        sweep(tmp_path, named + "baseline: {setting: long}\n")


def test_a_field_of_a_labelled_setting_is_checked_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, "mode: list\naxes:\n  plain: {method: normal}\n  other:\n    budget.epoch: 3\n")
    assert re.search(r"trial\.yaml:6: recipe\.budget\.epoch: .*epochs", str(caught.value))


RANDOM = """\
mode: random
axes:
  optimizer.lr: {log_uniform: [0.01, 1]}
  optimizer.momentum: {uniform: [0.5, 0.99]}
  data.per_class: {integer: [3, 5]}
  method:
  - normal
  - {name: seal, ascent_rate: {rise: {uniform: [0.1, 2]}, start: 0.2}}
"""


def test_random_draws_within_its_distributions(tmp_path: Path) -> None:
    found = sweep(tmp_path, RANDOM + "samples: 300\n")
    recipes = [run.job.recipe for run in found.runs]
    assert len(recipes) == 300
    rates = np.array([r.optimizer.lr for r in recipes])
    assert rates.min() >= 0.01
    assert rates.max() <= 1
    assert 0.4 < (rates < 0.1).mean() < 0.6  # half of the draws a decade
    momenta = np.array([r.optimizer.momentum for r in recipes])
    assert momenta.min() >= 0.5
    assert momenta.max() <= 0.99
    assert abs(momenta.mean() - 0.745) < 0.03
    assert {r.data.per_class for r in recipes} == {3, 4, 5}
    seals = [r.method for r in recipes if isinstance(r.method, Seal)]
    assert 100 < len(seals) < 200
    rises = [method.ascent_rate for method in seals]
    assert all(isinstance(r, Rise) and r.start == 0.2 and 0.1 <= r.rise <= 2 for r in rises)
    assert len(set(rises)) > 50
    assert found.baseline == {}


def test_draws_are_called_by_what_was_drawn(tmp_path: Path) -> None:
    for run in sweep(tmp_path, RANDOM + "samples: 20\n").runs:
        recipe = run.job.recipe
        assert float(run.setting["optimizer.lr"]) == recipe.optimizer.lr
        assert run.setting["data.per_class"] == str(recipe.data.per_class)
        if isinstance(recipe.method, Seal):
            assert isinstance(recipe.method.ascent_rate, Rise)
            rise = recipe.method.ascent_rate.rise
            assert run.setting["method"] == f"seal(ascent_rate=rise={rise:g}, start=0.2)"
        else:
            assert run.setting["method"] == "normal"


def test_more_samples_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    few, many = (sweep(tmp_path, RANDOM + f"samples: {n}\n") for n in (5, 9))
    assert many.runs[:5] == few.runs
    assert sweep(tmp_path, RANDOM + "samples: 5\n") == few
    other = sweep(tmp_path, RANDOM + "samples: 5\nsample_seed: 1\n")
    assert not set(map(str, names(other))) & set(map(str, names(few)))


def test_a_named_draw_has_its_name_and_what_was_drawn(tmp_path: Path) -> None:
    axes = "{weak: llf, strong: {name: seal, ascent_rate: {integer: [1, 9]}}}"
    text = f"mode: random\nsamples: 30\naxes: {{method: {axes}}}\n"
    labels = {run.setting["method"] for run in sweep(tmp_path, text).runs}
    assert "weak" in labels
    assert labels - {"weak"} <= {f"strong seal(ascent_rate={n})" for n in range(1, 10)}
    assert len(labels) > 5
    without = sweep(tmp_path, text + "exclude: [{method: weak}]\n")
    assert {run.setting["method"] for run in without.runs} == labels - {"weak"}


def test_a_setting_drawn_again_is_the_same(tmp_path: Path) -> None:
    text = "mode: random\nsamples: 40\naxes: {method: [normal, llf], batch_size: {integer: [1, 2]}}\n"
    assert len(sweep(tmp_path, text).runs) == 4


@pytest.mark.parametrize("bounds", [[0.9991, 0.9999], [0.12341, 0.12349], [-2, 3]])
def test_draws_keep_to_their_bounds_where_three_digits_would_not(bounds: list[float]) -> None:
    for seed in range(50):
        value = sample({"uniform": bounds}, Random(np.random.default_rng(seed)), "x")
        assert bounds[0] <= value <= bounds[1]


# What settings are called, and which remain.


def test_entries_may_be_named(tmp_path: Path) -> None:
    text = "axes:\n  method:\n    none: normal\n    weak: {name: seal, ascent_rate: 0.1}\n    '0.5': llf\n"
    found = sweep(tmp_path, text)
    assert names(found) == [{"method": "none"}, {"method": "weak"}, {"method": "0.5"}]
    assert [replace(run.job.recipe.method, split_at=None) for run in found.runs] == [
        Normal(),
        Seal(ascent_rate=0.1),
        Llf(),
    ]


@pytest.mark.parametrize(
    ("axis", "value", "label"),
    [
        ("method", "{name: seal, ascend: late, ascent_rate: 0.50}", "seal(ascend=late, ascent_rate=0.5)"),
        ("method", "{name: llf}", "llf"),
        ("method", "{name: seal, ascent_rate: {rise: 2.0}}", "seal(ascent_rate=rise=2)"),
        ("budget", "{epochs: 8, generation_length: 8}", "epochs=8, generation_length=8"),
        ("data.per_class", "null", "null"),
        ("augment.flip", "no", "no"),
        ("optimizer.lr", "0.12345678", "0.12345678"),
        ("optimizer.lr", "1.0", "1"),
        ("seed", "123456789", "123456789"),
        ("data.path", '"one\\ntwo"', r"'one\ntwo'"),
        ("data.path", "données", "données"),
    ],
)
def test_a_value_is_labelled_by_what_it_is(tmp_path: Path, axis: str, value: str, label: str) -> None:
    assert names(sweep(tmp_path, f"axes: {{{axis}: [{value}]}}\n")) == [{axis: label}]


EXCLUDING = "axes:\n  method: [normal, llf, seal]\n  batch_size: [8, 16, 32]\n"


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ("[{method: normal, batch_size: 16}]", ["n8", "n32", "l8", "l16", "l32", "s8", "s16", "s32"]),
        ("[{method: normal, batch_size: [8, 32]}]", ["n16", "l8", "l16", "l32", "s8", "s16", "s32"]),
        ("[{method: [normal, llf], batch_size: [8, 16]}, {method: seal}]", ["n32", "l32"]),
        ("[{batch_size: '16'}, {batch_size: 8}]", ["n32", "l32", "s32"]),
    ],
)
def test_exclude_leaves_out_what_has_all_of_a_rules_labels(
    tmp_path: Path, rules: str, left: list[str]
) -> None:
    found = sweep(tmp_path, f"{EXCLUDING}exclude: {rules}\n")
    assert [run.setting["method"][0] + run.setting["batch_size"] for run in found.runs] == left


def test_seeds_go_on_from_the_recipes(tmp_path: Path) -> None:
    found = sweep(tmp_path, "recipe: {seed: 5}\nseeds: 3\naxes: {method: [normal, llf]}\n")
    assert [(run.setting["method"], run.job.recipe.seed) for run in found.runs] == [
        ("normal", 5),
        ("normal", 6),
        ("normal", 7),
        ("llf", 5),
        ("llf", 6),
        ("llf", 7),
    ]


@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        ("axes: {batch_size: [8, 16], method: [llf, normal]}", {"method": "llf"}),
        ("axes: {batch_size: [8, 16], seed: [1]}", {"batch_size": "8", "seed": "1"}),
        ("axes: {method: [llf, seal]}\nexclude: [{method: llf}]", {"method": "seal"}),
        ("axes: {method: [llf, seal]}\nbaseline: {method: seal}", {"method": "seal"}),
        (
            "axes: {method: [llf, seal], optimizer.lr: [0.1, 2]}\nbaseline: {method: llf, optimizer.lr: 2.0}",
            {"method": "llf", "optimizer.lr": "2"},
        ),
        ("mode: zip\naxes: {method: [llf], seed: [1]}", {"method": "llf", "seed": "1"}),
    ],
)
def test_differences_are_taken_to_the_baseline(tmp_path: Path, text: str, baseline: dict[str, str]) -> None:
    assert sweep(tmp_path, text + "\n").baseline == baseline


# What a run is made of: base, the sweep's sections, overrides, axes.


def test_base_lies_beside_the_sweep_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "runs/run.yaml").write_text("name: other\n" + RUN)
    path = tmp_path / "sweeps/mine.yaml"
    path.write_text("base: ../runs/run.yaml\naxes: {method: [llf]}\n")
    monkeypatch.chdir(tmp_path)
    for where in (path, Path("sweeps/mine.yaml"), "sweeps/mine.yaml"):
        (run,) = load_sweep(where).runs
        assert run.job.name == "mine"
        assert run.job.recipe.optimizer.momentum == 0.8
    path.write_text(f"name: ours\nbase: {tmp_path}/runs/run.yaml\naxes: {{method: [llf]}}\n")
    assert load_sweep(path).name == load_sweep(path).runs[0].job.name == "ours"


def test_a_sweep_may_hold_its_recipe_itself(tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(RUN + "axes: {method: [llf]}\n")
    (run,) = load_sweep(path).runs
    assert (
        run.job.recipe == load_job(file(tmp_path, "") and tmp_path / "run.yaml", ["recipe.method=llf"]).recipe
    )
    assert run.job.placement.storage == "there"


def test_the_sweeps_sections_go_over_those_of_base(tmp_path: Path) -> None:
    text = """\
recipe: {method: {name: llf, init: model}, optimizer: {lr: 0.3}, budget: {epochs: 24}}
placement: {workers: 1, keep: {moments: [init]}}
axes: {batch_size: [8]}
"""
    (run,) = sweep(tmp_path, text).runs
    recipe, placement = run.job.recipe, run.job.placement
    assert recipe.method == Llf(split_at="layer3", init="model")
    assert (recipe.optimizer.lr, recipe.optimizer.momentum) == (0.3, 0.8)
    assert recipe.budget == Budget(24, 8)
    assert (placement.storage, placement.keep.checkpoints) == ("there", 5)
    assert placement.keep.moments == ("init",)


def test_an_optimizer_that_is_named_takes_nothing_from_that_of_base(tmp_path: Path) -> None:
    (run,) = sweep(tmp_path, "recipe: {optimizer: {name: adamw, lr: 0.01}}\naxes: {seed: [1]}\n").runs
    assert run.job.recipe.optimizer == OPTIMIZERS["adamw"](lr=0.01)
    runs = sweep(tmp_path, "axes: {optimizer: [{lr: 0.3}, AdamW, {name: rmsprop, centered: true}]}\n").runs
    assert [run.job.recipe.optimizer.name for run in runs] == ["sgd", "adamw", "rmsprop"]
    assert [run.setting["optimizer"] for run in runs] == ["lr=0.3", "AdamW", "rmsprop(centered=true)"]


def test_tracking_is_short_for_that_of_the_placement(tmp_path: Path) -> None:
    text = "axes: {seed: [1]}\nplacement: {tracking: {entity: us, project: old}}\ntracking: {project: new}\n"
    (run,) = sweep(tmp_path, text).runs
    assert (run.job.placement.tracking.project, run.job.placement.tracking.entity) == ("new", "us")
    with pytest.raises(ConfigError, match=r"trial\.yaml:3: placement\.tracking\.projekt: unknown field"):
        sweep(tmp_path, "axes: {seed: [1]}\ntracking: {projekt: new}\n")


def test_analyses_are_those_of_base_unless_the_sweep_names_its_own(tmp_path: Path) -> None:
    (run,) = sweep(tmp_path, "axes: {seed: [1]}\nanalyses: [depth]\n").runs
    assert run.job.analyses.what == ("depth",)
    (run,) = sweep(tmp_path, "axes: {seed: [1]}\n").runs
    assert run.job.analyses.what == ()


def test_overrides_change_every_run_or_the_sweep(tmp_path: Path) -> None:
    text = "seeds: 3\nrecipe: {optimizer: {lr: 0.3}}\naxes: {batch_size: [8, 16]}\n"
    given = ["recipe.budget.epochs=8", "seeds=1", "recipe.method.ascent_rate=0.7", "placement.storage=here"]
    found = sweep(tmp_path, text, given)
    assert len(found.runs) == 2
    for run in found.runs:
        assert run.job.recipe.budget == Budget(8, 8)
        assert run.job.recipe.method == Seal(split_at="layer3", ascent_rate=0.7)
        assert run.job.recipe.optimizer.lr == 0.3
        assert run.job.placement.storage == "here"
    methods = sweep(tmp_path, text, ["axes.method=[normal, llf]"]).runs
    assert len(methods) == 12
    assert sweep(tmp_path, text, ["axes={method: [llf]}"]).baseline == {"method": "llf"}


def test_a_method_comes_before_its_fields_whichever_axis_is_first(tmp_path: Path) -> None:
    axes = ["method: [seal, {name: seal, ascend: late}]", "method.ascent_rate: [0.2, 0.3]"]
    for first, second in (axes, axes[::-1]):
        found = sweep(tmp_path, f"axes:\n  {first}\n  {second}\n")
        assert {run.job.recipe.method for run in found.runs} == {
            Seal(split_at="layer3", ascend=ascend, ascent_rate=rate)
            for ascend in ("early", "late")
            for rate in (0.2, 0.3)
        }


def test_early_stopping_is_read(tmp_path: Path) -> None:
    text = "axes: {method: [llf]}\n"
    assert sweep(tmp_path, text).early_stopping is None
    stopping = sweep(tmp_path, text + "early_stopping: {after_epochs: 8}\n").early_stopping
    assert stopping == EarlyStopping(after_epochs=8, reduction_factor=3.0)


def test_what_has_axes_is_a_sweep(tmp_path: Path) -> None:
    assert is_sweep(file(tmp_path, "axes: {method: [llf]}\n"))
    assert not is_sweep(tmp_path / "run.yaml")


# Values at paths, which sweeps move from one document into another.


def test_what_is_put_comes_with_its_places(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: {c: 1, d: 2}}\nname: text\n")
    held = read(path)
    other = tmp_path / "b.yaml"
    other.write_text("\n\nlist:\n- {x: 1,\n   y: 2}\n")
    source = read(other)
    result = put(held, ("a", "b"), source, ("list", 0))
    assert result.value == {"a": {"b": {"x": 1, "y": 2}}, "name": "text"}
    assert held.value == {"a": {"b": {"c": 1, "d": 2}}, "name": "text"}
    assert result.places[("a", "b", "y")] == f"{other}:5"
    assert result.places[("a",)] == f"{path}:1"
    assert ("a", "b", "c") not in result.places
    below = put(held, ("name", "z"), source, ("list", 0, "y"))
    assert below.value["name"] == {"name": "text", "z": 2}
    assert below.places[("name",)] == below.places[("name", "z")] == f"{other}:5"


def test_a_path_that_leads_nowhere_leads_to_nothing() -> None:
    value: dict[str, Any] = {"a": [1, {"b": 2}], "c": "text"}
    assert at(value, ()) == value
    assert at(value, ("a", 1, "b")) == 2
    assert [at(value, path) for path in [("a", "x"), ("x", "y"), ("c", "d"), ("a", 0, "b")]] == [None] * 4
    changed = override(Document(value, {(): "here"}), ["a.x.y=3"])
    assert changed.value == {"a": {"x": {"y": 3}}, "c": "text"}


# The sweeps that come with the package.


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_called_after_their_file_and_begin_with_their_command(path: Path) -> None:
    found = load_sweep(path)
    assert found.name == path.stem
    alone = f"seal-ray sweep {path.relative_to(ROOT)}"
    command = "make quickstart" if path.stem.startswith("quickstart") else alone
    assert re.match(rf"# {command}\b", path.read_text())
    assert len({run.job.recipe for run in found.runs}) == len(found.runs)


def test_shipped_sweeps_start_from_shipped_runs() -> None:
    for path in (ROOT / "jobs/sweeps").glob("*.yaml"):
        base = path.parent / yaml.safe_load(path.read_text())["base"]
        assert base.resolve().is_relative_to(ROOT / "jobs/runs")


def test_the_papers_sweep_is_the_papers_runs() -> None:
    runs = ROOT / "jobs/runs/tiny-imagenet"
    found = load_sweep(ROOT / "jobs/sweeps/paper-tiny-imagenet.yaml")
    for run in found.runs:
        alone = load_job(runs / f"{run.setting['method']}.yaml", [f"recipe.seed={run.job.recipe.seed}"])
        assert run.job.recipe == alone.recipe
    assert len(found.runs) == 12


def test_the_papers_study_holds_its_sweep_and_every_schedule_warms_up_for_20_epochs() -> None:
    found = load_sweep(ROOT / "jobs/studies/paper.yaml").runs
    table = load_sweep(ROOT / "jobs/sweeps/paper-tiny-imagenet.yaml").runs
    assert {run.job.recipe for run in table} < {run.job.recipe for run in found}
    lengths = {"normal": (160, 480, 1600), "long": (480, 1600), "llf": (480, 1600), "seal": (480, 1600)}
    assert Counter((run.setting["method"], run.job.recipe.budget.epochs) for run in found) == {
        (method, epochs): 2 * 2 * 3 for method, many in lengths.items() for epochs in many
    }
    for run in found:
        budget, whole = run.job.recipe.budget, run.setting["method"] == "long"
        cycle = budget.epochs if whole else budget.generation_length
        assert round(run.job.recipe.optimizer.warmup_share * cycle, 3) == 20


def test_the_quickstarts_sweep_is_its_runs_with_fresh_seeds_and_a_control() -> None:
    found = load_sweep(ROOT / "jobs/sweeps/quickstart.yaml").runs
    assert [run.job.recipe.seed for run in found] == [*range(10, 16)] * 4
    for run in found[::6]:
        stopped = run.setting["setting"] == "stopped"
        alone = load_job(
            ROOT / f"jobs/runs/quickstart/{'normal' if stopped else run.setting['setting']}.yaml",
            ["recipe.seed=10", *["recipe.budget.epochs=12"] * stopped],
        )
        assert (run.job.recipe, run.job.placement) == (alone.recipe, alone.placement)
