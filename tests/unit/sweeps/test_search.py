"""Searches: what is suggested, and why; against functions whose optimum is known, and on a few digits."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seal_ray.analysis.run import measure
from seal_ray.api import sweep
from seal_ray.distributed.launch import Planned, prepare_job
from seal_ray.errors import ConfigError, StorageError
from seal_ray.runs.folder import ENDED, Store
from seal_ray.storage.files import make_folder
from seal_ray.sweeps.file import Setting, Sweep, SweepRun, load_sweep
from seal_ray.sweeps.plan import cautions
from seal_ray.sweeps.progress import SweepProgress
from seal_ray.sweeps.queue import Queue
from seal_ray.sweeps.results import SweepRuns, results, write_results
from seal_ray.sweeps.search import Outcome, SearchRuns, Suggestions
from seal_ray.sweeps.tune import Tasks, run_sweep, train_sweep
from tests.sweeps import leaderboard_of, screen, small_sweep, trained_where

RUN = """\
recipe:
  data: {path: x}
  method: {name: seal, ascent_rate: 0.5}
  budget: {epochs: 16, generation_length: 8}
"""
AXES = """\
axes:
  method: [normal, seal]
  method.ascent_rate:
    when: {method: seal}
    values: {log_uniform: [0.01, 1]}
  optimizer.lr: {log_uniform: [1.0e-4, 1]}
"""


def search(folder: Path, asked: str, axes: str = AXES) -> Sweep:
    (folder / "run.yaml").write_text(RUN)
    path = folder / "trial.yaml"
    path.write_text(f"base: run.yaml\nsearch: {{{asked}}}\n{axes}")
    return load_sweep(path)


def suggested(sweep: Sweep, value: Callable[[Setting], Outcome | None]) -> list[Setting]:
    """What is suggested where `value` is what comes of a setting."""
    assert sweep.space is not None
    made: list[Setting] = []
    suggestions = Suggestions(sweep.space)
    while (runs := suggestions.next(lambda index: value(made[index]))) is not None:
        made.append(runs[0].setting)
    return made


def valley(setting: Setting) -> float:
    """Best at lr 0.01 of seal with ascent_rate 0.1, where it is 0; plain training is 1 worse."""
    miss = abs(math.log10(float(setting["optimizer.lr"])) + 2)
    if setting["method"] == "normal":
        return -1 - miss
    return -miss - abs(math.log10(float(setting["method.ascent_rate"])) + 1)


def test_optuna_comes_closer_to_a_known_optimum_than_independent_draws(tmp_path: Path) -> None:
    def best(algorithm: str, seed: int) -> float:
        asked = f"algorithm: {algorithm}, samples: 60, sample_seed: {seed}"
        return max(map(valley, suggested(search(tmp_path, asked), valley)))

    # Of 60 draws half have the method, and the chance of one to miss by 0.1 at most is 2 x 0.1^2 / 8.
    assert sorted(best("optuna", seed) for seed in range(3))[1] > -0.12
    assert sorted(best("random", seed) for seed in range(3))[1] < -0.12


@pytest.mark.parametrize("asked", ["algorithm: optuna, at_once: 3", "algorithm: random"])
def test_suggestions_are_a_function_of_the_file_and_of_results_so_far(tmp_path: Path, asked: str) -> None:
    sweep = search(tmp_path, f"{asked}, samples: 16, metric: val_loss")
    whole = suggested(sweep, valley)
    assert len(whole) == 16
    assert suggested(sweep, valley) == whole
    assert suggested(search(tmp_path, f"{asked}, samples: 16, metric: val_loss"), valley) == whole
    for known in (0, 5, 11):  # cut off when so many were known, in whatever order they came
        places = {str(setting): place for place, setting in enumerate(whole)}
        some = suggested(sweep, lambda s, k=known, p=places: valley(s) if p[str(s)] < k else None)  # type: ignore[misc]
        assert some == whole[: 16 if "random" in asked else known + 3]
    other = suggested(sweep, lambda setting: -valley(setting))
    assert (other == whole) is ("random" in asked)
    assert suggested(search(tmp_path, f"{asked}, samples: 16, sample_seed: 1"), valley) != whole
    assert [run.setting for run in sweep.runs] == whole[: 16 if "random" in asked else 3]


def test_what_was_stopped_or_failed_is_no_end_of_a_search(tmp_path: Path) -> None:
    def value(setting: Setting) -> Outcome:
        found = valley(setting)
        return "stopped" if found < -2 else "failed" if found < -1.5 else found

    sweep = search(tmp_path, "algorithm: optuna, samples: 30")
    made = suggested(sweep, value)
    assert len(made) == 30
    later = [setting["method"] for setting in made[15:]]
    assert later.count("seal") > later.count("normal")  # most of which were stopped


def test_a_grid_has_an_axis_only_where_its_condition_holds(tmp_path: Path) -> None:
    axes = """\
