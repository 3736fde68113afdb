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
    MomentFacts,
    RunFacts,
    SettingFacts,
    Study,
    StudySource,
    find_source,
    read_study,
    settings_of,
)
from seal_ray.reports.words import answer, question, resumptions, told, unbroken, warnings
from seal_ray.sweeps.leaderboard import RunResult, leaderboard
from seal_ray.sweeps.results import Member
from seal_ray.sweeps.statistics import estimate, paired
from tests.pages import NOISY, Ends, noisy_sweep
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
    assert asked == (
        "Does llf or seal end with a higher accuracy than plain training (normal) after 12 epochs on unused?"
    )
    many = question(study({"normal": [50.0], **{f"m{i}": [50.0] for i in range(7)}}))
    assert many.startswith("Does any of 7 settings end with a higher accuracy than plain training (normal) ")


def said(study: Study) -> str:
    return " ".join(filter(None, (part for claim in answer(study) for part in (claim.head, claim.rest))))


FEW = "3 seeds, with which p cannot fall below 0.25"


@pytest.mark.parametrize(
    ("normal", "seal", "expected"),
    [
        (
            [50.0],
            [60.0],
            "No difference between seal and normal can be told: +10.00 points (no interval, 1 seed): 60.00 "
            "against 50.00 %.",
        ),
        (  # of two differences of one sign p is 2 of 4
            [50.0, 51.0],
            [60.0, 62.0],
            "No difference between seal and normal can be told: +10.50 points (no interval, p = 0.5, 2 seeds,"
            " with which p cannot fall below 0.5): 61.00 against 50.50 %.",
        ),
        (  # all signs of three differences of 1 give a sum of 1 at least; t(0.975, 2) sqrt(4 / 3) / sqrt(3)
            [50.0, 51.0, 52.0],
            [51.0, 50.0, 53.0],
            "No difference between seal and normal can be told: +0.3 points (−2.5 … +3.2, p = 1, "
            f"{FEW}): 51.3 against 51.0 %.",
        ),
        (
            [50.0, 51.0, 52.0],
            [60.0, 61.0, 62.1],
            "seal seems to end 10.03 points higher than normal, no proof (+9.89 … +10.18, p = 0.25, "
            f"{FEW}): 61.03 against 51.00 %.",
        ),
        (  # five differences of one sign: 2 of 32 sign patterns are as far from 0
            [0.0] * 5,
            [9.0, 10.0, 11.0, 10.0, 10.0],
            "seal seems to end 10.0 points higher than normal, no proof (+9.1 … +10.9, p = 0.0625, 5 seeds, "
            "with which p cannot fall below 0.0625): 10.0 against 0.0 %.",
        ),
        (  # 3 - 0.1 i below, i = 0 ... 5: t(0.975, 5) x 0.187 / sqrt(6) = 0.196
            [50.0, 51.0, 52.0, 50.0, 51.0, 52.0],
            [47.0, 48.1, 49.2, 47.3, 48.4, 49.5],
            "seal ends 2.75 points lower than normal (−2.95 … −2.55, p = 0.0312, 6 seeds): 48.25 against "
            "51.00 %.",
        ),
        (
            [50.0] * 3,
            [50.5] * 3,
            "No difference between seal and normal can be told: +0.50 points (the same in all 3 seeds, "
            f"p = 0.25, {FEW}): 50.50 against 50.00 %.",
        ),
        (
            [50.0] * 6,
            [50.5] * 6,
            "seal ends 0.50 points higher than normal (the same in all 6 seeds, p = 0.0312, 6 seeds): 50.50 "
            "against 50.00 %.",
        ),
    ],
)
def test_a_verdict_says_no_more_than_its_seeds_allow(
    normal: list[float], seal: list[float], expected: str
) -> None:
    assert said(study({"normal": normal, "seal": seal})) == expected


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
    text = said(study({"normal": base, **better, **worse, **alike}))
    assert text == (
        "Of 6 settings compared with the baseline 2 seem higher (b0 and b1) and 1 lower; of 3 no difference "
        "can be told. No p is corrected for the number of comparisons, and with n < 6 none could fall below "
        "0.05."
    )


