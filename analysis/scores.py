"""What evaluations on other data sets have come to: tables, and a sweep's settings compared by seed."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from seal_ray.analysis.evaluations import EvaluationKind
from seal_ray.analysis.moments import AnalysedRun, Moment, RunSet
from seal_ray.analysis.tasks import RESULTS, TaskOutcome, read_result
from seal_ray.recipe import Job
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath, listed
from seal_ray.sweeps.leaderboard import Line, RunResult, leaderboard, to_csv, to_json, to_markdown
from seal_ray.sweeps.results import SweepRuns, results

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Score:
    """How well the weights of a run serve on a target. half_width: over episodes, else there is none.

    made_by: all that the result depends on but the weights, so that only what is comparable is compared.
    """

    kind: EvaluationKind
    target: str
    shots: int | None
    top1: float
    half_width: float | None
    made_by: str

    @property
    def column(self) -> tuple[str, str, int]:
        """What it is a score of, in the order of columns."""
        return self.kind, self.target, self.shots or 0


@dataclass(frozen=True)
class Column:
    """A target of a sweep: a line for each setting, as in the leaderboard, of top1 on the target."""

    kind: EvaluationKind
    target: str
    shots: int | None
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        """transfer_flowers102, fewshot_eurosat_5."""
        return "_".join(map(str, filter(None, (self.kind, self.target, self.shots))))

    def labelled(self) -> list[Line]:
        """Its lines with the target among their axes."""
        axes = {"target": self.target} | ({"shots": str(self.shots)} if self.shots else {})
        return [replace(line, setting={**axes, **line.setting}) for line in self.lines]


def transfer_columns(
    runs: SweepRuns, kinds: Sequence[EvaluationKind] = get_args(EvaluationKind)
) -> tuple[Column, ...]:
    """What the results of a sweep's runs say, by target and shots: mean, interval, paired difference.

    Of each finished run the last `relearned` moment counts. Runs whose results were made otherwise than
    those of most, or that have none, are `not evaluated`.
    """
    jobs = {one.store.folder: one.job for one in runs.planned}
    return columns_of(jobs, results(runs), runs.sweep.baseline, kinds)


def columns_of(
    jobs: Mapping[AnyPath, Job],
    found: Sequence[RunResult],
    baseline: Mapping[str, str],
    kinds: Sequence[EvaluationKind] = get_args(EvaluationKind),
) -> tuple[Column, ...]:
    """The same of any runs: jobs by the folders of those that have begun, and how each run stands."""
    scores = {folder.name: _scores(folder, job, kinds) for folder, job in jobs.items()}
    columns = sorted({column for of_run in scores.values() for column in of_run})
    return tuple(_column(column, scores, found, baseline) for column in columns)


def _column(
    column: tuple[str, str, int],
    scores: Mapping[str, Mapping[tuple[str, str, int], Score]],
    found: Sequence[RunResult],
    baseline: Mapping[str, str],
) -> Column:
    there = {run: of_run[column] for run, of_run in scores.items() if column in of_run}
    ((usual, _),) = Counter(score.made_by for score in there.values()).most_common(1)
    scored = [_with_score(run, there.get(run.run_id), usual) for run in found]
    first = next(iter(there.values()))
    return Column(first.kind, first.target, first.shots, leaderboard(scored, baseline))


def _with_score(run: RunResult, score: Score | None, usual: str) -> RunResult:
    """A run as the leaderboard takes it, with its score in place of its accuracies."""
    run = replace(run, best_top1=None, generation_top1=(), averaged_top1=None, held_top1=None)
    if run.status != "finished":
        return replace(run, top1=None)
    if score is None:
        return replace(run, top1=None, status="not evaluated", reason="evaluate it too")
    if score.made_by != usual:
        reason = f"on {score.target}, its settings differ from the others'"
        return replace(run, top1=None, status="not evaluated", reason=reason)
    return replace(run, top1=score.top1)


def _scores(folder: AnyPath, job: Job, kinds: Sequence[EvaluationKind]) -> dict[tuple[str, str, int], Score]:
    """The scores of a run's last `relearned` moment."""
    kept = [moment for moment in AnalysedRun(folder, job, "").moments() if moment.name == "relearned"]
    return {score.column: score for score in _scores_of(kept[-1], kinds)} if kept else {}


def _scores_of(moment: Moment, kinds: Sequence[EvaluationKind]) -> Iterator[Score]:
    for kind in kinds:
        for path in listed(moment.run / RESULTS, f"{kind}-*-{moment.label}.json"):
            held = read_result(moment, path.stem.removesuffix(f"-{moment.label}"))
            if held is not None:
                yield from scores_in(held)


def scores_in(held: Mapping[str, Any]) -> Iterator[Score]:
    """The scores of a result: of few-shot one for each number of shots, else one."""
    settings, result = held["settings"], held["result"]
    kind, target = settings["kind"], result["target"]
    whole = {name: value for name, value in settings.items() if name != "shots"}
    made_by = json.dumps([whole, target["identity"], target["encoding"]], sort_keys=True)
    if kind != "fewshot":
        yield Score(kind, target["label"], None, result["top1"], None, made_by)
        return
    for shots, found in result["shots"].items():
        yield Score(kind, target["label"], int(shots), found["top1"], found["half_width"], made_by)


