"""The sections that tell what training has come to: leaderboard, curves, generations, tree, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from seal_ray.reports import curves as of
from seal_ray.reports.blocks import Calls, Figure, Missing, Section, Table, TableRow, number, span, standing
from seal_ray.reports.charts import LABEL, MOST_RANGES, NARROW, WIDE, Axes, Curve, Ribbon, line_chart
from seal_ray.reports.small_charts import Named, interval_bar, share_bar, tree_chart
from seal_ray.reports.study import SettingFacts, Study, memorised
from seal_ray.reports.svg import around
from seal_ray.runs.sharing import branchings, shapes
from seal_ray.sweeps.leaderboard import (
    COMPUTE,
    COMPUTE_MEANING,
    Line,
    compute,
    meanings,
    on_frontier,
    other_top1,
)
from seal_ray.sweeps.statistics import Estimate

FIRST_WIDTH = 620
"""Width of the chart beside the answer, in CSS pixels."""
SHORT = 5
"""Settings of the table below the answer at most."""
RIBBONS = 8
"""Settings whose phases are drawn below the curves at most."""
TREES = 40
"""Runs of one seed that the generation tree shows at most."""


def leaderboard_section(study: Study, target: Calls) -> Section:
    """The settings with their intervals, and how they differ from the baseline."""
    lines = study.lines
    known = [line.difference for line in lines if line.difference is not None]
    reach = max((abs(v) for d in known for v in (d.mean, d.low, d.high) if v is not None), default=0.0)
    rows = [_leaderboard_row(setting, study, reach * 1.05 or 1.0) for setting in study.settings]
    named = _heading(study) if study.axes else ("method",)
    compared = ("n", "top-1 %", "95 % interval", "difference", "its 95 % interval", "", "p")
    headings = (*named, *compared, "epochs", "trained", "shared")
    what = "Test (the data set's val images)" if any(line.held for line in lines) else "Validation"
    caption = (
        f"{what} top-1 after the last epoch of the last generation: mean over n seeds. Differences are to "
        "the baseline, paired by seed; p is of a two-sided sign-flip test. Epochs are of each run; trained "
        "and shared are summed over seeds."
    )
    counts = {run.val_images for run in study.runs if run.val_images}
    if len(counts) == 1:
        (count,) = counts
        noun = "val" if any(line.held for line in lines) else "validation"
        caption += f" {count:,} {noun} images: one is {100 / count:.2g} points."
    words = len(study.axes) or 1
    tables = [Table(caption, headings, tuple(rows), text=words)]
    if others := other_top1(lines):
        caption = ". ".join(
            ["Validation top-1 of other epochs than the last, with 95 % intervals", *meanings(lines)]
        )
        rows = []
        for i, setting in enumerate(study.settings):
            tops = (_with_interval(top1s[i], setting.line) for top1s in others.values())
            rows.append(TableRow((*_names(setting, study), str(setting.line.runs), *tops), setting.family))
        headings = (*named, "seeds", *(f"{heading} %" for heading in others))
        tables.append(Table(f"{caption}.", headings, tuple(rows), text=words))
    return Section("leaderboard", "Leaderboard", tuple(tables))


def compute_section(study: Study, target: Calls) -> Section:
    """Accuracy over what it has cost, and what no other setting beats at its cost."""
    title = "Accuracy and compute"
    points, corners = of.over_compute(study)
    if not points:
        why = "No run has finished whose data set is there, by which images are counted."
        return Section("compute", title, (Missing(why, _go_on(study, target)),))
    tops = [(one.line.cost, one.line.top1) for one in study.settings]
    finished = [(cost, top1.mean) for cost, top1 in tops if cost is not None and top1 is not None]
    best = dict(zip(finished, on_frontier(finished), strict=True))
    rows = []
    for setting, cells, (cost, top1) in zip(study.settings, compute(study.lines), tops, strict=True):
        kept = "" if cost is None or top1 is None else "●" * best[cost, top1.mean]
        said = (*_names(setting, study), *cells, number(top1.mean if top1 else None), kept)
        rows.append(TableRow(said, setting.family))
    caption = (
        "Last top-1 over the passes of a run: means over seeds with their 95 % intervals from three on; "
        "points of as many passes stand beside each other. The line is the Pareto frontier: settings that "
        "none beats which takes no more passes."
    )
    if len(points) < len(finished):
        caption += f" The {len(points)} best of {len(finished)} settings are drawn; all: see the table."
    costs = [one.x[0] for one in points]
    # With room for those that are moved aside.
    low, high = around(costs, 0.28) if min(costs) < max(costs) else (0.0, 2 * costs[0])
    corners = [*corners, (high, corners[-1][1])]
    axes = Axes("passes over images, of a run", "top-1 %", whole=True, x_range=(max(low, 0), high))
    figure = _figure(points, axes, title, caption, dots=True, height=330, swarm=True, frontier=corners)
    headings = (*(_heading(study) if study.axes else ("method",)), *COMPUTE, "top-1 %", "frontier")
    table = Table(f"Compute {COMPUTE_MEANING}.", headings, tuple(rows), text=len(study.axes) or 1)
    return Section("compute", title, (figure, table))


def _with_interval(top1: Estimate | None, line: Line) -> str:
    """A mean with its interval, and n where that is less than the setting's seeds."""
    if top1 is None:
        return "–"
    said = [*([] if top1.low is None else [span(top1)]), *([] if top1.n == line.runs else [f"n = {top1.n}"])]
    return number(top1.mean) + (f" ({', '.join(said)})" if said else "")


