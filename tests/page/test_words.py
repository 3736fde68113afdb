"""What is said of numbers: no more than they allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.page.curves import curve, drawn, frequency, planned, thinned
from analysis.page.facts import RunFacts, SettingFacts, Study
from analysis.page.shapes import Stretch
from analysis.page.source import settings_of
from analysis.page.words import answer, question, resumptions, told, unbroken
from seal_ray.methods.llf import Llf
from seal_ray.methods.seal import Seal
from seal_ray.recipe import Job
from seal_ray.report.leaderboard import RunResult, leaderboard
from seal_ray.report.statistics import paired
from seal_ray.schedule import Budget
from tests.runs import tiny_recipe


def study(
    scores: dict[str, Sequence[float | None]], baseline: str | None = "normal", length: int = 4
) -> Study:
    """Runs of each method with these accuracies by seed; None has not finished."""
    results = [
        RunResult(
            f"{method}-s{seed}", {"method": method}, seed, "finished" if top1 is not None else "running", "",
            top1, top1, 12, 12, 0, 0,
        )
        for method, tops in scores.items()
        for seed, top1 in enumerate(tops)
    ]  # fmt: skip
    labels = {} if baseline is None else {"method": baseline}
    lines = leaderboard(results, labels)
    job = Job(name="x", recipe=tiny_recipe())
    settings = tuple(
        SettingFacts(
            i,
            i,
            0,
            line.setting["method"],
            line,
            tuple(
                RunFacts(one, Path(one.run_id), job, (), (), (), (), "")
                for one in results
                if one.setting == line.setting
            ),
        )
        for i, line in enumerate(lines)
    )
    names = tuple(one.name for one in settings)
    return Study("x", "sweep", Path(), ("method",), names, settings, labels, (), (), (), {})


def test_the_question_names_the_rivals_and_the_baseline() -> None:
    asked = question(study({"normal": [50.0], "llf": [51.0], "seal": [52.0]}))
    assert asked == "Does llf or seal end with a higher accuracy than normal after 12 epochs?"
    many = question(study({"normal": [50.0], **{f"m{i}": [50.0] for i in range(7)}}))
    assert many == "Does any of 7 settings end with a higher accuracy than normal after 12 epochs?"


def test_one_seed_tells_no_difference() -> None:
    said = answer(study({"normal": [50.0], "seal": [60.0]}))
    assert said == "No difference to the baseline can be told with n = 1: seal +10.00 points."


def test_overlapping_intervals_tell_no_difference() -> None:
    said = answer(study({"normal": [50.0, 51.0, 52.0], "seal": [51.0, 50.0, 53.0]}))
    assert said.startswith("No difference to the baseline can be told with n = 3: seal +0.33 points (95 %")
    assert said.endswith("p = 1).")  # all signs of three differences of 1 give a sum of 1 at least


def test_few_seeds_are_an_indication_at_most() -> None:
    said = answer(study({"normal": [50.0, 51.0, 52.0], "seal": [60.0, 61.0, 62.1]}))
    assert said.startswith("seal looks higher, +10.03 points (95 % interval +9.89 to +10.18, p = 0.25)")
    assert said.endswith("but with n = 3 p cannot fall below 0.25: an indication, no proof.")


def test_six_seeds_may_tell_one() -> None:
    base = [50.0, 51.0, 52.0, 50.0, 51.0, 52.0]
    said = answer(study({"normal": base, "seal": [v - 3 + 0.1 * i for i, v in enumerate(base)]}))
    assert said.startswith("seal is lower with n = 6: −2.75 points (95 % interval −2.95 to −2.55, p = 0.031)")


def test_an_interval_beside_zero_is_not_enough_where_p_speaks_against_it() -> None:
    # One of six differences goes the other way: p = 4 / 64, though Student's interval keeps off 0.
    found = paired(dict(enumerate([3.0, 3.1, 2.9, 3.0, 3.2, -0.1])), dict.fromkeys(range(6), 0.0))
    assert found is not None
    assert found.low is not None
    assert found.low > 0
    assert found.significant is False
    assert told(found) == 0


def test_many_comparisons_are_counted_and_not_corrected() -> None:
    base = [50.0, 51.0, 52.0]
    better = {f"b{i}": [60.0, 61.0, 62.1] for i in range(2)}
    worse = {"w": [40.0, 41.0, 42.1]}
    alike = {f"a{i}": [51.0, 50.0, 53.0] for i in range(3)}
    said = answer(study({"normal": base, **better, **worse, **alike}))
    assert "Of 6 settings compared with the baseline 2 look higher (b0 and b1) and 1 lower" in said
    assert "of 3 no difference can be told" in said
    assert "No p is corrected for the number of comparisons" in said


def test_without_a_baseline_or_a_rival_nothing_is_compared() -> None:
    alone = answer(study({"seal": [60.0, 62.0]}))
    assert alone.startswith(
        "seal reached 61.00 % top-1 after 12 epochs (95 % interval 48.29 to 73.71, n = 2)"
    )
    said = answer(study({"a": [50.0], "b": [60.0]}, baseline=None))
    assert said == "b is highest with 60.00 %; there is no baseline, so no difference was tested."


def test_unfinished_runs_answer_nothing() -> None:
    assert answer(study({"a": [None, None]})) == "No answer yet: no run has finished (2 running)."


def test_spaces_do_not_break_within_a_number() -> None:
    assert unbroken("95 % with n = 3") == "95\N{NO-BREAK SPACE}% with n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}3"


def test_only_what_a_run_trained_itself_can_be_resumed() -> None:
    (setting,) = study({"seal": [60.0]}).settings
    (run,) = setting.runs
    rows = tuple({"global_epoch": e, "trained_by": "normal-s0" if e < 4 else run.id} for e in range(12))

    def starts(*after: int) -> RunFacts:
        return RunFacts(run.result, run.folder, run.job, rows, (), (), after, "")

    assert resumptions(starts(4)) == []  # began where another run had come to
    assert resumptions(starts(4, 7, 7, 12)) == [7]


def test_a_curve_is_the_mean_over_seeds_with_its_range() -> None:
    (setting,) = study({"seal": [60.0]}).settings
    found = curve(setting, [(1, 10.0), (2, 20.0), (1, 14.0), (2, 22.0), (3, 30.0)])
    assert found is not None
    assert (found.x, found.y) == ((1, 2, 3), (12.0, 21.0, 30.0))
    assert (found.low, found.high, found.n) == ((10.0, 20.0, 30.0), (14.0, 22.0, 30.0), 2)
    assert curve(setting, []) is None


def test_thinning_keeps_ends_and_extremes() -> None:
    (setting,) = study({"seal": [60.0]}).settings
    values = [50.0 + (i * 7919 % 13) for i in range(1000)]
    values[437], values[612] = 0.0, 99.0
    whole = curve(setting, enumerate(values))
    assert whole is not None
    few = thinned(whole, 100)
    assert len(few.x) <= 100
    assert (few.x[0], few.x[-1]) == (0, 999)
    assert {437, 612} <= set(few.x)
    assert all(values[int(x)] == y for x, y in zip(few.x, few.y, strict=True))
    assert thinned(whole, 1000) is whole


def test_phases_lie_where_the_method_puts_them() -> None:
    found = planned(Seal(ascent_share=0.25), Budget(epochs=16, generation_length=8))
    assert [(one.start, one.end, one.generation, one.ascends) for one in found] == [
        (0, 8, 0, False), (8, 10, 1, True), (10, 16, 1, False),
    ]  # fmt: skip
    assert planned(Llf(), Budget(epochs=8, generation_length=4))[1] == Stretch(
        4, 8, 1, "relearn", ascends=False, edits=True
    )


def test_of_many_settings_the_best_are_drawn_and_the_baseline() -> None:
    scores: dict[str, Sequence[float | None]] = {f"m{i}": [50.0 + i] for i in range(20)}
    shown = [one.name for one in drawn(study({"normal": [1.0], **scores}))]
    assert shown == ["normal", *(f"m{i}" for i in range(9, 20))]


def test_frequencies_are_compared_where_lengths_vary() -> None:
    assert frequency(study({"normal": [50.0], "seal": [60.0]})) == []
    runs = []
    for length, tops in ((2, (50.0, 52.0)), (6, (60.0,))):
        job = Job(name="x", recipe=tiny_recipe(budget={"epochs": 12, "generation_length": length}))
        setting = {"method": "seal", "budget.generation_length": str(length)}
        runs += [
            RunFacts(
                RunResult(f"{length}-{seed}", setting, seed, "finished", "", top1, top1, 12, 12, 0, 0),
                Path(),
                job,
                (),
                (),
                (),
                (),
                "",
            )
            for seed, top1 in enumerate(tops)
        ]
    lines = leaderboard([run.result for run in runs], {})
    settings = tuple(
        SettingFacts(i, 0, i, "x", line, tuple(run for run in runs if run.result.setting == line.setting))
        for i, line in enumerate(lines)
    )
    axes = ("method", "budget.generation_length")
    (found,) = frequency(Study("x", "sweep", Path(), axes, ("seal",), settings, {}, (), (), (), {}))
    assert found.x == (1 / 6, 1 / 2)
    assert found.y == (60.0, 51.0)
    assert found.low[0] == 60.0
    assert found.low[1] == pytest.approx(51 - 12.706204736)  # t(0.975, 1) x sqrt(2) / sqrt(2)


def test_settings_are_what_recipes_differ_in() -> None:
    recipes = [
        tiny_recipe("normal"),
        tiny_recipe({"name": "seal", "ascent_rate": 0.1}, seed=3),
        tiny_recipe({"name": "seal", "ascent_rate": 0.2}, batch_size=6),
    ]
    assert list(settings_of(recipes)) == [
        {"method": "normal", "batch_size": "12"},
        {"method": "seal(ascent_rate=0.1)", "batch_size": "12"},
        {"method": "seal(ascent_rate=0.2)", "batch_size": "6"},
    ]
    assert list(settings_of(recipes[:1])) == [{"method": "normal"}]
