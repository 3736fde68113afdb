"""The leaderboard of hand-made sweeps: who is compared with whom, what is said, what is never said."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from seal_ray.errors import ConfigError
from seal_ray.sweeps.leaderboard import (
    Line,
    RunResult,
    leaderboard,
    meanings,
    notes,
    on_frontier,
    to_compute_table,
    to_csv,
    to_json,
    to_markdown,
    to_other_table,
    to_table,
)
from seal_ray.sweeps.statistics import estimate, paired

LENGTH = "budget.generation_length"
NORMAL = {"method": "normal"}


def run(method: str, seed: int, top1: float | None, **changes: object) -> RunResult:
    """A finished run of 16 epochs, or one that diverged when it has no score."""
    setting = {"method": method, LENGTH: str(changes.pop("length", "4"))}
    plain = RunResult(
        run_id=f"{method}-s{seed}-l{setting[LENGTH]}",
        setting=setting,
        seed=seed,
        status="diverged" if top1 is None else "finished",
        reason="" if top1 is not None else "loss is nan in epoch 7",
        top1=top1,
        best_top1=None if top1 is None else top1 + 0.5,
        epochs=16,
        epochs_trained=12,
        epochs_shared=4,
        images=12_000,
        passes=24_000,
        seconds=30.5,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def runs(method: str, scores: list[float | None], **changes: object) -> list[RunResult]:
    return [run(method, seed, top1, **changes) for seed, top1 in enumerate(scores)]


THREE_SEEDS = [
    *runs("normal", [50.0, 51.0, 52.0]),
    *runs("seal", [51.0, 53.0, 55.0]),
    *runs("normal", [40.0, 41.0, 42.0], length="8"),
    *runs("seal", [39.5, 41.5, None], length="8"),
]


def printed(lines: tuple[Line, ...], title: str = "trial", width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(to_table(lines, title))
    return console.file.getvalue()  # type: ignore[attr-defined]


def markdown_cells(text: str, table: int = 0) -> list[list[str]]:
    rows = text.split("\n\n")[table].splitlines()
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def everything(lines: tuple[Line, ...], results: list[RunResult]) -> str:
    shown = [json.dumps(to_json("x", lines, results)), to_csv(lines), to_markdown(lines), printed(lines)]
    return "\n".join([*shown, *notes(lines)])


def test_lines_come_as_their_settings_first_appear() -> None:
    lines = leaderboard(THREE_SEEDS, NORMAL)
    names = [(line.setting["method"], line.setting[LENGTH]) for line in lines]
    assert names == [("normal", "4"), ("seal", "4"), ("normal", "8"), ("seal", "8")]
    assert [line.is_baseline for line in lines] == [True, False, True, False]


def test_a_line_sums_its_seeds_and_is_compared_at_the_same_length() -> None:
    normal, seal, _, _ = leaderboard(THREE_SEEDS, NORMAL)
    assert (seal.runs, seal.finished, seal.problems) == (3, 3, ())
    assert seal.top1 == estimate([51.0, 53.0, 55.0])
    assert seal.difference == paired({0: 51.0, 1: 53.0, 2: 55.0}, {0: 50.0, 1: 51.0, 2: 52.0})
    assert seal.difference is not None
    assert (seal.difference.mean, seal.difference.p, seal.difference.smallest_p) == (2.0, 0.25, 0.25)
    assert (seal.epochs, seal.epochs_trained, seal.epochs_shared, seal.images) == (16, 36, 12, 36_000)
    assert normal.difference is None


def test_a_diverged_run_is_a_problem_but_its_epochs_were_paid() -> None:
    seal = leaderboard(THREE_SEEDS, NORMAL)[3]
    assert (seal.runs, seal.finished) == (3, 2)
    assert seal.problems == ("seal-s2-l8: diverged: loss is nan in epoch 7",)
    assert seal.top1 == estimate([39.5, 41.5])
    assert seal.difference == paired({0: 39.5, 1: 41.5}, {0: 40.0, 1: 41.0})
    assert (seal.epochs_trained, seal.images) == (36, 36_000)


def test_a_score_counts_only_when_its_run_is_finished() -> None:
    (line,) = leaderboard([run("seal", 0, 50.0), run("seal", 1, 90.0, status="pruned")], NORMAL)
    assert (line.finished, line.top1) == (1, estimate([50.0]))
    assert line.problems == ("seal-s1-l4: pruned",)


def test_seeds_that_only_one_side_has_are_left_out_of_the_difference() -> None:
    results = [*runs("normal", [50.0, None, 52.0, 53.0]), *runs("seal", [52.0, 9.0, 53.0])]
    seal = leaderboard(results, NORMAL)[1]
    assert seal.top1 is not None
    assert (seal.top1.n, seal.top1.mean) == (3, 38.0)
    assert seal.difference == paired({0: 52.0, 2: 53.0}, {0: 50.0, 2: 52.0})
    told = notes(leaderboard(results, NORMAL))
    assert any("method=seal: compared over 2 of its 3 seeds" in note for note in told)
    assert "p cannot fall below 0.5 with 2 seeds" in told


def test_a_baseline_may_fix_several_axes() -> None:
    lines = leaderboard(THREE_SEEDS, {"method": "normal", LENGTH: "4"})
    assert [line.is_baseline for line in lines] == [True, False, False, False]
    assert lines[2].difference == paired({0: 40.0, 1: 41.0, 2: 42.0}, {0: 50.0, 1: 51.0, 2: 52.0})


def test_a_setting_without_its_baseline_says_so() -> None:
    results = [*runs("normal", [50.0]), *runs("seal", [51.0]), *runs("seal", [52.0], length="8")]
    lines = leaderboard(results, NORMAL)
    assert [line.difference is None for line in lines] == [True, False, True]
    (note,) = [note for note in notes(lines) if "no difference" in note]
    assert note.startswith("method=seal generation_length=8: no difference, its baseline has finished none")


def test_two_runs_of_one_setting_and_seed_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"runs seal-s0-l4 and other have the same setting \(method=seal"):
        leaderboard([run("seal", 0, 50.0), run("seal", 0, 51.0, run_id="other")], NORMAL)


def test_one_seed_is_one_seed() -> None:
    lines = leaderboard([*runs("normal", [50.0]), *runs("seal", [51.25])], NORMAL)
    assert notes(lines) == ["no interval below 3 seeds"]
    assert markdown_cells(to_markdown(lines))[3] == ["seal", "1", "51.25", "-", "+1.25", "-", "-", "12", "4"]


def test_nothing_is_shown_as_minus_zero() -> None:
    lines = leaderboard([*runs("normal", [50.0, 50.0]), *runs("seal", [49.999, 49.998])], NORMAL)
    assert markdown_cells(to_markdown(lines))[3][4] == "+0.00"


@pytest.mark.parametrize("few", [[51.25], [1.0, 74.0]])  # Student's t makes 37.5 +- 464 of the two
def test_too_few_seeds_among_several_are_named_and_have_no_interval(few: list[float]) -> None:
    results = [*runs("normal", [50.0, 51.0, 52.0]), *runs("seal", few)]
    lines = leaderboard(results, NORMAL)
    assert "method=seal: no interval below 3 seeds" in notes(lines)
    text = to_markdown(lines)
    assert "no interval below 3 seeds" in text
    row = markdown_cells(text)[3]
    assert (row[3], row[5]) == ("-", "-")
    seal = lines[1]
    assert seal.top1 is not None
    assert seal.difference is not None
    assert (seal.top1.low, seal.top1.high, seal.difference.low, seal.difference.high) == (None,) * 4
    record = to_json("trial", lines, results)["lines"][1]
    assert (record["top1"]["low"], record["difference"]["high"]) == (None, None)


def test_the_smallest_p_is_said_where_it_is_too_large_to_decide() -> None:
    assert "p cannot fall below 0.25 with 3 seeds" in notes(leaderboard(THREE_SEEDS, NORMAL))
    six = [*runs("normal", [50.0] * 6), *runs("seal", [51.0, 52.0, 53.0, 54.0, 55.0, 56.0])]
    assert notes(leaderboard(six, NORMAL)) == []


def test_several_comparisons_are_said_corrected() -> None:
    """Of six seeds all above: p = 2 / 2^6, twice that for two comparisons; the other's p is 1 already."""
    above = runs("seal", [51.0, 52.0, 53.0, 54.0, 55.0, 56.0])
    results = [*runs("normal", [50.0] * 6), *above, *runs("llf", [51.0, 49.0] * 3)]
    said = "each p is of one comparison; corrected for all 2 (Holm): method=seal 0.0625, method=llf 1"
    assert said in notes(leaderboard(results, NORMAL))
    assert not any("Holm" in one for one in notes(leaderboard(results[:12], NORMAL)))