def _heading(study: Study) -> tuple[str, ...]:
    last = [axis.rpartition(".")[2] for axis in study.axes]
    named = (w if last.count(w) == 1 else a for w, a in zip(last, study.axes, strict=True))
    return tuple(name.replace("_", " ") for name in named)  # so that it may break into lines


def _leaderboard_row(setting: SettingFacts, study: Study, reach: float) -> TableRow:
    """reach: of the scale from -reach to reach that differences are drawn on, in points."""
    line = setting.line
    *compared, p = standing(line)
    if line.is_baseline and study.baseline:
        compared[3] = "baseline"
    bar = _bar(setting, reach)
    epochs = (f"{count:,}" for count in (line.epochs, line.epochs_trained, line.epochs_shared))
    return TableRow((*_names(setting, study), *compared, bar, p, *epochs), setting.family)


def _bar(setting: SettingFacts, reach: float) -> str:
    """Its difference on a scale from -reach to reach, in points."""
    found = setting.line.difference
    if found is None:
        return ""
    return interval_bar(found.mean, found.low, found.high, (-reach, reach), setting.family)


def _names(setting: SettingFacts, study: Study) -> list[str]:
    """The setting's labels, the first with the colour of its method."""
    labels = [setting.line.setting.get(axis, "–") for axis in study.axes] or [setting.name]
    return [_key(setting, labels[0]), *labels[1:]]


def _key(setting: SettingFacts, said: str) -> str:
    """Words with the colour of a method before them."""
    return Markup('<span class="key c{}"></span>{}').format(setting.family % 7, said)


def first_section(study: Study, target: Calls) -> Section:
    """Beside the answer: accuracy over epochs, with the phases of each setting, and how the best end."""
    title = "Accuracy over training"
    found = of.curves(study, of.accuracy)
    if not found:
        missing = Missing("No epoch has been evaluated yet.", _go_on(study, target))
        return Section("accuracy", title, (missing,))
    shown = of.drawn(study)
    ribbons = [
        Ribbon(one.name, one.family, tuple(of.stretches(one))) for one in shown[:RIBBONS] if of.stretches(one)
    ]
    phases = [one for ribbon in ribbons for one in ribbon.stretches]
    climbs = any(phase.ascends for phase in phases)
    key = "; hatched: an ascent of the loss or its control, shaded in the chart too" * climbs
    key += "; bars: weights are edited" * any(phase.edits for phase in phases)
    caption = (
        f"Validation top-1 after each epoch{_over_seeds(found, 'band')}. "
        f"Strips: the phases of each setting, darker and lighter by generation{key}."
    )
    if len(shown) < len(study.settings):
        base = ", the baseline among them" * bool(study.baseline)
        caption += (
            f" The {len(shown)} best of {len(study.settings)} settings are drawn{base}; all: see Leaderboard."
        )
    axes = Axes("epochs trained", "top-1 %", whole=True, x_range=(0, max(one.x[-1] for one in found)))
    for one in shown:
        if one.stopped is not None:
            which = f"{study.settings[one.stopped].name} with {one.line.epochs:,} epochs"
            caption += f" Level line: where {one.name} ended, which is {which}."
    figure = _figure(
        found, axes, "Validation accuracy over epochs", caption, ribbons, width=FIRST_WIDTH, height=300
    )
    return Section("accuracy", title, (figure, _short_table(study)))


