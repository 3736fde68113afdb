"""RESULTS.md, its figures and the README's table, from the rows of the studies in this folder.

    python jobs/studies/results.py

`seal-ray report jobs/studies/NAME.yaml --csv jobs/studies/rows/NAME.csv` wrote the rows. Every number and every
verdict in the text is computed from them; only what was asked, and what an answer does not show, is prose.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from seal_ray.analysis.figures import MARKERS, PALETTE, STYLE
from seal_ray.sweeps.statistics import Difference, estimate, holm, paired, smallest_p

ROOT = Path(__file__).parents[2]
ROWS = Path(__file__).parent / "rows"
BEGIN, END = "<!-- the study: begin -->", "<!-- the study: end -->"
LEVEL = 0.05

Row = Mapping[str, str]
Scores = Mapping[int, float]
"""Seed -> a number."""

CALLED = {
    "normal": "plain training",
    "long": "plain training, one schedule",
    "cold": "fresh start each generation",
    "llf": "LLF",
    "shrink-perturb": "shrink and perturb",
    "ban": "born-again networks",
}
CONTROLS = {
    "last": "plain training's end",
    "stopped": "plain training stopped after its first generation",
    "best": "plain training's best epoch",
}
"""What every method is compared with. The best epoch is chosen on the images that it is of, seed by seed: no rule of
stopping early can do better, so it favours the control."""


def called(method: str) -> str:
    """A label of the axis `method` in words."""
    name, _, rate = method.partition(" ")
    words = {"seal": "SEAL", "random": "random direction"}.get(name)
    return f"{words}, rate {rate}" if words else CALLED[method]


@dataclass(frozen=True)
class Study:
    """The finished runs of a study."""

    name: str
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, name: str) -> Study:
        """Those of rows/<name>.csv."""
        with (ROWS / f"{name}.csv").open(newline="") as file:
            return cls(name, tuple(row for row in csv.DictReader(file) if row["status"] == "finished"))

    def labels(self, axis: str) -> list[str]:
        """The labels of an axis, in the order of the rows."""
        return list(dict.fromkeys(row[axis] for row in self.rows))

    def scores(self, column: str, labels: Mapping[str, str]) -> Scores:
        """A column by seed, of the rows with these labels."""
        rows = [row for row in self.rows if labels.items() <= row.items() and row[column]]
        found = {int(row["seed"]): float(row[column]) for row in rows}
        assert len(found) == len(rows), f"{self.name}: {labels} are several settings"
        return found

    def controls(self, where: Mapping[str, str]) -> dict[str, Scores]:
        """The accuracies of plain training that every method is compared with."""
        plain = {**where, "method": "normal"}
        columns = {"last": "top1", "stopped": "after_1", "best": "best_top1"}
        return {control: self.scores(column, plain) for control, column in columns.items()}


@dataclass(frozen=True)
class Comparison:
    """A paired difference, and its p corrected for all comparisons of its study (Holm)."""

    difference: Difference
    p: float

    @property
    def way(self) -> int:
        """1 or -1 where the corrected p is below 0.05, else 0: it cannot be told."""
        return 0 if self.p >= LEVEL else 1 if self.difference.mean > 0 else -1

    def __str__(self) -> str:
        """The difference in points, bold where it can be told, with its interval and p."""
        of = self.difference
        mean = f"**{of.mean:+.1f}**" if self.way else f"{of.mean:+.1f}"
        return mean if of.low is None else f"{mean} ({of.low:+.1f} … {of.high:+.1f}), p {self.p:.2g}"


def compare[Key](asked: Mapping[Key, tuple[Scores, Scores]]) -> dict[Key, Comparison]:
    """All comparisons of a study, ours with theirs by seed, as one family."""
    found = {key: paired(*pair) for key, pair in asked.items()}
    there = {key: one for key, one in found.items() if one is not None and one.p is not None}
    corrected = holm([one.p for one in there.values() if one.p is not None])
    return {key: Comparison(one, p) for (key, one), p in zip(there.items(), corrected, strict=True)}


def mean(scores: Scores) -> str:
    """A mean with its interval."""
    if not scores:
        return "-"
    of = estimate(list(scores.values()))
    return f"{of.mean:.1f}" if of.low is None else f"{of.mean:.1f} ({of.low:.1f} … {of.high:.1f})"


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
"""By noise, method and control, or (noise, method, other method)."""


def noise_comparisons(study: Study) -> Found:
    """Every method's end with every control, and SEAL with its random direction, at each noise."""
    asked = {}
    methods = study.labels("method")
    for noise in study.labels("data.label_noise"):
        where = {"data.label_noise": noise}
        top1 = {method: study.scores("top1", {**where, "method": method}) for method in methods}
        controls = study.controls(where)
        for method in methods:
            if method != "normal":
                asked |= {(noise, method, name): (top1[method], held) for name, held in controls.items()}
        for method in methods:
            if method.startswith("random"):
                seal = method.replace("random", "seal")
                asked[noise, seal, method] = (top1[seal], top1[method])
    return compare(asked)


