"""What is said of numbers: no more than they allow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_ray.analysis.moments import Moment
from seal_ray.analysis.scores import Column
from seal_ray.methods.llf import Llf
from seal_ray.methods.seal import Seal
from seal_ray.phases.schedule import Budget
from seal_ray.recipe import Job
from seal_ray.reports.blocks import span
from seal_ray.reports.charts import Stretch, line_style, shades
from seal_ray.reports.curves import curve, curves, drawn, frequency, planned, shown_moments, thinned
from seal_ray.reports.study import (
    Member,
    MomentFacts,
    RunFacts,
    SettingFacts,
    Study,
    StudySource,
    read_study,
    settings_of,
)
from seal_ray.reports.words import answer, question, resumptions, told, unbroken, warnings
from seal_ray.sweeps.leaderboard import RunResult, leaderboard
from seal_ray.sweeps.statistics import estimate, paired
from tests.runs import tiny_recipe


def study(
    scores: dict[str, Sequence[float | None]],
    baseline: str | None = "normal",
    epochs: dict[str, int] | None = None,
    unfinished: str = "running",
) -> Study:
    """Runs of each method with these accuracies by seed; None has not finished. epochs: other than 12."""
    results = [
        result(
            f"{method}-s{seed}", {"method": method}, seed, top1, (epochs or {}).get(method, 12), unfinished
        )
        for method, tops in scores.items()
        for seed, top1 in enumerate(tops)
    ]
    labels = {} if baseline is None else {"method": baseline}
    job = Job(name="x", recipe=tiny_recipe())
    whole = study_of([(one, job) for one in results], labels, ("method",))
    settings = tuple(
        replace(one, family=one.index, name=one.line.setting["method"]) for one in whole.settings
    )
    return replace(whole, families=tuple(one.name for one in settings), settings=settings)


def study_of(runs: Sequence[tuple[RunResult, Job]], baseline: dict[str, str], axes: tuple[str, ...]) -> Study:
    """A study of these runs, every setting of one method, each of a shade of its own."""
    facts = [RunFacts(one, Path(one.run_id), job, (), (), (), (), "") for one, job in runs]
    lines = leaderboard([one for one, _ in runs], baseline)
    settings = tuple(
        SettingFacts(i, 0, i, "x", line, tuple(run for run in facts if run.result.setting == line.setting))
        for i, line in enumerate(lines)
    )
    return Study("x", "sweep", Path(), axes, ("seal",), settings, baseline, (), (), (), {})


def result(
    run: str, setting: dict[str, str], seed: int, top1: float | None, epochs: int, unfinished: str = "running"
) -> RunResult:
    status = "finished" if top1 is not None else unfinished
    return RunResult(run, setting, seed, status, "", top1, top1, epochs, epochs, 0, 0)


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
    said = answer(study({"a": [50.0, 51.0], "b": [60.0, 62.0]}, baseline=None))
    assert said == (
        "b has the highest mean of 2 settings, 61.00 % (95 % interval 48.29 to 73.71, n = 2); there is no "
        "baseline, so no difference was tested, and being the best of several it is biased upwards."
    )


def test_the_only_one_that_has_finished_is_not_called_the_best() -> None:
    for baseline in (None, "normal"):
        said = answer(study({"normal": [None, None], "seal": [97.0, None], "llf": [None]}, baseline))
        assert said == "Only seal has finished: 97.00 % (n = 1)."


def test_an_unfinished_baseline_is_why_nothing_is_compared() -> None:
    said = answer(study({"normal": [None], "llf": [51.0], "seal": [52.0], "kd": [None]}, epochs={"llf": 4}))
    assert said == (
        "So far: seal has the highest mean of 2 settings, 52.00 % (n = 1); the baseline has finished none of "
        "their seeds, so no difference was tested, and being the best of several it is biased upwards. "
        "normal and kd: not finished yet. Budgets differ: the difference may be one of compute."
    )


def test_settings_that_have_not_finished_are_named() -> None:
    said = answer(study({"normal": [50.0], "seal": [60.0], "llf": [None], "kd": [None]}))
    assert said == (
        "So far: No difference to the baseline can be told with n = 1: seal +10.00 points. "
        "llf and kd: not compared yet."
    )
    whole = answer(study({"normal": [50.0], "seal": [60.0], "llf": [None]}, unfinished="diverged"))
    assert not whole.startswith("So far")
    assert whole.endswith(" llf: not compared.")


def test_of_many_comparisons_those_to_come_are_counted_and_named() -> None:
    done: dict[str, Sequence[float | None]] = {f"d{i}": [51.0, 50.0, None] for i in range(4)}
    open_: dict[str, Sequence[float | None]] = {f"o{i}": [None] * 3 for i in range(5)}
    said = answer(study({"normal": [50.0, 51.0, None], **done, **open_}))
    assert said.startswith("So far: Of 4 (of 9) settings compared with the baseline 0 look higher")
    assert said.endswith(" o0, o1, o2 and 2 more: not compared yet.")


def test_equal_differences_of_few_seeds_are_no_evidence() -> None:
    few, many = (answer(study({"normal": [50.0] * n, "seal": [50.5] * n})) for n in (3, 6))
    assert few == (
        "No difference to the baseline can be told with n = 3: seal +0.50 points (the same in all 3 seeds, "
        "p = 0.25)."
    )
    assert many == "seal is higher with n = 6: +0.50 points (the same in all 6 seeds, p = 0.031)."
    # The same up to rounding: 60.2 - 50.1 and 70.4 - 60.3 differ in their last bits.
    nearly = paired({0: 60.2, 1: 70.4, 2: 80.6}, {0: 50.1, 1: 60.3, 2: 70.5})
    assert nearly is not None
    assert nearly.low is not None
    assert nearly.high is not None
    assert nearly.high > nearly.low
    assert told(nearly) == 0


def test_an_interval_without_width_is_not_shown_as_one() -> None:
    assert span(estimate([50.0, 50.0, 50.0])) == "the same in all 3 seeds"
    assert span(estimate([50.0, 50.0, 51.0])) == "48.90 … 51.77"
    assert span(estimate([50.0])) == span(None) == "–"
    assert answer(study({"seal": [60.0, 60.0]})).startswith(
        "seal reached 60.00 % top-1 after 12 epochs (the same in all 2 seeds)."
    )


def test_a_difference_between_unequal_budgets_may_be_one_of_compute() -> None:
    scores: dict[str, Sequence[float | None]] = {"normal": [50.0, 51.0, 52.0], "seal": [60.0, 61.0, 62.1]}
    said = answer(study(scores, epochs={"normal": 24, "seal": 240}))
    assert said.endswith("no proof. Budgets differ: the difference may be one of compute.")
    assert "Budgets" not in answer(study(scores))


def test_where_every_setting_is_its_own_baseline_there_is_none(tmp_path: Path) -> None:
    members = tuple(
        Member(
            tmp_path / f"normal-s0-{epochs}", 0, epochs, {"method": "normal", "budget.epochs": str(epochs)}
        )
        for epochs in (8, 16)
    )
    found = read_study(StudySource("x", "sweep", tmp_path, members, {"method": "normal"}))
    assert found.baseline == {}
    assert question(found) == "Which of 2 settings ends with the highest accuracy?"
    assert answer(found) == "No answer yet: no run has finished (2 new)."


def test_what_other_data_sets_leave_out_is_a_warning() -> None:
    whole = study({"normal": [50.0, 51.0], "seal": [60.0, None]})
    judged = [
        replace(run.result, top1=None, status="not evaluated", reason="evaluate it too")
        if run.id == "normal-s1"
        else run.result
        for run in whole.runs
    ]
    column = Column("transfer", "flowers", None, leaderboard(judged, whole.baseline))
    said = [line for line in warnings(replace(whole, columns=(column,))) if line.startswith("transfer")]
    assert said == [
        "transfer_flowers: one seed: no interval",
        "transfer_flowers: normal-s1: not evaluated: evaluate it too",
    ]


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
    found = curve(setting, [[(1, 10.0), (2, 20.0)], [(1, 14.0), (2, 22.0)], []])
    assert found is not None
    assert (found.x, found.y) == ((1, 2), (12.0, 21.0))
    assert (found.low, found.high, found.n) == ((10.0, 20.0), (14.0, 22.0), 2)
    assert not found.partial
    assert curve(setting, [[]]) is None


def test_a_mean_is_of_the_same_seeds_all_along() -> None:
    whole = study({"seal": [60.0, None]})

    def points(run: RunFacts) -> list[tuple[float, float]]:
        return [(1, 10.0), (2, 20.0), (3, 30.0)] if run.result.seed == 0 else [(1, 20.0), (2, 40.0)]

    (found,) = curves(whole, points)
    assert (found.x, found.y, found.n, found.partial) == ((1, 2), (15.0, 30.0), 2, True)
    # A seed that was given up does not end the curve of the others.
    (rest,) = curves(study({"seal": [60.0, None]}, unfinished="diverged"), points)
    assert (rest.x, rest.y, rest.n, rest.partial) == ((1, 2, 3), (10.0, 20.0, 30.0), 1, True)
    (alone,) = curves(study({"seal": [None]}, unfinished="diverged"), points)
    assert (alone.x, alone.partial) == ((1, 2, 3), False)


def test_moments_that_are_shown_together_are_of_one_generation() -> None:
    whole = study({"seal": [60.0, 61.0, 62.0]})
    (setting,) = whole.settings

    def ends(run: RunFacts, *generations: int) -> RunFacts:
        moments = [Moment(run.folder, generation, "relearned") for generation in generations]
        results: dict[str, dict[str, int]] = {"depth": {}}
        return replace(run, moments=tuple(MomentFacts(m, 4 * m.generation + 4, {}, results) for m in moments))

    first, second, third = setting.runs
    runs = (ends(first, 0, 1), ends(second, 1, 2), ends(third, 0, 2))
    held = replace(whole, settings=(replace(setting, runs=runs),))
    ((_, shown),) = shown_moments(held, "depth")
    assert [(one.moment.run.name, one.moment.generation) for one in shown] == [("seal-s1", 2), ("seal-s2", 2)]
    ((_, early),) = shown_moments(held, "depth", lambda one: one.moment.generation < 2)
    assert [one.moment.generation for one in early] == [1, 1]
    assert shown_moments(held, "curvature") == []


def test_thinning_keeps_ends_and_extremes() -> None:
    (setting,) = study({"seal": [60.0]}).settings
    values = [50.0 + (i * 7919 % 13) for i in range(1000)]
    values[437], values[612] = 0.0, 99.0
    whole = curve(setting, [enumerate(values)])
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


@given(st.lists(st.integers(0, 20), min_size=1, max_size=25))
def test_no_two_settings_of_a_chart_look_the_same(families: list[int]) -> None:
    whole = study({f"m{i}": [50.0 + i] for i in range(len(families))}, baseline=None)
    settings = tuple(
        replace(one, family=family, shade=shade)
        for one, family, shade in zip(whole.settings, families, shades(families), strict=True)
    )
    looks = [line_style(one.family, one.shade) for one in drawn(replace(whole, settings=settings))]
    assert len(set(looks)) == len(looks) == min(12, len(families))


def test_every_look_is_drawn() -> None:
    style = files("seal_ray.reports").joinpath("page.css").read_text(encoding="utf-8")
    looks = {name for family in range(7) for shade in range(12) for name in line_style(family, shade).split()}
    defined = {name: re.findall(rf"^.*\.{name} {{ --\w+: ([^;]+); }}", style, re.MULTILINE) for name in looks}
    assert all(len(held) == 1 for held in defined.values()), defined
    assert len({tuple(held) for held in defined.values()}) == 7 + 4 + 3


def test_frequencies_are_compared_where_lengths_vary() -> None:
    assert frequency(study({"normal": [50.0], "seal": [60.0]})) == []
    (found,) = frequency(lengths((12, 2, (50.0, 52.0)), (12, 6, (60.0,))))
    assert found.x == (1 / 6, 1 / 2)
    assert found.y == (60.0, 51.0)
    assert found.low[0] == 60.0
    assert found.low[1] == pytest.approx(51 - 12.706204736)  # t(0.975, 1) x sqrt(2) / sqrt(2)


def test_frequencies_of_unlike_budgets_are_not_joined() -> None:
    short, long = frequency(
        lengths((12, 2, (50.0,)), (12, 6, (60.0,)), (24, 2, (70.0,)), (24, 6, (80.0,)), (48, 8, (90.0,)))
    )
    assert (short.name, short.x, short.y) == ("seal 12 epochs", (1 / 6, 1 / 2), (60.0, 50.0))
    assert (long.name, long.x, long.y) == ("seal 24 epochs", (1 / 6, 1 / 2), (80.0, 70.0))
    assert line_style(short.family, short.shade) != line_style(long.family, long.shade)
    assert frequency(lengths((12, 2, (50.0,)), (24, 4, (60.0,)))) == []


def lengths(*asked: tuple[int, int, Sequence[float]]) -> Study:
    """Runs of SEAL: epochs, length of a generation, accuracies by seed."""
    axes, runs = ("method", "budget.epochs", "budget.generation_length"), []
    for epochs, length, tops in asked:
        job = Job(name="x", recipe=tiny_recipe(budget={"epochs": epochs, "generation_length": length}))
        setting = dict(zip(axes, ("seal", str(epochs), str(length)), strict=True))
        runs += [
            (result(f"{epochs}-{length}-{seed}", setting, seed, top1, epochs), job)
            for seed, top1 in enumerate(tops)
        ]
    return study_of(runs, {}, axes)


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
