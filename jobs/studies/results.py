"""RESULTS.md, its figures and the README's table, from the rows of the studies in this folder.

    python jobs/studies/results.py

`seal-ray report jobs/studies/NAME.yaml --csv jobs/studies/rows/NAME.csv` wrote the rows; results.md.j2 is the
prose: what was asked, and what an answer does not show. Every number and verdict is computed from the rows.
"""

from __future__ import annotations

import csv
import sys
import textwrap
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from seal_ray.analysis.figures import MARKERS, PALETTE, STYLE
from seal_ray.sweeps.statistics import Difference, estimate, holm, paired, smallest_p

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FIGURES = "docs/studies"
BEGIN, END = "<!-- the study: begin -->\n", "<!-- the study: end -->"
LEVEL = 0.05

Row = Mapping[str, str]
Scores = Mapping[int, float]
"""Seed -> a number."""
Key = TypeVar("Key", bound=Hashable)

METHODS = {
    "normal": "plain training",
    "long": "plain training, one schedule",
    "cold": "fresh start each generation",
    "llf": "LLF",
    "ban": "born-again networks",
}
CONTROLS = {
    "last": "plain training's end",
    "stopped": "plain training stopped after its first generation",
    "best": "plain training's best epoch",
}
"""What every method's end is compared with."""
AVERAGE = "average"
"""The comparison of the average at the end with the best that plain training's was after any epoch."""
SCHEDULE = {
    "its end": ("top1", "top1"),
    "its best epoch": ("top1", "best_top1"),
    "its best average": ("averaged_top1", "best_averaged_top1"),
}
"""What of plain training in one schedule other methods are compared with: their column, and its."""
WHY = {
    "depth/val_mean": "prediction depth",
    "curvature/top": "largest eigenvalue",
    "curvature/trace": "trace",
    "curvature/bottom": "smallest eigenvalue",
}
ASCENT = {1: "the ascent does better", -1: "the random direction does better", 0: "cannot be told apart"}


@dataclass(frozen=True)
class Study:
    """The finished runs of a study."""

    name: str
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, name: str) -> Study:
        """Those of rows/<name>.csv."""
        with (HERE / "rows" / f"{name}.csv").open(newline="") as file:
            return cls(name, tuple(row for row in csv.DictReader(file) if row["status"] == "finished"))

    @property
    def data(self) -> str:
        """What it trains on, in a word."""
        return "digits" if self.name.startswith("digits") else "Tiny-ImageNet-20"

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len(self.labels("seed"))

    def labels(self, axis: str) -> list[str]:
        """The labels of an axis, in the order of the rows."""
        return list(dict.fromkeys(row[axis] for row in self.rows))

    def scores(self, column: str, labels: Mapping[str, str]) -> Scores:
        """A column by seed, of the rows with these labels; nothing where the study has no such column."""
        rows = [row for row in self.rows if labels.items() <= row.items() and row.get(column)]
        found = {int(row["seed"]): float(row[column]) for row in rows}
        assert len(found) == len(rows), f"{self.name}: {labels} are several settings"
        return found

    def controls(self, where: Mapping[str, str]) -> dict[str, Scores]:
        """The accuracies of plain training with restarts that every method is compared with."""
        plain = {**where, "method": "normal"}
        columns = {"last": "top1", "stopped": "after_1", "best": "best_top1"}
        return {control: self.scores(column, plain) for control, column in columns.items()}


@dataclass(frozen=True)
class Comparison:
    """A paired difference, and its p corrected for all comparisons of its section (Holm)."""

    difference: Difference
    p: float

    @property
    def way(self) -> int:
        """1 or -1 where the corrected p is below 0.05, else 0: it cannot be told."""
        return 0 if self.p >= LEVEL else 1 if self.difference.mean > 0 else -1

    @property
    def short(self) -> str:
        """The difference in points, bold where it can be told, with its interval."""
        of = self.difference
        mean = f"**{of.mean:+.1f}**" if self.way else f"{of.mean:+.1f}"
        return mean if of.low is None else f"{mean} ({of.low:+.1f} … {of.high:+.1f})"

    def __str__(self) -> str:
        """The same with its p."""
        return f"{self.short}, p {self.p:.2g}"


def compare(asked: Mapping[Key, tuple[Scores, Scores]]) -> dict[Key, Comparison]:
    """All comparisons of a section, ours with theirs by seed, as one family."""
    found = {key: paired(*pair) for key, pair in asked.items()}
    there = {key: one for key, one in found.items() if one is not None and one.p is not None}
    corrected = holm([one.p for one in there.values() if one.p is not None])
    return {key: Comparison(one, p) for (key, one), p in zip(there.items(), corrected, strict=True)}