def test_without_a_baseline_or_a_rival_nothing_is_compared() -> None:
    alone = said(study({"seal": [60.0, 62.0, 61.0]}))
    assert alone.startswith(
        "seal reaches 61.00 % after 12 epochs (95 % interval 58.52 to 63.48, 3 seeds). There is nothing to"
    )
    text = said(study({"a": [50.0, 51.0], "b": [60.0, 62.0, 61.0]}, baseline=None))
    assert text == (
        "b has the highest mean of 2 settings: 61.00 % (95 % interval 58.52 to 63.48, 3 seeds); there is no "
        "baseline, so no difference was tested, and being the best of several it is biased upwards."
    )


def test_the_only_one_that_has_finished_is_not_called_the_best() -> None:
    for baseline in (None, "normal"):
        text = said(study({"normal": [None, None], "seal": [97.0, None], "llf": [None]}, baseline))
        assert text.endswith("seal reaches 97.00 % after 12 epochs (1 seed). Only this setting has finished.")


def test_an_unfinished_baseline_is_why_nothing_is_compared() -> None:
    text = said(study({"normal": [None], "llf": [51.0], "seal": [52.0], "kd": [None]}, epochs={"llf": 4}))
    assert text == (
        "So far: seal has the highest mean of 2 settings: 52.00 % (1 seed); the baseline has finished none "
        "of their seeds, so no difference was tested, and being the best of several it is biased upwards. "
        "normal and kd: not finished yet. Budgets differ, so that a difference may be one of compute."
    )


def test_settings_that_have_not_finished_are_named() -> None:
    text = said(study({"normal": [50.0], "seal": [60.0], "llf": [None], "kd": [None]}))
    assert text == (
        "So far: No difference between seal and normal can be told: +10.00 points (no interval, 1 seed): "
        "60.00 against 50.00 %. llf and kd: not compared yet."
    )
    whole = said(study({"normal": [50.0], "seal": [60.0], "llf": [None]}, unfinished="diverged"))
    assert not whole.startswith("So far")
    assert whole.endswith(" llf: not compared.")


def test_of_many_comparisons_those_to_come_are_counted_and_named() -> None:
    done: dict[str, Sequence[float | None]] = {f"d{i}": [51.0, 50.0, None] for i in range(4)}
    open_: dict[str, Sequence[float | None]] = {f"o{i}": [None] * 3 for i in range(5)}
    text = said(study({"normal": [50.0, 51.0, None], **done, **open_}))
    assert text.startswith("So far: Of 4 (of 9) settings compared with the baseline 0 seem higher")
    assert text.endswith(" o0, o1, o2 and 2 more: not compared yet.")


def test_differences_equal_up_to_rounding_are_no_evidence() -> None:
    # 60.2 - 50.1 and 70.4 - 60.3 differ in their last bits.
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
    assert said(study({"seal": [60.0] * 3})).startswith(
        "seal reaches 60.00 % after 12 epochs (the same in all 3 seeds)."
    )


def test_a_difference_between_unequal_budgets_may_be_one_of_compute() -> None:
    scores: dict[str, Sequence[float | None]] = {"normal": [50.0, 51.0, 52.0], "seal": [60.0, 61.0, 62.1]}
    text = said(study(scores, epochs={"normal": 24, "seal": 240}))
    assert text.endswith(" Budgets differ, so that a difference may be one of compute.")
    assert "Budgets" not in said(study(scores))


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
    assert said(found) == "No answer yet: no run has finished (2 new)."


def test_what_other_data_sets_leave_out_is_a_warning() -> None:
    whole = study({"normal": [50.0, 51.0], "seal": [60.0, None]})
    judged = [
        replace(run.result, top1=None, status="not evaluated", reason="evaluate it too")
        if run.id == "normal-s1"
        else run.result
        for run in whole.runs
    ]
    column = Column("transfer", "flowers", None, leaderboard(judged, whole.baseline))
    noted = [line for line in warnings(replace(whole, columns=(column,))) if line.startswith("transfer")]
    assert noted == [
        "transfer_flowers: no interval below 3 seeds",
        "transfer_flowers: normal-s1: not evaluated: evaluate it too",
    ]


