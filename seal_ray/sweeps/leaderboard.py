"""The leaderboard of a sweep: one line per setting over its seeds, beside its baseline and its cost."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from seal_ray.errors import ConfigError
from seal_ray.sweeps.statistics import INTERVAL_FROM, Difference, Estimate, estimate, holm, paired

if TYPE_CHECKING:
    from seal_ray.tracking.table import FittedTable

NO_INTERVAL = f"no interval below {INTERVAL_FROM} seeds"
WithInterval = TypeVar("WithInterval", Estimate, Difference)


@dataclass(frozen=True)
class RunResult:
    """One run of a sweep, finished or not. Accuracies are in per cent of the validation images."""

    run_id: str
    setting: Mapping[str, str]  # axis -> label, {"method": "seal", "budget.generation_length": "4"}
    seed: int
    status: str  # finished | diverged | failed | stopped | pruned | new | ...
    reason: str
    top1: float | None  # after the last epoch of the last generation; of finished runs only
    best_top1: float | None
    epochs: int  # the budget
    epochs_trained: int  # by this run itself
    epochs_shared: int  # taken over from another run
    images: int  # trained on, those of shared epochs among them, as are the passes and the seconds
    generation_top1: tuple[float, ...] = ()  # at the end of each generation that has come to it, in order
    passes: int = 0  # images, each as often as a step goes over it forward and backward
    seconds: float = 0.0  # of the epochs, evaluation included
    held_top1: float | None = None  # of the last epoch on images held out of training; top1 is then of others
    averaged_top1: float | None = None  # as top1, of the averaged weights, where there are any


@dataclass(frozen=True)
class Line:
    """One setting over its seeds. Intervals end where accuracies do: at 0 and 100, of differences at +-100.

    cost: passes of a finished run, the mean over them; None before there is one whose images are counted.
    after: by a number of generations, the first included, top1 at the end of so many, over the runs that got
    there; best: of the best epoch of the finished runs, chosen on the images that it is of; averaged: of the
    averaged weights of the finished runs.
    """

    setting: Mapping[str, str]
    runs: int  # asked for
    begun: int  # of them, those that have an epoch
    finished: int
    top1: Estimate | None  # over the finished runs
    difference: Difference | None  # to the baseline, paired by seed
    is_baseline: bool
    epochs: int  # the budget of each run
    epochs_trained: int  # these five summed over the seeds, unfinished runs included
    epochs_shared: int
    images: int
    passes: int
    seconds: float
    cost: float | None
    problems: tuple[str, ...]  # one for each run that is not finished
    after: Mapping[int, Estimate | None]
    best: Estimate | None
    held: Estimate | None  # of the last epoch on images held out of the training images
    averaged: Estimate | None


def leaderboard(
    results: Sequence[RunResult], baseline: Mapping[str, str], after_generations: Sequence[int] = ()
) -> tuple[Line, ...]:
    """One line per setting, in the order in which the settings first appear.

    `baseline` maps axes to labels, {"method": "normal"}: a setting is compared with the setting that has
    these labels and is otherwise the same. after_generations: see `Line.after`. Two runs of one setting and
    seed are a ConfigError: they would count as two seeds.
    """
    groups: dict[frozenset[tuple[str, str]], list[RunResult]] = {}
    for result in results:
        groups.setdefault(_key(result.setting), []).append(result)
    scores = {key: _scores(runs) for key, runs in groups.items()}
    lines = []
    for key, runs in groups.items():
        rival = _key({**runs[0].setting, **baseline})
        difference = None if rival == key else compared(scores[key], scores.get(rival, {}))
        best = [run.best_top1 for run in runs if run.status == "finished" and run.best_top1 is not None]
        ends = [run.generation_top1 for run in runs]
        costs = [run.passes for run in runs if run.status == "finished" and run.passes]
        line = Line(
            setting=runs[0].setting,
            runs=len(runs),
            begun=sum(run.epochs_trained + run.epochs_shared > 0 for run in runs),
            finished=len(scores[key]),
            top1=_mean([*scores[key].values()]),
            difference=difference,
            is_baseline=rival == key,
            epochs=runs[0].epochs,
            epochs_trained=sum(run.epochs_trained for run in runs),
            epochs_shared=sum(run.epochs_shared for run in runs),
            images=sum(run.images for run in runs),
            passes=sum(run.passes for run in runs),
            seconds=math.fsum(run.seconds for run in runs),
            cost=math.fsum(costs) / len(costs) if costs else None,
            problems=tuple(
                ": ".join(filter(None, (run.run_id, run.status, run.reason)))
                for run in sorted(runs, key=lambda run: run.seed)
                if run.status != "finished"
            ),
            after={n: _mean([of[n - 1] for of in ends if len(of) >= n]) for n in after_generations},
            best=_mean(best),
            held=_mean([run.held_top1 for run in runs if run.held_top1 is not None]),
            averaged=_mean([run.averaged_top1 for run in runs if run.averaged_top1 is not None]),
        )
        lines.append(line)
    return tuple(lines)


def compared(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Accuracies by seed minus those of another setting, see `paired` and `Line`."""
    difference = paired(ours, theirs)
    return None if difference is None else _between(difference, -100.0, 100.0)