def called(method: str) -> str:
    """A label of the axis `method` in words."""
    name, _, rate = method.partition(" ")
    words = {"seal": "SEAL", "random": "random direction"}.get(name)
    if not words:
        return METHODS[method]
    return f"{words}, {rate} nats" if rate.startswith("rise") else f"{words}, rate {rate}"


def mean(scores: Scores, form: str = ".1f") -> str:
    """A mean with its interval."""
    of = estimate(list(scores.values()))
    return f"{of.mean:{form}}" if of.low is None else f"{of.mean:{form}} ({of.low:{form}} … {of.high:{form}})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown, the first column ranged left."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def listed(words: Sequence[str]) -> str:
    """Words in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def percent(noise: str) -> str:
    """A share of labels."""
    return f"{100 * float(noise):.0f} %"


Found = Mapping[tuple[str, str, str], Comparison]
"""By noise, method, and control or other method."""


def compare_noise(study: Study) -> Found:
    """Every method's end with every control, and SEAL with its random direction, at each noise."""
    asked = {}
    methods = study.labels("method")
    for noise in study.labels("data.label_noise"):
        where = {"data.label_noise": noise}
        top1 = {method: study.scores("top1", {**where, "method": method}) for method in methods}
        for method in methods:
            if method != "normal":
                controls = study.controls(where).items()
                asked |= {(noise, method, control): (top1[method], held) for control, held in controls}
                average = study.scores("averaged_top1", {**where, "method": method})
                best = study.scores("best_averaged_top1", {**where, "method": "normal"})
                asked[noise, method, AVERAGE] = (average, best)
            if method.startswith("random"):
                seal = method.replace("random", "seal")
                asked[noise, seal, method] = (top1[seal], top1[method])
    return compare(asked)


def compare_schedule(study: Study) -> Found:
    """Every other method with plain training in one schedule, at each noise."""
    asked = {}
    for share in study.labels("data.label_noise"):
        where = {"data.label_noise": share}
        for method in study.labels("method"):
            for control, (ours, its) in SCHEDULE.items():
                if method != "long":
                    there = study.scores(its, {**where, "method": "long"})
                    asked[share, method, control] = (study.scores(ours, {**where, "method": method}), there)
    return compare(asked)


def schedule(name: str) -> str:
    """Table of a study's methods against plain training in one schedule."""
    study = Study.read(name)
    found = compare_schedule(study)
    rows = [
        [
            f"{percent(share)} wrong labels, {called(method)}",
            *(str(found[share, method, c]) for c in SCHEDULE),
        ]
        for share, method in dict.fromkeys((share, method) for share, method, _ in found)
    ]
    heads = ["against plain training, one schedule", *SCHEDULE]
    return f"{study.seeds} seeds, {len(found)} comparisons.\n\n{table(heads, rows)}"


def in_short(*names: str) -> str:
    """What can be told at each noise: against plain training's end, its best epoch, the best average of one
    schedule, and of SEAL's ascent.
    """
    lines = []
    for study in map(Study.read, names):
        found, of_schedule = compare_noise(study), compare_schedule(study)
        if smallest_p(study.seeds) * len(found) >= LEVEL:
            few = f"{study.seeds} seeds are too few for a verdict on {len(found)} comparisons"
            lines.append(f"- {study.data}: {few}.\n")
            continue
        for share in study.labels("data.label_noise"):
            said = [_told(found, share, control, CONTROLS[control]) for control in ("last", "best")]
            averages = _told(of_schedule, share, "its best average", "one schedule's best average")
            said.append(f"Averages {averages[0].lower()}{averages[1:]}")
            said += [
                f"{called(method)} against {called(other)}: {one}, {ASCENT[one.way]}"
                for (n, method, other), one in found.items()
                if n == share and other not in (*CONTROLS, AVERAGE)
            ]
            lines.append(f"- **{study.data}, {percent(share)} wrong labels.** {'. '.join(said)}.\n")
    return "".join(lines)


def _told(found: Found, share: str, control: str, words: str) -> str:
    """Which methods end above a control and which below it, as far as that can be told."""
    against = {method: one for (n, method, c), one in found.items() if (n, c) == (share, control)}
    said = []
    for way, verb in ((1, "above"), (-1, "below")):
        some = [f"{called(m)} ({one.difference.mean:+.1f})" for m, one in against.items() if one.way == way]
        said.append(f"{verb} {words if way > 0 else 'it'}: {listed(some) if some else 'none'}")
    return f"{said[0][0].upper()}{said[0][1:]}; {said[1]}"


def noise(name: str, root: Path) -> str:
    """Figure, verdicts and tables of a study of methods over label noise."""
    study = Study.read(name)
    found, file = compare_noise(study), f"{FIGURES}/{name}.svg"
    draw_noise(study, found, root / file)
    least = smallest_p(study.seeds)
    parts = [
        f"{study.seeds} seeds, {len(found)} comparisons. The smallest p of this test is {least:.2g}, and "
        f"{min(1, least * len(found)):.2g} when it is corrected for all of them.\n",
        f"![Differences to plain training]({file})\n",
    ]
    for share in study.labels("data.label_noise"):
        parts.append(f"### {study.data}, {percent(share)} wrong labels\n\n{noise_table(study, found, share)}")
    return "\n".join(parts)