def test_where_every_setting_would_be_its_own_baseline_there_is_none() -> None:
    lines = leaderboard([*runs("seal", [51.0]), *runs("llf", [52.0])], {})
    assert notes(lines) == ["no interval below 3 seeds"]
    assert [row[4] for row in markdown_cells(to_markdown(lines))[2:4]] == ["-", "-"]


def test_unequal_budgets_are_said() -> None:
    results = [*runs("normal", [50.0]), *runs("seal", [51.0], epochs=32)]
    assert "runs of 16, 32 epochs: lines differ in compute" in notes(leaderboard(results, NORMAL))


def test_a_setting_that_never_finished_shows_dashes_and_its_reasons() -> None:
    results = [*runs("normal", [50.0, 51.0, 52.0]), *runs("seal", [None, None])]
    lines = leaderboard(results, NORMAL)
    assert (lines[1].top1, lines[1].difference) == (None, None)
    assert markdown_cells(to_markdown(lines))[3] == ["seal", "0 of 2", "-", "-", "-", "-", "-", "24", "8"]
    assert notes(lines) == list(lines[1].problems)
    assert len(lines[1].problems) == 2


@pytest.mark.parametrize(("seeds", "said"), [(1, False), (3, False), (5, False), (6, True)])
def test_the_word_significant_is_never_used_below_six_seeds(seeds: int, said: bool) -> None:
    results = [*runs("normal", [50.0] * seeds), *runs("seal", [60.0 + seed for seed in range(seeds)])]
    lines = leaderboard(results, NORMAL)
    assert ("significant" in everything(lines, results)) is said