axes:
  method: {plain: normal, rise: {name: seal}, sam: sam}
  method.ascent_share: {when: {method: rise}, values: [0.25, 0.5]}
  method.rho: {when: {method: [sam]}, values: {small: 0.02, large: 0.1}}
  optimizer.lr: [0.1, 0.2]
"""
    sweep = search(tmp_path, "algorithm: grid, seeds: 2", axes)
    rows = [("plain", "-", "-"), ("rise", "0.25", "-"), ("rise", "0.5", "-")]
    rows += [("sam", "-", "small"), ("sam", "-", "large")]
    wanted = [(*row, lr) for row in rows for lr in ("0.1", "0.2")]
    assert [tuple(run.setting.values()) for run in sweep.runs] == [w for w in wanted for _ in range(2)]
    assert [run.job.recipe.seed for run in sweep.runs] == [0, 1] * 10
    assert {run.job.recipe.method.name for run in sweep.runs} == {"normal", "seal", "sam"}
    assert sweep.size == "20 runs, 320 epochs"
    assert search(tmp_path, "algorithm: optuna, samples: 7, seeds: 3").size == "at most 21 runs, 336 epochs"


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_a_range_may_lie_within_a_value(tmp_path: Path, algorithm: str) -> None:
    axes = """\
axes:
  method:
    plain: normal
    seal: {name: seal, ascent_share: {uniform: [0.2, 0.6]}, ascent_rate: {log_uniform: [0.1, 1]}}
  batch_size: {integer: [16, 19]}