def _short_table(study: Study) -> Table:
    """How the best settings end, and the baseline, beside those that stop sooner; of many the best first."""
    shown = of.drawn(study, SHORT)
    if len(shown) < len(study.settings):
        shown = tuple(sorted(shown, key=of.mean_top1, reverse=True))
    known = [one.line.difference for one in shown if one.line.difference is not None]
    reach = max((abs(v) for d in known for v in (d.mean, d.low, d.high) if v is not None), default=0.0)
    rows = []
    for setting in shown:
        line = setting.line
        n, top1, within, difference, its, p = standing(line)
        if line.is_baseline and study.baseline:
            difference = "baseline"
        bar = _bar(setting, reach * 1.05 or 1.0)
        within, its = (f" ({said})" if said != "–" else "" for said in (within, its))
        cells = (_key(setting, setting.name), f"{line.epochs:,}", n, top1 + within, difference + its, bar, p)
        rows.append(TableRow(cells, setting.family))
    caption = (
        "Validation top-1 after the last epoch, mean over n seeds with 95 % intervals; differences are "
        "paired by seed, p is of a two-sided sign-flip test."
    )
    if len(shown) < len(study.settings):
        caption += f" The {len(shown)} best of {len(study.settings)} settings; all: see Leaderboard."
    headings = ("", "epochs", "n", "top-1 %", "difference to the baseline", "", "p")
    return Table(caption, headings, tuple(rows))


def _figure(
    found: Sequence[Curve],
    axes: Axes,
    label: str,
    caption: str,
    ribbons: Sequence[Ribbon] = (),
    *,
    dots: bool = False,
    height: float = 340,
    width: float = WIDE,
    swarm: bool = False,
    frontier: Sequence[tuple[float, float]] = (),
) -> Figure:
    low, high = around(v for one in found for v in (*one.low, *one.high))
    axes = replace(axes, y_range=(max(low, -2.0), min(high, 102.0)))  # intervals may reach beyond 0 and 100
    least = LABEL * len(found) + 72  # so that the name of each curve has a line
    said = f"{label}. {'; '.join(f'{one.name} ends at {number(one.y[-1])}' for one in found)}"
    wide, narrow = (
        line_chart(
            found,
            axes,
            said,
            width=across,
            height=tall,
            ribbons=ribbons,
            dots=dots,
            swarm=swarm,
            frontier=frontier,
        )
        for across, tall in ((width, max(height, least)), (NARROW, max(260, least)))
    )
    return Figure(caption, wide, narrow)


def _over_seeds(found: Sequence[Curve], what: str) -> str:
    """How many seeds a mean is over, and how their range is drawn where that leaves something to be seen."""
    most = max(one.n for one in found)
    left = "; what not all seeds of a setting have reached, and seeds given up, are left out"
    left *= any(one.partial for one in found)
    if most == 1:
        return f", one seed{left}"
    drawn = f", {what} from the least to the greatest" if len(found) <= MOST_RANGES else ""
    return f": mean over up to {most} seeds{drawn}{left}"


def _go_on(study: Study, target: Calls) -> str:
    if study.kind == "sweep" and target.path.is_file():
        return target.command("sweep", "{}")
    first = next((run for run in study.runs if run.job is not None), None)
    return target.command("train", str(first.folder / "job.yaml"), storage=False) if first else ""


def memorisation_section(study: Study, target: Calls) -> Section:
    """How much of wrong labels was memorised, epoch by epoch; nothing where there is no label noise."""
    title = "Memorisation"
    found = of.curves(study, of.memorised_points)
    if not found:
        return Section("memorisation", title, ())
    caption = (
        "Of the training images whose labels are wrong, the share whose wrong label the network predicted, "
        f"as it saw them in training{_over_seeds(found, 'band')}. Networks learn the right labels first and "
        "memorise the wrong ones later, which lowers the accuracy on images they have not seen (Liu et al., "
        "Early-Learning Regularization, NeurIPS 2020, arXiv 2007.00151, where this share is defined)."
    )
    axes = Axes("epochs trained", "wrong labels memorised %", whole=True)
    figure = _figure(found, axes, "Wrong labels memorised over epochs", caption, height=300)
    rows = []
    for setting, line in zip(study.settings, memorised(study), strict=False):
        rows.append(TableRow((_key(setting, setting.name), *standing(line)), setting.family))
    headings = ("", "n", "memorised %", "95 % interval", "difference", "its 95 % interval", "p")
    caption = "Wrong labels memorised in the last epoch; differences are to the baseline, paired by seed."
    return Section(
        "memorisation", title, (figure, *([Table(caption, headings, tuple(rows))] if rows else []))
    )


def generations_section(study: Study, target: Calls) -> Section:
    """The last accuracy of each generation, and the forgetting frequency where lengths vary."""
    found = of.curves(study, of.generation_points)
    found = [one for one in found if len(one.x) > 1] or found
    if not found:
        missing = Missing("No run has finished a generation yet.", _go_on(study, target))
        return Section("generations", "Generations", (missing,))
    last = max(one.x[-1] for one in found)
    ticks = tuple((float(g), str(g)) for g in range(0, int(last) + 1, max(1, round(last / 20))))
    axes = Axes("generation", "top-1 %", ticks=ticks, x_range=(-0.15, last + 0.15))
    caption = (
        "Validation top-1 at the end of each generation, when everything has been "
        f"relearned{_over_seeds(found, 'bars')}."
    )
    figure = _figure(found, axes, "Last top-1 of each generation", caption, dots=True, height=270)
    return Section("generations", "Generations", (figure,))