def _mean(accuracies: Sequence[float]) -> Estimate | None:
    return _between(estimate(accuracies), 0.0, 100.0) if accuracies else None


def _between(found: WithInterval, least: float, most: float) -> WithInterval:
    """The same with its interval cut off at bounds that its mean keeps to."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, least), high=min(found.high, most))


def _key(setting: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(setting.items())


def _scores(runs: Sequence[RunResult]) -> dict[int, float]:
    """Seed -> top-1 of the finished runs of one setting."""
    ids: dict[int, str] = {}
    scores = {}
    for run in runs:
        if run.seed in ids:
            labels = " ".join(f"{axis}={label}" for axis, label in run.setting.items())
            raise ConfigError(
                f"runs {ids[run.seed]} and {run.run_id} have the same setting ({labels}) and the same "
                f"seed {run.seed}: give each value of an axis a label of its own"
            )
        ids[run.seed] = run.run_id
        if run.status == "finished":
            assert run.top1 is not None, run.run_id
            scores[run.seed] = run.top1
    return scores


def to_json(
    name: str,
    lines: Sequence[Line],
    results: Sequence[RunResult],
    baseline: Mapping[str, str] | None = None,
    search: str = "",
) -> dict[str, Any]:
    """Everything, unrounded: the lines in their order, the runs by id; equal input gives equal text.

    baseline: as `leaderboard` took it; with None it is not said. search: how one stands, in words.
    """
    return {
        "name": name,
        **({"search": search} if search else {}),
        **({} if baseline is None else {"baseline": dict(sorted(baseline.items()))}),
        "lines": [_line_json(line) for line in lines],
        "runs": [
            {
                **vars(run),
                "setting": dict(sorted(run.setting.items())),
                "generation_top1": list(run.generation_top1),
            }
            for run in sorted(results, key=lambda run: run.run_id)
        ],
    }


def _line_json(line: Line) -> dict[str, Any]:
    difference: dict[str, Any] | None = None
    if line.difference is not None:
        difference = asdict(line.difference)
        if line.difference.significant is not None:  # below six seeds the word is not used
            difference["significant"] = line.difference.significant
    return {
        **vars(line),
        "setting": dict(sorted(line.setting.items())),
        "top1": line.top1 and asdict(line.top1),
        "difference": difference,
        "problems": list(line.problems),
        "after": {str(many): found and asdict(found) for many, found in line.after.items()},
        "best": line.best and asdict(line.best),
        "held": line.held and asdict(line.held),
        "averaged": line.averaged and asdict(line.averaged),
    }


def to_csv(lines: Sequence[Line]) -> str:
    """One row per line, numbers unrounded, empty where there is none."""
    axes = _axes(lines)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    others = other_top1(lines)
    names = [heading.replace(" ", "_") for heading in others]
    writer.writerow(
        [*axes, *_CSV_COLUMNS, *(f"{name}{what}" for name in names for what in ("_n", "", "_low", "_high"))]
    )
    for i, line in enumerate(lines):
        top1, difference = line.top1, line.difference
        writer.writerow(
            [
                *(line.setting.get(axis, "") for axis in axes),
                line.runs,
                line.epochs,
                *_numbers(top1),
                line.is_baseline,
                *(astuple(difference) if difference else (0, None, None, None, None, None)),
                line.epochs_trained,
                line.epochs_shared,
                line.images,
                line.passes,
                round(line.seconds, 3),
                "; ".join(line.problems),
                *(number for column in others.values() for number in _numbers(column[i])),
            ]
        )
    return text.getvalue()


def _numbers(found: Estimate | None) -> tuple[float | None, ...]:
    """n, mean, low, high."""
    return astuple(found) if found else (0, None, None, None)


_CSV_COLUMNS = (
    *("runs", "epochs"),
    *("finished", "top1", "top1_low", "top1_high"),  # an Estimate
    "is_baseline",
    *("pairs", "difference", "difference_low", "difference_high", "p", "smallest_p"),  # a Difference
    *("epochs_trained", "epochs_shared", "images", "passes", "seconds", "problems"),
)


def to_markdown(
    lines: Sequence[Line], further: Mapping[str, Sequence[Line]] | None = None, *, costs: bool = True
) -> str:
    """Aligned GitHub tables: the leaderboard, `other_top1` where there is any, and with costs `compute`.

    Labels are shown as they are.

    further: lines of the same settings by what they are of; accuracy and difference of each become columns.
    """
    axes = _shown_axes(lines)
    heads = [*headings(axes), *(heading.replace("\n", " ") for heading in _NUMBERS)]
    table = _all_cells(lines, axes)
    for heading, others in (further or {}).items():
        heads += [f"{heading} %", "difference"]
        table = [[*row, *_short(line)] for row, line in zip(table, others, strict=True)]
    text = _aligned([heads, *table], len(axes))
    if times := other_top1(lines):
        rows = [
            [*_labels(line, axes), str(line.runs), *(_beside(*_parts(of[i], line)) for of in times.values())]
            for i, line in enumerate(lines)
        ]
        heads = [*headings(axes), "seeds", *(f"{heading} %" for heading in times)]
        text += "\n" + _aligned([heads, *rows], len(axes))
        text += "".join(f"\n{_escape(meaning)}\n" for meaning in meanings(lines))
    if costs:
        rows = [[*_labels(line, axes), *cells] for line, cells in zip(lines, compute(lines), strict=True)]
        text += "\n" + _aligned([[*headings(axes), *COMPUTE], *rows], len(axes)) + f"\n{COMPUTE_MEANING}\n"
    return text + (f"\n{NO_INTERVAL}\n" if _without_interval(lines) else "")


def _aligned(table: Sequence[Sequence[str]], words: int) -> str:
    """The rows, their heads first, as Markdown; as many columns as there are `words` are ranged left."""
    rows = [[_escape(cell) for cell in row] for row in table]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rules = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def row_text(row: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |\n"

    return "".join(map(row_text, [rows[0], rules, *rows[1:]]))


def to_table(lines: Sequence[Line], title: str) -> FittedTable:
    """The same table for the terminal; long labels are folded, numbers never."""
    axes = _shown_axes(lines)
    return _table(title, axes, _NUMBERS, _all_cells(lines, axes))


def to_other_table(lines: Sequence[Line]) -> FittedTable | None:
    """`other_top1` for the terminal, each interval below its mean; None where there is none."""
    axes, times = _shown_axes(lines), other_top1(lines)
    rows = [
        [*_labels(line, axes), str(line.runs), *("\n".join(_parts(of[i], line)) for of in times.values())]
        for i, line in enumerate(lines)
    ]
    headings = ("seeds", *(f"{heading} %" for heading in times))
    return _table("top1 of other epochs", axes, headings, rows) if times else None


def to_compute_table(lines: Sequence[Line]) -> FittedTable:
    """`compute` for the terminal."""
    axes = _shown_axes(lines)
    rows = [[*_labels(line, axes), *cells] for line, cells in zip(lines, compute(lines), strict=True)]
    return _table("compute of a run", axes, COMPUTE, rows)


def _table(
    title: str, axes: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]
) -> FittedTable:
    from seal_ray.tracking.table import Column, FittedTable

    labels = [Column(heading, folds_to=8) for heading in headings(axes)]
    columns = [Column(heading, right=True, leaves=_LEAVE.get(heading, 0)) for heading in numbers]
    return FittedTable(title, [*labels, *columns], rows)


COMPUTE = ("epochs", "images", "passes", "seconds")
"""What heads the cells of `compute`."""
COMPUTE_MEANING = (
    "of one run, mean over the seeds that have begun, shared epochs among them; passes: images, each as "
    "often as a step goes over it forward and backward (SAM: twice); seconds: of all epochs, evaluation "
    "included"
)


def compute(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """What a run of each line has cost so far, the mean over those that have begun, as cells."""
    return [
        (
            f"{round((line.epochs_trained + line.epochs_shared) / line.begun, 1):,}".removesuffix(".0"),
            *(f"{total / line.begun:,.0f}" for total in (line.images, line.passes)),
            f"{line.seconds / line.begun:,.1f}",
        )
        if line.begun
        else ("-",) * len(COMPUTE)
        for line in lines
    ]


def on_frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (cost, worth) pairs, which no other beats: none costs no more and is worth no less, but for equals.

    The Pareto frontier.
    """
    return [
        not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
        for cost, worth in points
    ]