"""
    at_once = ", at_once: 40" * (algorithm == "optuna")
    sweep = search(tmp_path, f"algorithm: {algorithm}, samples: 40{at_once}", axes)
    seals = [run.job.recipe.method for run in sweep.runs if run.job.recipe.method.name == "seal"]
    assert len(set(seals)) == len(seals) > 10
    assert all(0.2 <= method.ascent_share <= 0.6 for method in seals)  # type: ignore[attr-defined]
    assert {run.job.recipe.batch_size for run in sweep.runs} == {16, 17, 18, 19}
    assert len(sweep.runs) < 40  # plain training has four settings, however often it is drawn


@pytest.mark.parametrize(
    ("asked", "axes", "place"),
    [
        ("algorithm: tpe", AXES, r":2: search\.algorithm: "),
        ("algorithm: optuna", AXES, r":2: search\.samples: say how many"),
        ("algorithm: grid, samples: 3", "axes: {optimizer.lr: [1]}\n", r":2: search\.samples: a grid takes"),
        ("algorithm: grid", AXES, r":7: axes\.'method\.ascent_rate'\.values: is a range"),
        ("algorithm: random, samples: 2, at_once: 1", AXES, r":2: search\.at_once: random does not wait"),
        ("algorithm: random, samples: 2, metric: val_ece", AXES, r":2: search\.goal: say whether"),
        (
            "algorithm: random, samples: 2, goal: max, metric: val_ece",
            AXES,
            r":2: search\.metric: 'val_ece' is",
        ),
        ("algorithm: random, samples: 2, goal: min, metric: depth/mean", AXES, r":2: .*list its analysis"),
        ("algorithm: random, samples: 9, seeds: 1000, stop: asha", AXES, None),
        ("algorithm: random, samples: 99, seeds: 1000", AXES, r":2: search: 99 settings x 1000 seeds"),
        (
            "algorithm: random, samples: 2, after_epochs: 3",
            AXES,
            r":2: search\.after_epochs: no run is stopped",
        ),
        (
            "algorithm: random, samples: 2",
            AXES + "seeds: 2\n",
            r"seeds: is not for a search; write search\.seeds",
        ),
        ("algorithm: random, samples: 2", AXES + "mode: grid\n", r"mode: is not for a search"),
        (
            "algorithm: random, samples: 2",
            AXES.replace("when: {method: seal}", "when: {method: sael}"),
            r":6: .*'sael'",
        ),
        (
            "algorithm: random, samples: 2",
            AXES.replace("when: {method", "when: {loss"),
            r":6: .*no axis before",
        ),
        ("algorithm: random, samples: 2", AXES.replace("[0.01, 1]", "[0, 1]"), r":7: .*both above 0"),
        (
            "algorithm: optuna, samples: 2",
            "axes:\n  method: [seal]\n  method.ascent_share: {uniform: [0.2, 0.99]}\n",
            r":5: recipe\.method.*leaves nothing",
        ),
    ],
)
def test_a_search_that_cannot_be_made_is_said_before_anything_starts(
    tmp_path: Path, asked: str, axes: str, place: str | None
) -> None:
    if place is None:
        assert search(tmp_path, asked, axes).most == (9000, 9000 * 16)
        return
    with pytest.raises(ConfigError, match=place):
        search(tmp_path, asked, axes)


def test_a_condition_outside_of_a_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "grid.yaml").write_text("base: run.yaml\n" + AXES)
    with pytest.raises(ConfigError, match=r":4: axes\.'method.ascent_rate'.*`when` is for a search"):
        load_sweep(tmp_path / "grid.yaml")


SMALL: dict[str, Any] = {
    "axes": {
        "method": ["normal", "llf"],
        "optimizer.weight_decay": {"uniform": [0.0, 0.01]},
    },
    "search": {"algorithm": "optuna", "samples": 5, "seeds": 2, "at_once": 2},
}


def trained(runs: SweepRuns) -> str:
    console, printed = screen()
    train_sweep(runs, console, share=True, concurrent=None, in_process=True)
    write_results(runs.latest())
    return printed.getvalue()


@pytest.mark.faults
def test_a_search_on_digits_goes_on_to_the_same_settings_after_being_cut_off(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_sweep(digits, tmp_path / "whole", **SMALL)
    assert len(whole.planned) == 4  # two settings need no results
    trained(whole)
    done = whole.latest()
    found = results(done)
    assert {run.status for run in found} == {"finished"}
    assert 6 <= len(found) <= 10
    # A setting's number is the mean over its seeds; the best has the largest.
    means = [sum(run.top1 or 0 for run in pair) / 2 for pair in zip(found[::2], found[1::2], strict=True)]
    assert done.search is not None
    assert done.search.best() == (pytest.approx(means.index(max(means))), pytest.approx(max(means)))
    assert f"with {max(means):.4g}, mean over 2 seeds" in leaderboard_of(done)["search"]
    # Settings that differ in the method alone share their first generation.
    makers = trained_where(done)
    assert sum(run.epochs_shared for run in found) == sum(
        maker != run for run, of_run in makers.items() for maker in of_run
    )

    class CutOffError(BaseException):
        pass

    ended = itertools.count(1)
    set_status = Store.set_status

    def cut(self: Store, status: str, **details: Any) -> None:
        set_status(self, status, **details)
        if status == "finished" and next(ended) == 5:
            raise CutOffError

    monkeypatch.setattr(Store, "set_status", cut)
    with pytest.raises(CutOffError):
        trained(small_sweep(digits, tmp_path / "cut", **SMALL))
    monkeypatch.undo()
    before = small_sweep(digits, tmp_path / "cut", **SMALL)
    assert 4 < len(before.planned) <= len(done.planned)
    trained(before)
    after = before.latest()
    assert [one.run_id for one in after.planned] == [one.run_id for one in done.planned]
    assert [run.top1 for run in results(after)] == [run.top1 for run in found]
    console, printed = screen()
    run_sweep(after, console, share=True, address=None, concurrent=None, in_process=True)
    assert printed.getvalue() == "small: every run has ended already, nothing to train\n"


def test_a_diverging_seed_ends_its_setting_and_the_search_goes_on(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(
        digits,
        tmp_path / "runs",
        axes={"method": {"bad": {"name": "seal", "ascent_rate": 1e30}, "normal": "normal"}},
        search={"algorithm": "grid", "seeds": 2, "metric": "val_loss"},
    )
    trained(runs)
    done = runs.latest()
    stands = [(run.setting["method"], run.seed, run.status) for run in results(done)]
    assert stands == [
        *[("bad", 0, "diverged"), ("bad", 1, "pruned")],
        *[("normal", 0, "finished"), ("normal", 1, "finished")],
    ]
    assert results(done)[1].reason == "another seed of its setting failed, diverged or was stopped"
    losses = [one.store.rows()[-1]["val_loss"] for one in done.planned[2:]]
    assert done.search is not None
    assert done.search.best() == (1, pytest.approx(sum(losses) / 2))
    assert "2 of 2 settings known" in done.search.summary()


def test_a_search_may_choose_by_what_an_analysis_finds(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(
        digits,
        tmp_path / "runs",
        axes={"optimizer.weight_decay": {"uniform": [0.0, 0.1]}},
        search={
            **{"algorithm": "optuna", "samples": 2, "at_once": 1},
            **{"metric": "calibration/ece", "goal": "min"},
        },
        analyses=["calibration"],
    )
    assert runs.search is not None
    runs.search.measure = measure
    trained(runs)
    done = runs.latest()
    found = []
    for one in done.planned:
        held = json.loads((one.store.folder / "analysis/calibration-g002-relearned.json").read_text())
        found.append(held["result"]["ece"])
    assert len(found) == 2
    assert done.search is not None
    assert done.search.best() == (found.index(min(found)), min(found))


SHORT: dict[str, Any] = {
    "recipe": {"budget": {"epochs": 1, "generation_length": 1}},
    "axes": {"optimizer.weight_decay": {"uniform": [0.0, 0.01]}},
}


def short_search(digits: Path, storage: Path, **asked: Any) -> SweepRuns:
    """Runs of one epoch, each setting suggested once the one before it is known."""
    return small_sweep(digits, storage, **SHORT, search={"algorithm": "optuna", "at_once": 1, **asked})


def test_a_search_goes_on_when_another_driver_has_trained_what_it_waits_for(
    digits: Path, tmp_path: Path
) -> None:
    ours = short_search(digits, tmp_path / "runs", samples=2)
    ours = ours.anew(tries=True)
    queue = Queue(ours.planned, share=True, ended=ENDED, note=print)
    tasks = Tasks(
        queue, SweepProgress(ours.planned, ours.names, screen()[0], share=True, searching=True), ours
    )
    trained(short_search(digits, tmp_path / "runs", samples=1))
    claim = tasks.claim()
    assert claim is not None
    assert claim.planned.run_id != ours.planned[0].run_id
    assert not tasks.left
    queue.close()


@pytest.mark.parametrize("full", [False, True])
def test_a_search_goes_on_after_a_run_that_cannot_begin(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Without the other seed of its setting; full: nor can it be written that it failed."""
    runs = short_search(digits, tmp_path / "runs", samples=2, seeds=2)
    first = runs.planned[0].store
    make_folder(first.folder / "job.yaml")
    set_status = Store.set_status

    def on_a_full_disk(self: Store, status: str, **details: Any) -> None:
        if status == "failed":
            raise StorageError("no space left")
        set_status(self, status, **details)

    if full:
        monkeypatch.setattr(Store, "set_status", on_a_full_disk)
    console, printed = screen()
    train_sweep(runs, console, share=True, concurrent=None, in_process=True)
    assert f"{first.run_id}: failed: " in printed.getvalue()
    stands = {
        one.parent.name: json.loads(one.read_text()) for one in first.folder.parent.glob("*/status.json")
    }
    assert (first.run_id in stands) is not full
    assert [one["status"] for run, one in stands.items() if run != first.run_id] == ["finished"] * 2
    assert runs.planned[1].run_id not in stands