def test_json_holds_everything_unrounded_and_survives_a_round_trip() -> None:
    results = [*runs("normal", [50.123456789, 51.0]), *runs("seal", [52.0, None])]
    record = to_json("trial", leaderboard(results, NORMAL), results)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["name"] == "trial"
    normal, seal = record["lines"]
    assert normal["top1"]["mean"] == pytest.approx((50.123456789 + 51) / 2, abs=1e-12)
    assert seal["difference"] == {
        **{"n": 1, "mean": 52.0 - 50.123456789, "low": None, "high": None},
        **{"p": None, "smallest_p": None},
    }
    assert seal["problems"] == ["seal-s1-l4: diverged: loss is nan in epoch 7"]
    first = record["runs"][0]
    assert RunResult(**{**first, "generation_top1": tuple(first["generation_top1"])}) == results[0]
    assert [entry["run_id"] for entry in record["runs"]] == sorted(result.run_id for result in results)


def test_csv_parses_back() -> None:
    results = [*runs("normal", [50.0, 51.0, 52.0]), *runs('a,"b"\n|c', [52.125, None])]
    lines = leaderboard(results, NORMAL)
    normal, other = csv.DictReader(io.StringIO(to_csv(lines), newline=""))
    assert (other["method"], other[LENGTH]) == ('a,"b"\n|c', "4")
    assert (other["runs"], other["finished"], other["top1_low"]) == ("2", "1", "")
    assert (float(other["top1"]), float(other["difference"]), other["p"]) == (52.125, 2.125, "")
    assert (normal["is_baseline"], normal["difference"], other["is_baseline"]) == ("True", "", "False")
    assert lines[0].top1 is not None
    assert (float(normal["top1_low"]), float(normal["top1_high"])) == (lines[0].top1.low, lines[0].top1.high)
    assert other["problems"] == lines[1].problems[0]
    assert (normal["epochs"], normal["epochs_trained"], normal["epochs_shared"]) == ("16", "36", "12")
    assert (normal["images"], normal["passes"], normal["seconds"]) == ("36000", "72000", "91.5")


