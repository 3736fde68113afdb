"""What is said of sweep files that make no sweep, and that nothing else ever comes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_ray.errors import ConfigError
from seal_ray.methods import METHODS
from seal_ray.sweeps.file import MAX_RUNS, load_sweep
from tests.unit.sweeps.test_file import RUN, file

SHIPPED = sorted((Path(__file__).parents[3] / "jobs/sweeps").glob("*.yaml"))


def complaints(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(path, overrides)
    return str(caught.value).split("\n")


# What is wrong with a sweep. Each text marks the line that the complaint must name with `#!`.

LIST = "mode: list\naxes:\n"
BAD = {
    "unknown axis": (
        "axes:\n  optimizer.learning_rate: [1] #!\n",
        "recipe.optimizer.learning_rate",
        "did you mean 'lr'? (fields: name, lr,",
    ),
    "axis of another method": (
        "axes:\n  method:\n  - llf\n  method.ascent_rate: [1] #!\n",
        "recipe.method.ascent_rate",
        "is a field of seal, not of llf; remove it",
    ),
    "bad value": (
        "axes:\n  batch_size:\n  - 32\n  - '64' #!\n",
        "recipe.batch_size",
        "must be a whole number, not '64'; remove the quotes (first in the setting (batch_size: 64))",
    ),
    "bad value of a named entry": (
        "axes:\n  method:\n    a: normal\n    b:\n      name: seal\n      ascend: top #!\n",
        "recipe.method.ascend",
        "must be 'early', 'late' or 'all', not 'top' (first in the setting (method: b))",
    ),
    "bad value in a list": (LIST + "- {method: llf}\n- {method: lff} #!\n", "recipe.method", "'llf'?"),
    "values that do not go together": (
        "axes:\n  shards: [1, 3] #!\n",
        "recipe.shards",
        "a batch of 32 cannot be cut into 3 equal shards",
    ),
    "number as a label": (
        "axes:\n  batch_size:\n    1: 8 #!\n",
        "axes.batch_size",
        "a field name must be text, not 1; quote it",
    ),
    "word for a boolean in the baseline": (
        "axes: {augment.flip: [true, false]}\nbaseline: {augment.flip: off} #!\n",
        "baseline",
        "matches no setting; did you mean 'false'? axes are augment.flip: true, false",
    ),
    "boolean in a baseline of words": (
        "axes: {augment.flip: [on, no]}\nbaseline: {augment.flip: false} #!\n",
        "baseline",
        "matches no setting; did you mean 'no'? axes are augment.flip: on, no",
    ),
    "baseline that is a word": (
        "axes: {method: [normal, llf]}\nbaseline: llf #!\n",
        "baseline",
        "must be axes with a value of each, such as {method: llf}, not 'llf'",
    ),
    "rule that is a list": (
        "axes: {method: [normal, llf]}\nexclude:\n- [llf] #!\n",
        "exclude.0",
        "must be axes with a value of each, such as {method: normal}, not ['llf']",
    ),
    "nearly a label": (
        "axes: {method: [normal, llf]}\nexclude:\n- method: noraml #!\n",
        "exclude.0",
        "matches no setting; did you mean 'normal'? axes are method: normal, llf",
    ),
    "bad draw": (
        "mode: random\nsamples: 3\naxes:\n  optimizer.momentum: {integer: [3, 4]} #!\n",
        "recipe.optimizer.momentum",
        "must be less than 1, not",
    ),
    "a name that leaves the folder": ("axes: {seed: [1]}\nname: ../up #!\n", "name", "cannot name a folder"),
    "no axes": ("axes: {} #!\n", "axes", "is empty; name a recipe field and its values, such as method:"),
    "no settings": (LIST.rstrip() + " [] #!\n", "axes", "is empty"),
    "axes of text": ("axes: method #!\n", "axes", "must be a mapping of fields or a list, not 'method'"),
    "axis without values": (
        "axes:\n  seed: [1]\n  method: [] #!\n",
        "axes.method",
        "must be a list of values",
    ),
    "axis with one value": ("axes:\n  method: llf #!\n", "axes.method", "list of values, or label: value"),
    "duplicate labels": (
        "axes:\n  seed: [1]\n  method:\n  - llf\n  - seal\n  - llf #!\n",
        "axes.method.2",
        "the setting (seed: 1, method: llf) is there twice; keep one",
    ),
    "setting listed twice": (
        LIST + "- {method: llf}\n- {seed: 1}\n- {method: llf} #!\n",
        "axes.2.method",
        "the setting (method: llf, seed: -) is there twice; keep one",
    ),
    "pair zipped twice": (
        "mode: zip\naxes:\n  seed: [1, 1] #!\n  shards: [2, 2]\n",
        "axes.seed.1",
        "is there twice",
    ),
    "two names for one thing": (
        "axes: #!\n  method:\n    a: llf\n    b: {name: llf, init: reference}\n",
        "axes",
        "the setting (method: b) computes the same as the setting (method: a); remove one",
    ),
    "seeds as an axis and beside it": (
        "seeds: 2\naxes: #!\n  seed: [0, 1]\n",
        "axes",
        "the setting (seed: 1) computes the same as the setting (seed: 0)",
    ),
    "unequal zip": (
        "mode: zip\naxes: #!\n  seed: [1, 2]\n  shards: [1]\n",
        "axes",
        "mode zip needs axes of equal length, not seed of 2, shards of 1",
    ),
    "unknown mode": ("axes: {seed: [1]}\nmode: gird #!\n", "mode", "did you mean 'grid'?"),
    "list without mode": ("axes: #!\n- {seed: 1}\n", "axes", "mode grid needs a mapping of axes"),
    "mode list without one": (
        "mode: list\naxes: {seed: [1]} #!\n",
        "axes",
        "mode list needs settings, a list or label: setting",
    ),
    "random without samples": (
        "mode: random\naxes: {seed: [1]}\n",
        "samples",
        "mode random needs it: how many",
    ),
    "samples in a grid": ("axes: {seed: [1]}\nsamples: 3 #!\n", "samples", "mode grid draws nothing; remove"),
    "sample seed in a grid": ("axes: {seed: [1]}\nsample_seed: 0 #!\n", "sample_seed", "draws nothing"),
    "rule that matches nothing": (
        "axes: {method: [llf, seal], seed: [1, 2]}\nexclude:\n- {seed: 2}\n- {method: lff} #!\n",
        "exclude.1",
        "matches no setting; did you mean 'llf'? axes are method: llf, seal; seed: 1, 2",
    ),
    "rule about no axis": ("axes: {seed: [1]}\nexclude: [{sed: 1}] #!\n", "exclude.0", "axes are seed: 1"),
    "empty rule": ("axes: {seed: [1]}\nexclude: [{}] #!\n", "exclude.0", "matches no setting"),
    "rules that leave nothing": (
        "axes: {seed: [1, 2]}\nexclude: [{seed: [1, 2]}] #!\n",
        "exclude",
        "leaves no run; remove a rule",
    ),
    "unknown baseline": (
        "axes: {method: [llf, seal]}\nbaseline: {method: normal} #!\n",
        "baseline",
        "matches no setting; axes are method: llf, seal",
    ),
    "excluded baseline": (
        "axes: {method: [llf, seal]}\nexclude: [{method: llf}]\nbaseline: {method: llf} #!\n",
        "baseline",
        "matches no setting; axes are method: seal",
    ),
    "more generations than any run has": (
        "axes: {budget.epochs: [8, 16]}\nafter_generations:\n- 2\n- 3 #!\n",
        "after_generations.1",
        "3 is more than any run's generations; lower it to 2 or less",
    ),
    "after no generation": (
        "axes: {seed: [1]}\nafter_generations: [0] #!\n",
        "after_generations.0",
        "must be at least 1, not 0",
    ),
    "after generations of text": (
        "axes: {seed: [1]}\nafter_generations: all #!\n",
        "after_generations",
        "must be a list, not 'all'",
    ),
    "after a generation twice": (
        "axes: {seed: [1]}\nafter_generations: [1, 1] #!\n",
        "after_generations",
        "has a number twice; keep one",
    ),
    "too many runs": (
        "axes: {seed: [1, 2], method: [llf, seal, sam, ke], batch_size: [1, 2]} #!\nseeds: 1000\n",
        "axes",
        "16 settings x 1000 seeds are more than 10000 runs; narrow them, or lower seeds",
    ),
    "too many settings": (
        f"axes: #!\n{''.join(f'  a{i}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]{chr(10)}' for i in range(30))}",
        "axes",
        "make more than 10000 settings; narrow them",
    ),
    "too many seeds": ("axes: {seed: [1]}\nseeds: 1001 #!\n", "seeds", "must be at most 1000"),
    "too many samples": (
        "mode: random\naxes: {seed: [1]}\nsamples: 10001 #!\n",
        "samples",
        f"must be at most {MAX_RUNS}",
    ),
    "unknown field": ("axes: {seed: [1]}\nseed: 3 #!\n", "seed", "did you mean 'seeds'?"),
    "section that is none": (
        "axes: {seed: [1]}\nrecipe: 3 #!\n",
        "recipe",
        "must be a mapping of fields, not 3",
    ),
    "bad section": ("axes: {seed: [1]}\nrecipe: {sed: 3} #!\n", "recipe.sed", "did you mean 'seed'?"),
    "bad early stopping": (
        "axes: {seed: [1]}\nearly_stopping: {after_epochs: 0} #!\n",
        "early_stopping.after_epochs",
        "must be at least 1, not 0",
    ),
    "distribution without bounds": (
        "mode: random\nsamples: 1\naxes:\n  optimizer.lr: {uniform: 3} #!\n",
        "axes.'optimizer.lr'",
        "uniform needs [low, high], two numbers",
    ),
    "integer of fractions": (
        "mode: random\nsamples: 1\naxes:\n  seed: {integer: [0.2, 0.8]} #!\n",
        "axes.seed",
        "integer needs [low, high], two whole numbers",
    ),
    "endless distribution": (
        "mode: random\nsamples: 1\naxes:\n  seed: {uniform: [0, .inf]} #!\n",
        "axes.seed",
        "two numbers of at most 1e+18 in size",
    ),
    "bounds the wrong way round": (
        "mode: random\nsamples: 1\naxes:\n  seed:\n  - {uniform: [2, 1]} #!\n",
        "axes.seed.0",
        "uniform needs low < high",
    ),
    "logarithm of 0": (
        "mode: random\nsamples: 1\naxes:\n  seed: {log_uniform: [0, 1]} #!\n",
        "axes.seed",
        "log_uniform needs low < high, both above 0",
    ),
    "field that reads as a name": (
        "mode: random\nsamples: 1\naxes:\n  method.ascent_rate: {rise: {uniform: [1, 2]}} #!\n",
        "axes.'method.ascent_rate'",
        "names its single value 'rise'; for a field of that name write [{rise: ...}]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_line_path_and_remedy(tmp_path: Path, name: str) -> None:
    text, field, remedy = BAD[name]
    path = file(tmp_path, text)
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if "#!" in line]
    (complaint,) = complaints(path)
    assert complaint.startswith(f"{path}:{lines[0] if lines else 1}: {field}: ")
    assert remedy in complaint


def test_a_sweep_without_axes_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "")
    (complaint,) = complaints(path)
    assert complaint.startswith(f"{path}:1: axes: missing; add it: recipe fields and their values; in mode")


def test_a_base_that_cannot_be_read_is_named_with_the_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("axes: {seed: [1]}\nbase: runs/none.yaml\n")
    missing = tmp_path / "runs/none.yaml"
    assert complaints(path) == [f"{path}:2: base: {missing}: no such file; give the path of a YAML file"]
    missing.parent.mkdir()
    missing.write_text("recipe:\n  seed: !x 1\n  shards: 1\n  shards: 2\n")
    first, second = complaints(path)
    assert first.startswith(f"{path}:2: base: {missing}:2: recipe.seed: the tag '!x' is not allowed")
    assert second.startswith(f"{path}:2: base: {missing}:4: recipe.shards: is given twice")
    missing.write_text(RUN + "  retries: many\n")
    said = (
        f"{missing}:9: placement.retries: must be a whole number, not 'many' (first in the setting (seed: 1))"
    )
    assert complaints(path) == [said]


def test_neither_base_nor_recipe(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("axes: {seed: [1]}\n")
    (complaint,) = complaints(path)
    assert complaint.startswith(f"{path}:1: has neither base nor recipe; add `base: RUN.yaml` or the recipe")


def test_problems_of_all_runs_are_listed_once_each(tmp_path: Path) -> None:
    path = file(tmp_path, "axes:\n  seed: [1, -1]\n  optimizer.lr: [0.1, 0]\n  batch_size: [1, 2, 3]\n")
    first, second = complaints(path)
    assert first == (
        f"{path}:4: recipe.optimizer.lr: must be greater than 0, not 0 "
        "(first in the setting (seed: 1, optimizer.lr: 0, batch_size: 1))"
    )
    assert second.startswith(f"{path}:3: recipe.seed: must be at least 0, not -1")


def test_bad_overrides_are_named(tmp_path: Path) -> None:
    path = file(tmp_path, "axes: {batch_size: [8]}\n")
    for assignment, field, remedy in [
        ("seeds=many", "seeds", "must be a whole number, not 'many'"),
        ("recipe.sed=1", "recipe.sed", "did you mean 'seed'?"),
        ("placement.keep.moments.0.x=1", "placement.keep.moments", "must be a list"),
        ("axes.batch_size=8", "axes.batch_size", "must be a list of values"),
    ]:
        (complaint,) = complaints(path, [assignment])
        assert complaint.startswith(f"--set {assignment}: {field}: ")
        assert remedy in complaint


# Anything at all is a sweep or a ConfigError.

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
TEXTS = [path.read_text() for path in SHIPPED] + ["base: run.yaml\n" + RANDOM + "samples: 3\n"]
WORDS = st.sampled_from(
    sorted({*re.findall(r"[\w.]+", "".join(TEXTS)), *METHODS, "integer", "exclude", "zip", "recipe"})
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)


def check(path: Path, overrides: Sequence[str] = ()) -> None:
    try:
        found = load_sweep(path, overrides)
    except ConfigError as error:
        lines = str(error).split("\n")
        assert all(line.startswith((f"{path}:", f"{path.parent}/", "--set ")) for line in lines), lines
        return
    assert found.runs
    keys = [(tuple(run.setting.items()), run.job.recipe.seed) for run in found.runs]
    assert len(set(keys)) == len(keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "run.yaml").write_text(RUN)
    return path


@settings(max_examples=200)
@given(
    axes=st.dictionaries(WORDS, VALUES, max_size=3) | st.lists(st.dictionaries(WORDS, VALUES, max_size=3)),
    others=st.dictionaries(
        st.sampled_from(["mode", "samples", "exclude", "baseline", "recipe", "placement", "base", "seeds"]),
        VALUES | st.integers(1, 3) | st.sampled_from(["grid", "zip", "random", "list", "run.yaml"]),
        max_size=3,
    ),
)
def test_any_yaml_is_a_sweep_or_a_config_error(axes: Any, others: dict[str, Any], folder: Path) -> None:
    path = folder / "values.yaml"
    value = {"base": "run.yaml", "axes": axes, **others}
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    check(path)


@settings(max_examples=200)
@given(data=st.data())
def test_a_sweep_with_other_values_is_a_sweep_or_a_config_error(data: st.DataObject, folder: Path) -> None:
    value = yaml.safe_load(data.draw(st.sampled_from(TEXTS)))
    value["base"] = "run.yaml"
    for _ in range(data.draw(st.integers(1, 3))):
        held = value
        while isinstance(held, dict) and held:
            key = data.draw(st.sampled_from(sorted(held)))
            if not isinstance(held[key], dict) or data.draw(st.booleans()):
                held[data.draw(st.just(key) | WORDS)] = data.draw(VALUES)
                break
            held = held[key]
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    check(path)


@settings(max_examples=150)
@given(
    path=st.lists(WORDS, min_size=1, max_size=4).map(".".join)
    | st.sampled_from(["axes.method", "recipe.method", "exclude", "baseline", "recipe.method.ascent_rate"]),
    value=VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
)
def test_any_override_gives_a_sweep_or_a_config_error(path: str, value: str, folder: Path) -> None:
    text = folder / "overridden.yaml"
    text.write_text("base: run.yaml\naxes: {method: [normal, llf], optimizer.lr: [0.1, 0.2]}\n")
    check(text, [f"{path}={value}".replace("\n", " ")])