def noise_table(study: Study, found: Found, noise: str) -> str:
    """A line for each method, the controls first."""
    where = {"data.label_noise": noise}
    controls = study.controls(where)
    passes = study.scores("passes", {**where, "method": "normal"})
    rows = [
        [f"*{words}*", "", mean(controls[name]), *[""] * 5]
        for name, words in CONTROLS.items()
        if name != "last"
    ]
    for method in study.labels("method"):
        own = {**where, "method": method}
        top1, cost = study.scores("top1", own), study.scores("passes", own)
        more = sum(cost.values()) / len(cost) / (sum(passes.values()) / len(passes))
        against = [str(found.get((noise, method, control), "")) for control in CONTROLS]
        other = [mean(study.scores(column, own)) for column in ("averaged_top1", "train_memorised")]
        rows.append([called(method), f"{more:.2g}", mean(top1), *against, *other])
    heads = ["", "passes", "last top-1 %", "to its end", "to stopping", "to its best epoch", "average", "memorised %"]
    return table(heads, rows)


def noise_verdicts(study: Study, found: Found) -> str:
    """What can be told, a line for each noise and control."""
    lines = []
    for noise in study.labels("data.label_noise"):
        for control, words in CONTROLS.items():
            against = {method: one for (n, method, c), one in found.items() if (n, c) == (noise, control)}
            said = []
            for way, verb in ((1, "above it"), (-1, "below it"), (0, "cannot be told from it")):
                some = [called(method) for method, one in against.items() if one.way == way]
                said += [f"{verb}: {listed(some)}"] if some else []
            lines.append(f"- {percent(noise)} wrong labels, against {words}: {'; '.join(said)}.\n")
    return "".join(lines)


def ascent_verdicts(found: Found) -> str:
    """SEAL against a random direction as long."""
    lines = []
    for (noise, method, other), one in found.items():
        if other in CONTROLS:
            continue
        verdict = {1: "the ascent does better", -1: "the random direction does better", 0: "no difference can be told"}
        lines.append(f"- {percent(noise)} wrong labels: {called(method)} {one}: {verdict[one.way]}.\n")
    return "".join(lines)


def plot_noise(study: Study, found: Found, file: Path) -> None:
    """Ends against plain training's end and its best epoch: a panel for each noise."""
    noises, methods = study.labels("data.label_noise"), [m for m in study.labels("method") if m != "normal"]
    figure = Figure(figsize=(9, 0.9 + 0.36 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(noises), sharey=True, squeeze=False)[0]
    for panel, noise in zip(panels, noises, strict=True):
        panel.axvline(0, color="#444444", linewidth=0.8)
        for control, colour, marker, shift in (("last", PALETTE[5], "s", 0.14), ("best", PALETTE[1], "o", -0.14)):
            for place, method in enumerate(reversed(methods)):
                of = found[noise, method, control].difference
                ends = [] if of.low is None or of.high is None else [of.low, of.high]
                panel.plot(ends, [place + shift] * len(ends), color=colour, linewidth=1.6)
                label = f"minus {CONTROLS[control]}" if place == 0 else None
                panel.plot([of.mean], [place + shift], marker, color=colour, markersize=4.5, label=label)
        panel.set_title(f"{percent(noise)} wrong labels")
        panel.set_xlabel("difference in top-1, points")
    panels[0].set_yticks(range(len(methods)), [called(method) for method in reversed(methods)])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, file)


def frequency_section(study: Study, file: Path) -> str:
    """Generation lengths at equal epochs."""
    lengths, methods = study.labels("budget.generation_length"), study.labels("method")
    asked, top1 = {}, {}
    for length in lengths:
        where = {"budget.generation_length": length}
        top1 |= {(length, method): study.scores("top1", {**where, "method": method}) for method in methods}
        best = study.controls(where)["best"]
        for method in methods:
            if method != "normal":
                asked[length, method, "last"] = (top1[length, method], top1[length, "normal"])
                asked[length, method, "best"] = (top1[length, method], best)
    found = compare(asked)
    rows = []
    for length in lengths:
        rows += [
            [
                f"{length} epochs, {called(method)}",
                mean(top1[length, method]),
                *(str(found.get((length, method, control), "")) for control in ("last", "best")),
            ]
            for method in methods
        ]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    for i, method in enumerate(methods):
        means = [estimate(list(top1[length, method].values())) for length in lengths]
        x = [int(length) for length in lengths]
        reach = [[0.0 if m.low is None else m.mean - m.low for m in means]] * 2
        panel.errorbar(
            x, [m.mean for m in means], reach, color=PALETTE[i], marker=MARKERS[i], markersize=5, label=called(method)
        )
    panel.set_xticks([int(length) for length in lengths])
    panel.set_xlabel("epochs of a generation, of 36")
    panel.set_ylabel("last top-1 %")
    panel.legend()
    save(figure, file)
    return table(["generations of", "last top-1 %", "to plain training's end", "to its best epoch"], rows)