def test_a_markdown_table_is_aligned_and_rounded() -> None:
    text = to_markdown(leaderboard(THREE_SEEDS, NORMAL))
    heads, rules, *rows = markdown_cells(text)
    assert heads == [
        *("method", "generation_length", "n", "top1 %", "95 % interval"),
        *("difference", "its 95 % interval", "p", "epochs trained", "epochs shared"),
    ]
    assert [rule[-2:] for rule in rules] == ["--"] * 2 + ["-:"] * 8
    assert rows == [
        ["normal", "4", "3", "51.00", "48.52 … 53.48", "baseline", "-", "-", "36", "12"],
        ["seal", "4", "3", "53.00", "48.03 … 57.97", "+2.00", "-0.48 … +4.48", "0.25", "36", "12"],
        ["normal", "8", "3", "41.00", "38.52 … 43.48", "baseline", "-", "-", "36", "12"],
        ["seal", "8", "2 of 3", "40.50", "-", "+0.00", "-", "1", "36", "12"],
    ]
    for table in text.split("\n\n")[:2]:
        bars = {tuple(i for i, letter in enumerate(row) if letter == "|") for row in table.splitlines()}
        assert len(bars) == 1


def test_markdown_escapes_what_would_break_a_row() -> None:
    lines = leaderboard([*runs("normal", [50.0]), *runs("a|b\\|c <i>\nd", [51.0])], NORMAL)
    rows = to_markdown(lines).split("\n\n")[0].splitlines()
    assert len(rows) == 4
    assert r"| a\|b\\\|c \<i> d |" in rows[3]


def test_markup_in_labels_and_titles_is_shown_as_it_is() -> None:
    lines = leaderboard([*runs("normal", [50.0]), *runs("[red]x[/red]", [51.0])], NORMAL)
    text = printed(lines, title="[bold]trial")
    assert "[red]x[/red]" in text
    assert "[bold]trial" in text


def test_the_terminal_table_shows_what_the_markdown_shows() -> None:
    lines = leaderboard(THREE_SEEDS, NORMAL)
    shown = [row.split() for row in printed(lines).splitlines()]
    for row in markdown_cells(to_markdown(lines))[2:]:
        assert " ".join(row).split() in shown


def test_two_axes_fit_in_120_columns() -> None:
    name = "a-method-with-a-name-of-more-than-twenty-letters"
    results = [
        *runs("normal", [50.0, 62.0, 55.0], epochs_trained=1_600, epochs_shared=1_600),
        *runs(name, [58.0, 54.0, 68.0], length="160"),
        *runs(name, [58.0, 54.0, 68.0, None]),
    ]
    text = printed(leaderboard(results, NORMAL), width=120)
    assert "-22.92 … +31.58" in text
    assert "shared" in text
    assert max(map(len, text.splitlines())) <= 120
    assert name in printed(leaderboard(results, NORMAL), width=300)


def test_at_80_columns_epochs_are_left_out_and_every_number_is_whole() -> None:
    text = printed(leaderboard(THREE_SEEDS, NORMAL), width=80)
    assert max(map(len, text.splitlines())) <= 80
    for row in markdown_cells(to_markdown(leaderboard(THREE_SEEDS, NORMAL)))[2:]:
        assert set(" ".join(row[:-2]).split()) <= set(text.split())
    assert "shared" not in text