def noise_table(study: Study, found: Found, share: str) -> str:
    """A line for each method, the controls first."""
    where = {"data.label_noise": share}
    plain = sum(study.scores("passes", {**where, "method": "normal"}).values())
    controls = study.controls(where)
    rows = [
        [f"*{words}*", "", mean(controls[control]), *[""] * 6]
        for control, words in CONTROLS.items()
        if control != "last"
    ]
    for method in study.labels("method"):
        own = {**where, "method": method}
        cost = sum(study.scores("passes", own).values()) / plain
        last, average, wrong = (study.scores(c, own) for c in ("top1", "averaged_top1", "train_memorised"))
        *against, averages = (
            str(found.get((share, method, control), "")) for control in (*CONTROLS, AVERAGE)
        )
        cells = [f"{cost:.2g}", mean(last), *against, mean(average), averages, mean(wrong) if wrong else ""]
        rows.append([called(method), *cells])
    differences = ("to its end", "to stopping", "to its best epoch")
    heads = ["", "passes", "last top-1 %", *differences, "average %", "to its best average", "memorised %"]
    return table(heads, rows)


def draw_noise(study: Study, found: Found, file: Path) -> None:
    """Ends against plain training's end and its best epoch: a panel for each noise."""
    noises = study.labels("data.label_noise")
    methods = [method for method in reversed(study.labels("method")) if method != "normal"]
    figure = Figure(figsize=(3 + 2 * len(noises), 1.1 + 0.36 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(noises), sharey=True, squeeze=False)[0]
    looks = (("last", PALETTE[5], "s", 0.14), ("best", PALETTE[1], "o", -0.14))
    for panel, share in zip(panels, noises, strict=True):
        panel.axvline(0, color="#444444", linewidth=0.8)
        for control, colour, marker, aside in looks:
            for place, method in enumerate(methods):
                of = found[share, method, control].difference
                if of.low is not None and of.high is not None:
                    panel.plot([of.low, of.high], [place + aside] * 2, color=colour, linewidth=1.6)
                label = f"minus {CONTROLS[control]}" if place == 0 else None
                panel.plot([of.mean], [place + aside], marker, color=colour, markersize=4.5, label=label)
        panel.set_title(f"{percent(share)} wrong labels")
        panel.set_xlabel("difference in top-1, points")
    panels[0].set_yticks(range(len(methods)), [called(method) for method in methods])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, file)


def frequency(name: str, root: Path) -> str:
    """Figure and table of generation lengths at equal epochs."""
    study, file = Study.read(name), f"{FIGURES}/{name}.svg"
    lengths, methods = study.labels("budget.generation_length"), study.labels("method")
    asked, top1 = {}, {}
    for length in lengths:
        where = {"budget.generation_length": length}
        best = study.controls(where)["best"]
        for method in methods:
            top1[length, method] = study.scores("top1", {**where, "method": method})
            if method != "normal":
                asked[length, method, "last"] = (top1[length, method], top1[length, "normal"])
                asked[length, method, "best"] = (top1[length, method], best)
    found = compare(asked)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    for i, method in enumerate(methods):
        means = [estimate(list(top1[length, method].values())) for length in lengths]
        reach = [0.0 if of.low is None else of.mean - of.low for of in means]
        look = {"color": PALETTE[i], "marker": MARKERS[i], "markersize": 5, "label": called(method)}
        panel.errorbar([int(length) for length in lengths], [of.mean for of in means], reach, **look)
    panel.set_xticks([int(length) for length in lengths])
    panel.set_xlabel("epochs of a generation, of 36")
    panel.set_ylabel("last top-1 %")
    figure.legend(loc="outside right upper")
    save(figure, root / file)
    rows = []
    for length, method in top1:
        against = [str(found.get((length, method, control), "")) for control in ("last", "best")]
        rows.append([f"{length} epochs, {called(method)}", mean(top1[length, method]), *against])
    heads = ("generations of", "last top-1 %", "to plain training's end", "to its best epoch")
    count = f"{study.seeds} seeds, {len(found)} comparisons."
    return f"{count}\n\n![Last top-1 by generation length]({file})\n\n{table(heads, rows)}"