def frequency_section(study: Study, target: Calls) -> Section:
    """Accuracy over the forgetting frequency."""
    title = "Forgetting frequency"
    found = of.frequency(study)
    if not found:
        lengths = {one.job.recipe.budget.length for one in study.settings if one.job is not None}
        why = (
            f"All generations are {min(lengths)} epochs long, so there is no frequency to compare."
            if len(lengths) == 1
            else "No settings have finished yet that differ in the length of a generation at equal epochs."
        )
        missing = Missing(why, "seal-ray sweep jobs/sweeps/forgetting-frequency.yaml")
        return Section("frequency", title, (missing,))
    xs = sorted({x for one in found for x in one.x})
    margin = (xs[-1] - xs[0]) * 0.04
    axes = Axes(
        "forgetting frequency (generations an epoch)",
        "top-1 %",
        ticks=tuple((x, f"1/{round(1 / x)}") for x in xs),
        x_range=(xs[0] - margin, xs[-1] + margin),
    )
    caption = (
        "Last top-1 over how often something is forgotten: the shorter a generation, the further right. "
        "Means over seeds with their 95 % intervals from three on; lines join equal epochs."
    )
    return Section("frequency", title, (_figure(found, axes, title, caption, dots=True, height=290),))


def tree_section(study: Study, target: Calls) -> Section:
    """Which generations were the same work, and what that saved."""
    title = "What was shared"
    if not study.run_keys:
        why = "No run has recorded its generations; a launch of its run does."
        return Section("tree", title, (Missing(why, _go_on(study, target)),))
    by_run = {run.id: (one, run) for one in study.settings for run in one.runs}
    drawn = {one.run_id: by_run[one.run_id] for one in study.run_keys}
    named = {run_id: (setting.name, run.result.seed) for run_id, (setting, run) in drawn.items()}
    trees = [
        (tree, f"seed{'s' * (len(some) > 1)} {', '.join(map(str, some))}")
        for tree, some in shapes(branchings(study.run_keys), named)
    ]
    shown = trees
    while len(shown) > 1 and sum(len(tree.runs) for tree, _ in shown) > TREES:
        shown = shown[:-1]
    counts = [(r.epochs, r.epochs_trained, r.epochs_shared) for r in (run.result for run in study.runs)]
    asked, trained, shared = map(sum, zip(*counts, strict=True))
    said = f"Of {asked:,} epochs {trained:,} were trained, and {shared:,} taken over from another run."
    label = f"Generation tree. {said}"
    runs = Named(
        {run: name for run, (name, _) in named.items()},
        {run: setting.family for run, (setting, _) in drawn.items()},
        {one.run_id: one.length for one in study.run_keys},
    )
    wide, narrow = (tree_chart(shown, runs, label, width=width) for width in (WIDE, NARROW))
    caption = (
        "From left to right, a knot at each end of a generation. Where runs are the same work they are one "
        "thick line; they part where the first of them forgets something."
    )
    if len(shown) < len(trees):
        caption += f" {len(shown)} of {len(trees)} trees are drawn."
    return Section("tree", title, (Figure(caption, wide, narrow),), (said,))


def speed_section(study: Study, target: Calls) -> Section:
    """Where the time went, by setting."""
    rows = []
    for setting in study.settings:
        own = [row for run in setting.runs for row in run.own_rows]
        if own:
            keys = ("images_per_second", "seconds_data", "seconds_compute", "seconds_eval")
            speed, *seconds = (sum(row[key] for row in own) / len(own) for key in keys)
            split = [number(value) for value in seconds]
            bar = share_bar(dict(zip(("data", "compute", "evaluation"), seconds, strict=True)))
            cells = (setting.name, f"{speed:,.0f}", *split, bar, f"{len(own):,}")
            rows.append(TableRow(cells, setting.family))
    if not rows:
        missing = Missing("No epoch has been trained yet.", _go_on(study, target))
        return Section("speed", "Time and speed", (missing,))
    caption = (
        "Means over the epochs that the setting's runs trained themselves: images a second while training; "
        "seconds of an epoch that went into waiting for images, computing, and evaluation; the bar: all "
        "three, in this order."
    )
    headings = ("setting", "images/s", "data s", "compute s", "evaluation s", "split", "epochs")
    return Section("speed", "Time and speed", (Table(caption, headings, tuple(rows)),))