def test_a_narrow_terminal_folds_labels_and_keeps_numbers_whole() -> None:
    name = "a-method-with-a-name-of-more-than-twenty-letters"
    results = [*runs("normal", [1.0, 99.0, 50.0]), *runs(name, [99.0, 1.0, 60.0])]
    lines = leaderboard(results, NORMAL)
    text = printed(lines, width=90)
    assert max(map(len, text.splitlines())) <= 90
    for cell in markdown_cells(to_markdown(lines))[3][1:]:
        assert cell in text
    assert name in "".join(row.split(" ")[0] for row in text.splitlines())


def test_axes_that_do_not_vary_are_not_shown_unless_there_is_no_other() -> None:
    lines = leaderboard(THREE_SEEDS[:6], NORMAL)
    assert markdown_cells(to_markdown(lines))[0][:2] == ["method", "n"]
    assert markdown_cells(to_markdown(lines[:1]))[0][:3] == ["method", "generation_length", "n"]
    assert to_csv(lines).startswith(f"method,{LENGTH},runs,")


def test_axes_of_the_same_last_word_keep_their_path() -> None:
    settings = [{"a.lr": "1", "b.lr": "2", "c.x": "1"}, {"a.lr": "2", "b.lr": "1"}]
    results = [run("seal", 0, 50.0 + i, setting=setting) for i, setting in enumerate(settings)]
    cells = markdown_cells(to_markdown(leaderboard(results, {"a.lr": "9"})))
    assert cells[0][:3] == ["a.lr", "b.lr", "x"]
    assert cells[3][:3] == ["2", "1", "-"]


def test_output_is_the_same_for_any_order_of_seeds_and_axes() -> None:
    scores = random.Random(3)
    results = [
        *runs("normal", [scores.uniform(40, 60) for _ in range(12)]),
        *runs("seal", [*(scores.uniform(40, 60) for _ in range(10)), None, None]),
    ]
    mixed = [results[0], *reversed(results[1:12]), *reversed(results[12:])]
    mixed = [replace(one, setting=dict(reversed(one.setting.items()))) for one in mixed]
    once, again = (
        json.dumps(to_json("x", leaderboard(some, NORMAL), some), sort_keys=False)
        for some in (results, mixed)
    )
    assert once == again
    assert to_markdown(leaderboard(results, NORMAL)) == to_markdown(leaderboard(mixed, NORMAL))


# Accuracies of other epochs than the last.

SEAL = [  # at the ends of generations: two finished runs and one that diverged in generation 2
    run("seal", 0, 55.0, generation_top1=(50.0, 53.0, 55.0), best_top1=55.5),
    run("seal", 1, 57.0, generation_top1=(52.0, 55.0, 57.0), best_top1=58.5),
    run("seal", 2, None, generation_top1=(51.0, 57.0), best_top1=57.0),
]
SHORT = [run("llf", 0, 60.0, generation_top1=(60.0,), best_top1=61.0)]


def test_accuracy_after_a_generation_is_of_every_run_that_got_there() -> None:
    seal, llf = leaderboard([*SEAL, *SHORT], NORMAL, (1, 2, 3))
    half = 4.302653 / 3**0.5  # t(0.975, 2) / sqrt(3), for a standard deviation of 1
    first, second, third = (seal.after[many] for many in (1, 2, 3))
    assert first is not None
    assert (first.n, first.mean) == (3, 51.0)  # 50 52 51
    assert (first.low, first.high) == pytest.approx((51 - half, 51 + half), abs=1e-5)
    assert second is not None
    assert (second.n, second.mean) == (3, 55.0)  # 53 55 57
    assert (second.low, second.high) == pytest.approx((55 - 2 * half, 55 + 2 * half), abs=1e-5)
    assert third == seal.top1 == estimate([55.0, 57.0])
    assert seal.best == estimate([55.5, 58.5])  # of finished runs: the third might have gone on to more
    assert (llf.after[1], llf.after[2], llf.after[3]) == (estimate([60.0]), None, None)