def write_scores(runs: SweepRuns, kind: EvaluationKind) -> tuple[Line, ...]:
    """Write `<sweep folder>/<kind>.csv`, .json and .md, if there is something to write.

    Returns the lines they hold, target by target.
    """
    lines = tuple(line for column in transfer_columns(runs, [kind]) for line in column.labelled())
    if not lines:
        return lines
    scores = {one.store.run_id: _scores(one.store.folder, one.job, [kind]) for one in runs.planned}
    of_runs = [
        {"run_id": run, **asdict(score)}
        for run, of_run in sorted(scores.items())
        for score in of_run.values()
    ]
    body = to_json(runs.sweep.name, lines, (), runs.sweep.baseline)
    text = json.dumps({**body, "runs": of_runs}, indent=1) + "\n"
    contents = {"json": text, "csv": to_csv(lines), "md": to_markdown(lines, costs=False)}
    with saving(runs.folder):
        for suffix, content in contents.items():
            write_durably(runs.folder / f"{kind}.{suffix}", content.encode())
    return lines


SHOWN_OF_TARGET = ("finished", "top1", "difference", "problems")
"""What a line of results.json says of each target."""
COLUMN_SUFFIXES = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high", "_p")
"""The columns of a target: top1 with its interval, the paired difference with its own, and its p."""


def widen_results(runs: SweepRuns, leaderboard: Sequence[Line], found: Sequence[RunResult]) -> None:
    """Put the scores on other data sets beside the accuracies in the sweep's results.*, if there is any.

    leaderboard, found: as `write_results` returned them.
    """
    columns = transfer_columns(runs)
    if not columns:
        return
    said = runs.search.summary() if runs.search else ""
    body = to_json(runs.sweep.name, leaderboard, found, runs.sweep.baseline, said)
    scores = {column.name: to_json("", column.lines, ())["lines"] for column in columns}
    for place, line in enumerate(body["lines"]):
        of_line = {name: lines[place] for name, lines in scores.items()}
        line["carried"] = {name: {key: one[key] for key in SHOWN_OF_TARGET} for name, one in of_line.items()}
    further = {column.name.replace("_", " "): column.lines for column in columns}
    contents = {
        "json": json.dumps(body, indent=1) + "\n",
        "csv": widen(to_csv(leaderboard), columns),
        "md": to_markdown(leaderboard, further) + (said and f"\n{said}\n"),
    }
    with saving(runs.folder):
        for suffix, content in contents.items():
            write_durably(runs.folder / f"results.{suffix}", content.encode())


def widen(table: str, columns: Sequence[Column]) -> str:
    """A leaderboard's CSV, a row for each setting, with the columns of each target behind its own."""
    heading, *rows = csv.reader(io.StringIO(table))
    heading += [f"{column.name}{suffix}" for column in columns for suffix in COLUMN_SUFFIXES]
    for column in columns:
        for row, line in zip(rows, column.lines, strict=True):
            row += map(str, _numbers(line))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heading, *rows])
    return text.getvalue()


def _numbers(line: Line) -> list[float | str]:
    """What stands under COLUMN_SUFFIXES; empty where there is none."""
    top1, difference = line.top1, line.difference
    found = [
        *((top1.mean, top1.low, top1.high) if top1 else (None,) * 3),
        *((difference.mean, difference.low, difference.high, difference.p) if difference else (None,) * 4),
    ]
    return ["" if number is None else number for number in found]


def moments_table(run_set: RunSet, outcomes: Sequence[TaskOutcome], title: str) -> Table:
    """The results of moments, one after the other; what failed or was stopped is not in it."""
    moments = {(one.run.name, one.label): one for run in run_set.runs for one in run.moments()}
    rows = []
    for outcome in outcomes:
        moment = moments.get((outcome.run_id, outcome.moment))
        held = read_result(moment, outcome.what) if moment and outcome.status in MADE else None
        if held is not None:
            rows += [([outcome.run_id, outcome.moment], score) for score in scores_in(held)]
    return _table(title, ("run", "moment"), rows)


def weights_table(held: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """The results of one file of weights."""
    return _table(title, (), [([], score) for result in held.values() for score in scores_in(result)])


MADE = ("computed", "copied", "known")


def _table(title: str, whose: Sequence[str], rows: Sequence[tuple[list[str], Score]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=Text(title), title_justify="left")
    for heading in (*whose, "target"):
        table.add_column(heading, overflow="fold")
    few = any(score.shots for _, score in rows)
    for heading in ("shots", "top1 %", "±") if few else ("top1 %",):
        table.add_column(heading, justify="right", no_wrap=True)
    for names, score in rows:
        width = [] if score.half_width is None else [f"{score.half_width:.2f}"]
        shots = [] if score.shots is None else [str(score.shots)]
        table.add_row(*map(Text, [*names, score.target, *shots, f"{score.top1:.2f}", *width]))
    return table