def test_unfinished_runs_answer_nothing() -> None:
    assert said(study({"a": [None, None]})) == "No answer yet: no run has finished (2 running)."


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
    assert shown == ["normal", *(f"m{i}" for i in range(5, 20))]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=25))
def test_no_two_settings_of_a_chart_look_the_same(families: list[int]) -> None:
    whole = study({f"m{i}": [50.0 + i] for i in range(len(families))}, baseline=None)
    settings = tuple(
        replace(one, family=family, shade=shade)
        for one, family, shade in zip(whole.settings, families, shades(families), strict=True)
    )
    looks = [line_style(one.family, one.shade) for one in drawn(replace(whole, settings=settings))]
    assert len(set(looks)) == len(looks) == min(16, len(families))


def test_every_look_is_drawn() -> None:
    style = files("seal_ray.reports").joinpath("page.css").read_text(encoding="utf-8")
    looks = {name for family in range(7) for shade in range(16) for name in line_style(family, shade).split()}
    defined = {name: re.findall(rf"^.*\.{name} {{ --\w+: ([^;]+); }}", style, re.MULTILINE) for name in looks}
    assert all(len(held) == 1 for held in defined.values()), defined
    assert len({tuple(held) for held in defined.values()}) == 7 + 4 + 4


def test_frequencies_are_compared_where_lengths_vary() -> None:
    assert frequency(study({"normal": [50.0], "seal": [60.0]})) == []
    (found,) = frequency(lengths((12, 2, (50.0, 52.0, 51.0)), (12, 6, (60.0,))))
    assert found.x == (1 / 6, 1 / 2)
    assert found.y == (60.0, 51.0)
    assert found.low[0] == 60.0
    assert found.low[1] == pytest.approx(51 - 4.302652730 / 3**0.5)  # t(0.975, 2) x 1 / sqrt(3)


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


NOISY_ANSWER = (
    "seal and llf beat normal, but are not shown to beat it stopped after 12 epochs.",
    "seal ends 16.5 points higher than normal (+14.5 … +18.5, p = 0.0312, 6 seeds): 85.2 against 68.7 %.",
    "llf ends 6.8 points higher than normal (+5.8 … +7.8, p = 0.0312, 6 seeds): 75.5 against 68.7 %.",
    "normal stopped after 12 epochs ends 17.3 points higher than after 48 (+16.3 … +18.3, p = 0.0312, "
    "6 seeds): 86.0 against 68.7 %. Against that, seal −0.8 points (−2.4 … +0.8, p = 0.25): no difference "
    "can be told; llf −10.5 points (−12.2 … −8.8, p = 0.0312): lower.",
    "Wrong labels memorised by the end: 97 % (normal), 9 % (normal 12), 60 % (llf) and 6 % (seal). "
    "Of the training images with wrong labels, those predicted as labelled. "
    "normal 12, llf and seal memorise fewer than the baseline (p ≤ 0.0312).",
)
"""With t(0.975, 5) = 2.5706, half an interval is 2.5706 sqrt(S / 5 / 6), S the sum of squares of what the
spreads of two settings differ by: 18 (1.99), 5 (1.05), 5 (1.05), 11.5 (1.59), 13.5 (1.72). Differences of one
sign: p = 2 / 64; 16 of the 64 signs of 0.8, 1.7, 2.8, 0.8, 0.3, 1.8 give a sum of at least 4.8.
"""


@pytest.mark.parametrize("baseline", [None, {"method": "normal"}])
def test_stopping_plain_training_early_is_in_the_answer(
    tmp_path: Path, baseline: dict[str, str] | None
) -> None:
    found = read_study(find_source(noisy_sweep(tmp_path, baseline=baseline)))
    assert said(found) == " ".join(NOISY_ANSWER)
    assert question(found) == (
        "Does llf or seal end with a higher accuracy than plain training (normal) after 48 epochs on digits "
        "with 40 % wrong training labels?"
    )
    assert [one.name for one in found.settings] == ["normal", "normal 12", "llf", "seal"]
    control = found.lines[1]
    assert control.difference is not None
    assert control.difference.mean == pytest.approx(17.3)