def test_a_run_whose_failure_could_not_be_written_has_failed(digits: Path, tmp_path: Path) -> None:
    runs = short_search(digits, tmp_path / "runs", samples=1)
    assert runs.search is not None
    launched = runs.search.anew(tries=True)
    launched.advance()
    (store,) = (planned.store for _, planned in launched.runs.values())
    make_folder(store.folder)
    store.set_status("running")
    assert launched.outcome(0) is None
    launched.ended(store.run_id)
    assert launched.outcome(0) == "failed"


def test_a_failure_that_was_made_good_counts_in_the_leaderboard(digits: Path, tmp_path: Path) -> None:
    runs = short_search(digits, tmp_path / "runs", samples=1)
    (planned,) = runs.planned
    make_folder(planned.store.folder)
    planned.store.set_status("failed", reason="a disk was full")
    found = sweep(tmp_path / "small.yaml", in_process=True, console=screen()[0])
    assert [run.status for run in found.runs] == ["finished"]
    assert "1 of 1 settings known; best: " in leaderboard_of(runs)["search"]


def test_a_later_value_of_the_first_of_many_axes_is_checked(tmp_path: Path) -> None:
    many = "".join(
        f"  {axis}: {{uniform: [0.1, 0.2]}}\n" for axis in ("optimizer.lr", "optimizer.weight_decay")
    )
    seeds = "  seed: [" + ", ".join(map(str, range(100))) + "]\n"
    for algorithm, more in (("random, samples: 2", many), ("grid", "  optimizer.lr: [0.1, 0.2, 0.3]\n")):
        with pytest.raises(ConfigError, match=r"trial\.yaml:4: recipe\.batch_size"):
            search(tmp_path, f"algorithm: {algorithm}", f"axes:\n  batch_size: [16, 32, -5]\n{seeds}{more}")