def test_other_epochs_are_shown_beside_the_last() -> None:
    lines = leaderboard([*SEAL, *SHORT], NORMAL, (1, 3))
    text = to_markdown(lines)
    assert markdown_cells(text)[2][:4] == ["seal", "2 of 3", "56.00", "-"]
    heads, _, *rows = markdown_cells(text, 1)
    assert heads == ["method", "seeds", "after 1 %", "after 3 %", "best %"]
    assert rows == [
        [
            "seal",
            "3",
            "51.00 (48.52 … 53.48)",
            "56.00 (n = 2)",
            "57.00 (n = 2)",
        ],
        ["llf", "1", "60.00", "-", "61.00"],
    ]
    assert all(meaning in text for meaning in meanings(lines))
    assert len(meanings(lines)) == 2
    seal, llf = csv.DictReader(io.StringIO(to_csv(lines)))
    assert (seal["after_1_n"], seal["after_1"], seal["after_3_n"], seal["best_n"]) == ("3", "51.0", "2", "2")
    assert float(seal["after_1_high"]) == pytest.approx(51 + 4.302653 / 3**0.5, abs=1e-5)
    assert seal["best_high"] == ""
    assert (llf["after_3_n"], llf["after_3"], llf["best_low"]) == ("0", "", "")
    record = json.loads(json.dumps(to_json("x", lines, [*SEAL, *SHORT])))
    assert record["lines"][0]["after"]["1"]["mean"] == 51.0
    assert record["lines"][1]["after"] == {"1": {"n": 1, "mean": 60.0, "low": None, "high": None}, "3": None}
    assert record["lines"][0]["best"]["mean"] == 57.0
    assert {tuple(one["generation_top1"]) for one in record["runs"]} == {
        one.generation_top1 for one in (*SEAL, *SHORT)
    }


def test_averaged_weights_have_a_column_where_there_are_any() -> None:
    averaged = [replace(SEAL[0], averaged_top1=56.0), replace(SEAL[1], averaged_top1=60.0), *SEAL[2:]]
    lines = leaderboard([*averaged, *SHORT], NORMAL)
    assert [line.averaged for line in lines] == [estimate([56.0, 60.0]), None]
    heads, _, *rows = markdown_cells(to_markdown(lines), 1)
    assert heads == ["method", "seeds", "best %", "averaged %"]
    assert [row[-1] for row in rows] == ["58.00 (n = 2)", "-"]
    assert [row["averaged"] for row in csv.DictReader(io.StringIO(to_csv(lines)))] == ["58.0", ""]
    assert to_json("x", lines, averaged)["lines"][0]["averaged"]["mean"] == 58.0
    assert len(meanings(lines)) == 2
    assert "averaged" not in to_markdown(leaderboard([*SEAL, *SHORT], NORMAL))


def test_the_terminal_shows_other_epochs_within_100_columns() -> None:
    results = [
        replace(one, setting={**one.setting, "method": "seal(ascend=late, ascent_rate=0.5)"}) for one in SEAL
    ]
    lines = leaderboard([*results, *runs("seal", [40.0], length="160")], NORMAL, (1, 2, 3))
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(to_other_table(lines))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" in text
    for column in zip(*(cells[3:] for cells in markdown_cells(to_markdown(lines), 1)[2:]), strict=True):
        for part in " ".join(column).replace("(", ",").replace(")", ",").split(","):
            assert part.strip() in text
    assert max(map(len, text.splitlines())) <= 100


def test_scores_without_a_best_epoch_have_no_such_columns() -> None:
    lines = leaderboard([run("seal", seed, 50.0, best_top1=None) for seed in range(3)], NORMAL)
    assert to_other_table(lines) is None
    assert meanings(lines) == []
    assert to_markdown(lines).count("| method") == 2
    assert "best" not in to_csv(lines)