def why(name: str) -> str:
    """Depth and curvature after the last ascent and at the end, compared with plain training's end."""
    study = Study.read(name)
    methods = study.labels("method")

    def held(method: str, moment: str, column: str) -> Scores:
        return study.scores(f"{moment}:{column}", {"method": method})

    found = compare(
        {
            (method, column): (held(method, "relearned", column), held("normal", "relearned", column))
            for method in methods
            for column in WHY
            if method != "normal"
        }
    )
    rows = []
    for method in methods:
        cells = [
            mean(scores, ".3g") if (scores := held(method, "ascended", column)) else "" for column in WHY
        ]
        if any(cells):
            rows.append([f"{called(method)}, after its last ascent", *cells])
        p = [f", p {found[method, column].p:.2g}" if (method, column) in found else "" for column in WHY]
        ends = [mean(held(method, "relearned", column), ".3g") for column in WHY]
        rows.append([f"{called(method)}, at the end", *map(str.__add__, ends, p)])
    return f"{study.seeds} seeds, {len(found)} comparisons.\n\n{table(['', *WHY.values()], rows)}"


def looks(name: str, axes: Mapping[str, str]) -> str:
    """What each cell of a look showed, means alone; axes: those of its cells, and what to call them."""
    study = Study.read(name)
    methods = [method for method in study.labels("method") if method != "normal"]
    rows = []
    for cell in dict.fromkeys(tuple(row[axis] for axis in axes) for row in study.rows):
        where = dict(zip(axes, cell, strict=True))
        ends = {
            method: fmean(study.scores("top1", {**where, "method": method}).values()) for method in methods
        }
        last, _, best = (fmean(scores.values()) for scores in study.controls(where).values())
        rows.append(
            [", ".join(cell), f"{last:.1f}", f"{best:.1f}", *(f"{ends[m] - best:+.1f}" for m in methods)]
        )
    heads = [", ".join(axes.values()), "plain training's end", "its best epoch", *map(called, methods)]
    return f"{study.data}, {study.seeds} seed{'s' * (study.seeds > 1)} a cell:\n\n{table(heads, rows)}"


def made_with(*names: str) -> str:
    """Runs, epochs, time and hardware of each study; what an earlier one has trained is not counted again."""
    lines, known = [], set[str]()
    for study in map(Study.read, names):
        epochs = sum(int(row["epochs"]) for row in study.rows)
        new = [row for row in study.rows if row["run"] not in known]
        own = sum(int(row["epochs_trained"]) for row in new)
        spent = sum(float(r["seconds"]) * int(r["epochs_trained"]) / int(r["epochs"]) for r in new)
        devices = sorted({f"{row['device']}, torch {row['torch']}" for row in study.rows if row["device"]})
        lines.append(
            f"- {study.name}: {len(study.rows)} runs of {epochs:,} epochs, {own:,} trained for it, "
            f"{spent / 60:,.0f} minutes of one process; {listed(devices)}\n"
        )
        known |= {row["run"] for row in new}
    return "".join(lines)


def summary(*names: str) -> str:
    """The README's part: ends against plain training's best epoch, at each noise, which are above it, and
    where their averages are to the best of one schedule.
    """
    tables, above, averages = [], [], []
    for study in map(Study.read, names):
        found, noises = compare_noise(study), study.labels("data.label_noise")
        of_schedule = compare_schedule(study)
        heads = [f"{percent(share)} wrong labels" for share in noises]
        rows = []
        for method in study.labels("method"):
            if method != "normal":
                best = {share: found[share, method, "best"] for share in noises}
                rows.append([called(method), *(one.short for one in best.values())])
                for share, one in best.items():
                    if one.way == 1:
                        where = f"{study.data}, {percent(share)} wrong labels"
                        above.append(f"{called(method)} ({one.difference.mean:+.1f}; {where})")
                        averages.append(
                            f"{called(method)} {of_schedule[share, method, 'its best average'].short}"
                        )
        tables.append(table([f"{study.seeds} seeds, {study.data}", *heads], rows))
    told = (
        f"Above it, as far as can be told: {listed(above)}. An average of their weights, minus the best that "
        f"one of plain training in *one schedule* was after any epoch: {listed(averages)}."
    )
    return "\n".join([*tables, f"{textwrap.fill(told, 119, break_on_hyphens=False)}\n"])


def save(figure: Figure, file: Path) -> None:
    """As SVG; equal rows give equal files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def main(root: Path = ROOT) -> None:
    """Write RESULTS.md with its figures, and the README's part of it."""
    prose = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    functions = {
        "in_short": in_short,
        "noise": lambda name: noise(name, root),
        "schedule": schedule,
        "frequency": lambda name: frequency(name, root),
        "why": why,
        "looks": looks,
        "made_with": made_with,
    }
    with mpl.rc_context(STYLE):
        text = prose.from_string((HERE / "results.md.j2").read_text()).render(functions)
    (root / "RESULTS.md").write_text(text)
    part = summary("digits-noise", "tiny-imagenet-20")
    before, rest = (root / "README.md").read_text().split(BEGIN)
    (root / "README.md").write_text(f"{before}{BEGIN}{part}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