def why_table(study: Study) -> str:
    """Depth and curvature after the last ascent and at the end, compared with plain training at the end."""
    columns = {
        "depth/val_mean": "prediction depth",
        "curvature/top": "largest eigenvalue",
        "curvature/trace": "trace",
        "curvature/bottom": "smallest eigenvalue",
    }
    methods = study.labels("method")
    plain = {c: study.scores(f"relearned:{c}", {"method": "normal"}) for c in columns}
    found = compare(
        {
            (method, c): (study.scores(f"relearned:{c}", {"method": method}), plain[c])
            for method in methods
            for c in columns
            if method != "normal"
        }
    )
    rows = []
    for method in methods:
        for moment in ("ascended", "relearned"):
            held = [study.scores(f"{moment}:{c}", {"method": method}) for c in columns]
            if any(held):
                p = [found.get((method, c)) if moment == "relearned" else None for c in columns]
                cells = [
                    mean(scores) + (f", p {one.p:.2g}" if one else "") for scores, one in zip(held, p, strict=True)
                ]
                rows.append([f"{called(method)}, {moment}", *cells])
    return table(["", *columns.values()], rows)


def looks_table(study: Study, axes: Mapping[str, str]) -> str:
    """What each cell of a look showed: means only."""
    cells = list(dict.fromkeys(tuple(row[axis] for axis in axes) for row in study.rows))
    methods = [method for method in study.labels("method") if method != "normal"]
    rows = []
    for cell in cells:
        where = dict(zip(axes, cell, strict=True))
        controls = study.controls(where)
        best = sum(controls["best"].values()) / len(controls["best"])
        ends = [study.scores("top1", {**where, "method": method}) for method in methods]
        rows.append(
            [
                ", ".join(cell),
                *(mean(controls[name]) for name in ("last", "best")),
                *(f"{sum(end.values()) / len(end) - best:+.1f}" for end in ends),
            ]
        )
    heads = [", ".join(axes.values()), "plain, end", "plain, best epoch", *(f"{called(m)}, to that" for m in methods)]
    return table(heads, rows)


def made_with(study: Study) -> str:
    """Runs, epochs, seconds and hardware of a study."""
    rows = study.rows
    epochs = sum(int(row["epochs"]) for row in rows)
    trained = sum(int(row["epochs_trained"]) for row in rows)
    devices = listed(sorted({f"{row['device']}, torch {row['torch']}" for row in rows if row["device"]}))
    seconds = sum(float(row["seconds"]) * int(row["epochs_trained"]) / int(row["epochs"]) for row in rows)
    return (
        f"{len(rows)} runs; {trained:,} epochs trained for {epochs:,}; {seconds / 60:,.0f} minutes of one process; "
        f"{devices}; `seal-ray sweep jobs/studies/{study.name}.yaml`"
    )


def save(figure: Figure, file: Path) -> None:
    """As SVG; equal rows give equal files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


ABOUT_CELLS = """\
Each cell: the mean over seeds with its 95 % interval (Student's t). A difference is paired by seed, in points of top-1,
with its 95 % interval and the p of a two-sided sign-flip test, **corrected for all comparisons of the study** (Holm);
it is bold where that p is below 0.05. *Average*: top-1 of the exponential moving average of the weights at the end.
*Memorised*: of the training images with wrong labels, those predicted as labelled. *Passes*: over images, relative to
plain training with restarts; the teacher of born-again networks, which only looks at images, is not counted.
"""


def noise_section(study: Study, figure: str, root: Path) -> str:
    """Tables, verdicts and figure of a study of methods over label noise."""
    found = noise_comparisons(study)
    plot_noise(study, found, root / figure)
    n = len({row["seed"] for row in study.rows})
    parts = [
        f"{n} seeds, {len(found)} comparisons; the smallest p that this test can give is {smallest_p(n):.2g}, "
        f"corrected {min(1, smallest_p(n) * len(found)):.2g}.\n",
        noise_verdicts(study, found),
        f"![Differences to plain training]({figure})\n",
    ]
    for noise in study.labels("data.label_noise"):
        parts.append(f"### {percent(noise)} wrong labels\n\n{noise_table(study, found, noise)}")
    if ascent := ascent_verdicts(found):
        parts.append(f"### Is it the ascent?\n\nSEAL minus early layers that move as far in a random direction:\n\n{ascent}")
    return "\n".join(parts)


HEAD = """\
# Results: when does forgetting help?

<!-- Written by jobs/studies/results.py from the rows in jobs/studies/rows; change those. -->

Networks that are trained long forget and relearn in between: does that help, beyond stopping early? Two studies at the
size of two CPU cores. What they ask, what was looked at before, every comparison with its interval and its corrected p,
and what they do *not* show.
"""


def results(root: Path) -> str:
    """All of RESULTS.md; its figures are written into root."""
    raise NotImplementedError


def main(root: Path = ROOT) -> None:
    """Write RESULTS.md with its figures, and the README's part of it."""
    with mpl.rc_context(STYLE):
        (root / "RESULTS.md").write_text(results(root))
    readme = (root / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    (root / "README.md").write_text(f"{before}{BEGIN}\n{summary()}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