def test_settings_with_labels_of_their_own_are_called_by_them(tmp_path: Path) -> None:
    labels = ("normal", "stopped early", "llf", "seal")
    found = read_study(find_source(noisy_sweep(tmp_path, labels=labels)))
    assert [(one.name, one.stopped) for one in found.settings] == [
        *(("normal", None), ("stopped early", 0), ("llf", None), ("seal", None))
    ]
    assert said(found) == " ".join(NOISY_ANSWER).replace("normal 12", "stopped early")


def test_five_seeds_prove_nothing_of_stopping_early_either(tmp_path: Path) -> None:
    text = said(read_study(find_source(noisy_sweep(tmp_path, seeds=5))))
    assert text.count("p = 0.0625, 5 seeds, with which p cannot fall below 0.0625") == 3
    assert "seal seems to end 16.9 points higher than normal, no proof" in text  # 16.5 + 2 / 5
    assert "llf −11.0 points" in text  # 75.5 - 3.5 / 5 less 86 - 1 / 5
    assert "seems lower, no proof" in text
    assert "seem to memorise fewer" in text
    assert text.startswith(
        "seal and llf seem to beat normal, but are not shown to beat it stopped after 12 epochs."
    )
    assert not re.search(r"\bends\b", text)


SHORT = {"normal 24": ((60.0, 70.0), None), "normal 12": ((60.0,), None), "seal 24": ((60.0, 75.0), None)}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (  # no run of plain training ends sooner: its best end of a generation is taken
            {key: held for key, held in NOISY.items() if key != "normal 12"},
            "normal stopped after 1 generation ends 17.3 points higher than after 4 (+16.3 … +18.3, p = "
            "0.0312, 6 seeds): 86.0 against 68.7 %. Of its 4 that is the best, chosen on these images, so "
            "biased upwards. Against that, seal −0.8 points",
        ),
        (  # a gain that stopping early does not have
            SHORT,
            "normal stopped after 12 epochs ends 10.0 points lower than after 24 (−11.0 … −9.0, p = 0.0312, "
            "6 seeds): 60.0 against 70.0 %. Against that, seal +15.0 points (+13.4 … +16.6, p = 0.0312): "
            "higher.",
        ),
        (  # other accuracies than those of the longer runs at that epoch: another schedule
            {**SHORT, "normal 12": ((70.0,), None)},
            "No difference between normal trained for 12 epochs and after 24 can be told: +0.0 points "
            "(−1.0 … +1.0,",
        ),
    ],
)
def test_what_stopping_early_comes_to_is_said_whatever_it_is(
    tmp_path: Path, asked: dict[str, Ends], expected: str
) -> None:
    found = read_study(find_source(noisy_sweep(tmp_path, asked=asked)))
    assert expected in said(found)
    assert ("memorised" in said(found)) == (
        asked["normal 24" if "normal 24" in asked else "llf 48"][1] is not None
    )


def test_a_shorter_budget_that_others_have_too_is_no_control(tmp_path: Path) -> None:
    asked = {**SHORT, "seal 12": ((60.0,), None)}
    found = read_study(find_source(noisy_sweep(tmp_path, asked=asked, baseline={"method": "normal"})))
    assert [one.stopped for one in found.settings] == [None] * 4
    assert [one.name for one in found.settings] == ["normal 24", "normal 12", "seal 24", "seal 12"]
    assert "after 12 epochs" not in said(found)


def test_a_control_of_fewer_epochs_is_no_frequency(tmp_path: Path) -> None:
    found = read_study(find_source(noisy_sweep(tmp_path)))
    assert frequency(found) == []
    (joined,) = frequency(lengths((48, 12, (50.0,)), (48, 6, (60.0,)), (12, 3, (70.0,))))
    assert (joined.x, joined.y) == ((1 / 12, 1 / 6), (50.0, 60.0))


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