def other_top1(lines: Sequence[Line]) -> dict[str, list[Estimate | None]]:
    """Top1 beside that of the last weights, of each line by its heading: `after 3` generations, `best`,
    `averaged`.

    The last two only where a line has one: a run has finished, or keeps an average, on its own data set.
    """
    found = {
        f"after {many}": [line.after[many] for line in lines] for many in (lines[0].after if lines else ())
    }
    further = {
        "held out": [line.held for line in lines],
        "best": [line.best for line in lines],
        "averaged": [line.averaged for line in lines],
    }
    return found | {heading: column for heading, column in further.items() if any(column)}


def meanings(lines: Sequence[Line]) -> list[str]:
    """What `other_top1` is, a sentence for each kind of column that there is."""
    times = other_top1(lines)
    said = [HELD_OUT] if "held out" in times else []
    if any(heading.startswith("after") for heading in times):
        said.append(
            "after g: top1 at the end of g generations, the first included, of every run that got there"
        )
    if "best" in times:
        said.append("best: top1 of the best epoch, chosen on the images that it is of, so biased upwards")
    if "averaged" in times:
        said.append("averaged: top1 of the averaged weights on the same images, after the last epoch")
    return said


HELD_OUT = (
    "held out: top1 after the last epoch on training images that are held out (data.holdout), by which a "
    "search chooses and of which after and best are; the other top1 is a test, of the data set's val images, "
    "which are looked at once, at the end"
)