def test_a_search_none_of_whose_settings_can_be_trained_is_an_error(tmp_path: Path) -> None:
    axes = "axes: {budget.generation_length: {integer: [9, 12]}}\nrecipe: {budget: {epochs: 36}}\n"
    for at_once in (1, 4):
        with pytest.raises(ConfigError, match=r"no setting .* can be trained; the last: .*epochs"):
            search(tmp_path, f"algorithm: optuna, samples: 1, sample_seed: 3, at_once: {at_once}", axes)


def test_the_most_epochs_of_a_search_are_those_of_its_longest_setting(tmp_path: Path) -> None:
    found = search(tmp_path, "algorithm: optuna, samples: 2", "axes: {budget.epochs: [8, 16, 24, 800]}\n")
    assert found.most == (2, 1600)


def test_a_setting_that_does_not_fit_the_data_is_left_out(digits: Path, tmp_path: Path) -> None:
    runs = small_sweep(digits, tmp_path / "runs", **SHORT, search={"algorithm": "random", "samples": 3})
    assert runs.sweep.space is not None
    large = runs.sweep.runs[1].setting

    def prepare(run: SweepRun) -> Planned:
        if run.setting == large:
            raise ConfigError("batch_size: too large")
        return prepare_job(run.job)

    found = SearchRuns(runs.sweep.space, prepare)
    found.advance()
    assert list(found.runs) == [runs.planned[0].run_id, runs.planned[2].run_id]
    assert "0 of 3 settings known, 1 cannot be trained" in found.summary()


def test_what_forgets_nothing_anywhere_in_a_search_is_said_once(digits: Path, tmp_path: Path) -> None:
    """An ascent of one of six epochs, the first of those that are too weak at the least lr."""
    rates = {"when": {"method": "seal"}, "values": {"log_uniform": [1e-6, 1e3]}}
    axes = {
        "method": {"normal": "normal", "seal": {"name": "seal", "ascent_share": 0.2}},
        "method.ascent_rate": rates,
        "optimizer.lr": {"uniform": [0.1, 0.2]},
        "budget.generation_length": [6, 12],
    }
    recipe = {"budget": {"epochs": 12}, "optimizer": {"schedule": "constant", "warmup_share": 0.0}}
    runs = small_sweep(
        digits,
        tmp_path / "runs",
        axes=axes,
        recipe=recipe,
        search={"algorithm": "random", "samples": 1, "sample_seed": 1},
    )
    assert len(runs.planned) == 1
    assert runs.planned[0].job.recipe.method.name == "normal"  # the first setting needs no caution
    weak, single = cautions(runs.planned, runs.corners)
    steps = runs.planned[0].dataset.splits["train"].count // 32
    assert weak.startswith("method=seal ascent_rate=1e-06 lr=0.1 generation_length=6 and 1 more: ")
    assert f"add up to {steps * 0.1 * 1e-6:.1g}, " in weak
    assert single.startswith(
        "method=seal ascent_rate=1e-06 lr=0.1 generation_length=12 and 3 more: seal forgets "
    )
    assert list(cautions(runs.planned)) == []


def test_an_end_of_a_range_that_does_not_fit_the_data_is_said_at_once(digits: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"recipe": {"shards": 1}, "axes": {"batch_size": {"integer": [8, 10_000]}}}
    with pytest.raises(ConfigError, match=r"10.?000"):
        small_sweep(digits, tmp_path / "runs", **changes, search={"algorithm": "random", "samples": 40})