def test_intervals_end_where_accuracies_do() -> None:
    results = [*runs("normal", [1.0, 99.0, 50.0]), *runs("seal", [99.0, 1.0, 50.0])]
    results = [replace(one, best_top1=one.top1, generation_top1=(one.top1,)) for one in results]  # type: ignore[arg-type]
    for line in leaderboard(results, NORMAL, (1,)):
        for found in (line.top1, line.after[1], line.best):  # 50 +- 4.3 * 49 / sqrt(3)
            assert found is not None
            assert (found.mean, found.low, found.high) == (50.0, 0.0, 100.0)
    seal = leaderboard(results, NORMAL)[1].difference  # 0 +- 4.3 * 98 / sqrt(3)
    assert seal is not None
    assert (seal.mean, seal.low, seal.high, seal.p) == (0.0, -100.0, 100.0, 1.0)


def test_importing_it_brings_neither_rich_nor_ray_nor_torch() -> None:
    code = (
        "import sys, seal_ray.sweeps.leaderboard;"
        "print([m for m in ('rich', 'ray', 'torch', 'wandb', 'scipy.stats') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_accuracy_has_cost_is_of_finished_runs() -> None:
    """Accuracy is theirs, too: a setting of which most is still to come has not been cheap."""
    some = [*runs("sam", [50.0, 60.0]), run("sam", 2, None, passes=0), *runs("normal", [None, None])]
    lines = leaderboard([*some, run("ban", 0, 40.0, passes=0)], NORMAL)  # images that are not there
    assert [line.cost for line in lines] == [24_000, None, None]


def test_what_a_run_costs_is_the_mean_over_the_seeds_that_have_begun() -> None:
    new = {"epochs_trained": 0, "epochs_shared": 0, "images": 0, "passes": 0, "seconds": 0.0, "status": "new"}
    begun = [*runs("sam", [50.0, None]), run("normal", 0, 50.0, epochs_trained=3)]
    lines = leaderboard([*begun, run("sam", 2, None, **new), run("ban", 0, None, **new)], NORMAL)
    heads, _, *rows = markdown_cells(to_markdown(lines), 3)
    assert heads == ["method", "epochs", "images", "passes", "seconds"]
    assert rows == [
        ["sam", "16", "12,000", "24,000", "30.5"],
        ["normal", "7", "12,000", "24,000", "30.5"],
        ["ban", "-", "-", "-", "-"],
    ]
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(to_compute_table(lines))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell in text for row in rows for cell in row)
    assert [(line.passes, line.seconds) for line in lines] == [(48_000, 61.0), (24_000, 30.5), (0, 0.0)]


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 50), (2, 60), (2, 55), (3, 60), (4, 61)], [True, True, False, False, True]),
        ([(1, 50), (1, 50), (2, 50)], [True, True, False]),  # equals do not beat each other
        ([(2, 10)], [True]),
        ([], []),
    ],
)
def test_the_frontier_is_what_nothing_beats(points: list[tuple[float, float]], best: list[bool]) -> None:
    assert on_frontier(points) == best


def test_what_was_held_out_stands_beside_what_was_tested() -> None:
    results = [
        *(
            replace(one, held_top1=held)
            for one, held in zip(runs("seal", [50.0, 52.0]), (60.0, 61.0), strict=True)
        ),
        *runs("normal", [40.0]),
    ]
    lines = leaderboard(results, NORMAL)
    heads, _, seal, normal = markdown_cells(to_markdown(lines), 1)
    assert (heads[2], seal[2], normal[2]) == ("held out %", "60.50", "-")
    assert lines[0].top1 is not None
    assert lines[0].top1.mean == 51.0
    assert "by which a search chooses" in meanings(lines)[0]
    assert "held out" not in to_markdown(leaderboard(runs("seal", [50.0]), NORMAL))
    record = to_json("x", lines, results)["lines"]
    assert (record[0]["held"]["mean"], record[1]["held"]) == (60.5, None)
    assert next(csv.DictReader(io.StringIO(to_csv(lines))))["held_out"] == "60.5"