def notes(lines: Sequence[Line]) -> list[str]:
    """What a reader of the table must know, as plain text (not markup), one line each."""
    axes = _shown_axes(lines)
    said = []
    if few := _without_interval(lines):
        about = "" if len(few) == len(lines) else ", ".join(_name(one, axes) for one in few) + ": "
        said.append(f"{about}{NO_INTERVAL}")
    compared = [(line, line.difference) for line in lines if line.difference is not None]
    for n, floor in sorted({(d.n, d.smallest_p) for _, d in compared if d.significant is None}):
        if floor is not None:
            said.append(f"p cannot fall below {floor:.3g} with {n} seeds")
    tested = [(_name(line, axes), difference.p) for line, difference in compared if difference.p is not None]
    if len(tested) > 1:
        corrected = zip(tested, holm([p for _, p in tested]), strict=True)
        each = ", ".join(f"{name} {p:.3g}" for (name, _), p in corrected)
        said.append(f"each p is of one comparison; corrected for all {len(tested)} (Holm): {each}")
    for line, difference in compared:
        if difference.n < line.finished:
            pairs = f"{difference.n} of its {line.finished} seeds"
            said.append(f"{_name(line, axes)}: compared over {pairs}, those its baseline has finished too")
    for line in lines:
        if line.difference is None and line.finished and not line.is_baseline:
            said.append(f"{_name(line, axes)}: no difference, its baseline has finished none of its seeds")
    if len(budgets := sorted({line.epochs for line in lines})) > 1:
        said.append(f"runs of {', '.join(map(str, budgets))} epochs: lines differ in compute")
    return said + [problem for line in lines for problem in line.problems]


def _without_interval(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if 0 < line.finished < INTERVAL_FROM]


_NUMBERS = (
    *("n", "top1 %", "95 %\ninterval"),
    *("difference", "its 95 %\ninterval", "p"),
    *("epochs\ntrained", "epochs\nshared"),
)
_LEAVE = {"epochs\nshared": 1, "epochs\ntrained": 2}
"""Which columns a terminal that is too narrow is not shown, in which order."""


def _all_cells(lines: Sequence[Line], axes: Sequence[str]) -> list[list[str]]:
    """The rows; where each of several settings is its own baseline, none is called one."""
    if len(lines) > 1 and all(line.is_baseline for line in lines):
        lines = [replace(line, is_baseline=False) for line in lines]
    return [_cells(line, axes) for line in lines]


def _cells(line: Line, axes: Sequence[str]) -> list[str]:
    """A row, rounded for display: the labels of the axes, then what `_NUMBERS` heads."""
    top1, difference = line.top1, line.difference
    return [
        *_labels(line, axes),
        str(line.runs) if line.finished == line.runs else f"{line.finished} of {line.runs}",
        f"{top1.mean:.2f}" if top1 else "-",
        _interval(top1, "z.2f"),
        f"{difference.mean:+z.2f}" if difference else "baseline" if line.is_baseline else "-",
        _interval(difference, "+z.2f"),
        f"{difference.p:.3g}" if difference and difference.p is not None else "-",
        f"{line.epochs_trained:,}",
        f"{line.epochs_shared:,}",
    ]


def _short(line: Line) -> tuple[str, str]:
    """Accuracy and difference with their intervals, in a cell each."""
    _, top1, interval, difference, its_interval, *_ = _cells(line, ())
    return _beside(top1, interval), _beside(difference, its_interval)


def _parts(top1: Estimate | None, line: Line) -> list[str]:
    """A mean, its interval if it has one, and n where that is less than the setting's seeds."""
    if top1 is None:
        return ["-"]
    interval = _interval(top1, "z.2f")
    few = [] if top1.n == line.runs else [f"n = {top1.n}"]
    return [f"{top1.mean:.2f}", *([] if interval == "-" else [interval]), *few]


def _labels(line: Line, axes: Sequence[str]) -> list[str]:
    return [line.setting.get(axis, "-") for axis in axes]


def _beside(number: str, *rest: str) -> str:
    said = ", ".join(part for part in rest if part != "-")
    return f"{number} ({said})" if said else number


def _interval(of: Estimate | Difference | None, form: str) -> str:
    if of is None or of.low is None or of.high is None:
        return "-"
    return f"{of.low:{form}} … {of.high:{form}}"


def _axes(lines: Iterable[Line]) -> list[str]:
    """Every axis, in the order in which they first appear."""
    return list(dict.fromkeys(axis for line in lines for axis in line.setting))


def _shown_axes(lines: Sequence[Line]) -> list[str]:
    """The axes that vary; all of them when none does."""
    axes = _axes(lines)
    return [axis for axis in axes if len({line.setting.get(axis) for line in lines}) > 1] or axes


def headings(axes: Sequence[str]) -> list[str]:
    """The last word of each axis, `generation_length`; the whole path where two would be the same."""
    last = [axis.rpartition(".")[2] for axis in axes]
    return [word if last.count(word) == 1 else axis for word, axis in zip(last, axes, strict=True)]


def _name(line: Line, axes: Sequence[str]) -> str:
    words = zip(headings(axes), axes, strict=True)
    return " ".join(f"{word}={line.setting[axis]}" for word, axis in words if axis in line.setting)


def _escape(cell: str) -> str:
    r"""A cell as Markdown shows it literally: `a|b` becomes `a\|b`."""
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(cell.split()))
