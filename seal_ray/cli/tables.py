"""Tables and bars for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from seal_ray.tracking.table import Column, FittedTable

if TYPE_CHECKING:
    from seal_ray.data.sources import SourceInfo
    from seal_ray.distributed.launch import Planned
    from seal_ray.sweeps.plan import PlannedPhase, RunPlan, SweepPlan
    from seal_ray.sweeps.results import SweepRuns


def runs_table(runs: Sequence[dict[str, Any]], title: str) -> RenderableType:
    """The runs of a storage folder: position, accuracy, and the loss before and after each ascent."""
    if not runs:
        return Text(f"{title}: no runs")
    rows = [
        (
            run["id"],
            f"{run['epochs_done']}/{run['epochs']}",
            f"queued ({run['reason']})" if run["status"] == "queued" else run["status"],
            _percent(run["top1"]),
            _percent(run["best_top1"]),
            ", ".join(map(_rise, run["ascents"])) or "-",
            f"{run['images_per_second']:,.0f}" if run["images_per_second"] else "-",
        )
        for run in runs
    ]
    columns = (
        Column("run"),
        Column("epochs", right=True),
        Column("status", folds_to=14),
        Column("top1 %", right=True),
        Column("best", right=True, leaves=2),
        Column("val loss before -> after each ascent", folds_to=13, leaves=3),
        Column("images/s", right=True, leaves=1),
    )
    return FittedTable(title, columns, rows)


UNKNOWN = (
    "runs      what they are called, and what of them is trained already, is unknown until it is prepared"
)
"""What a plan on assumed data cannot say."""


def plan_table(plan: RunPlan, planned: Planned) -> list[RenderableType]:
    """A plan: its phases as a table, then its totals."""
    from seal_ray.data.assumed import assumption
    from seal_ray.sweeps.plan import cores_for
    from seal_ray.training.memory import bytes_needed

    assumed, storage = assumption(planned.dataset), planned.store.folder
    title = f"{planned.job.name} (assumed data)" if assumed else plan.run_id
    placement = planned.job.placement
    state = f"{plan.status}, {plan.done} of {plan.epochs} epochs done"
    left_out = plan.used - plan.images // plan.epochs
    totals = [
        f"total     {plan.epochs:,} epochs, {plan.steps:,} steps, {plan.images:,} images",
        f"network   {plan.parameters:,} parameters",
        *(
            f"{name:<9} {100 * part.parameters / plan.parameters:.1f} % of them: {', '.join(part.stages)}"
            for name, part in (("early", plan.early), ("late", plan.late))
        ),
        *([f"begins    with {plan.begins_with}"] if plan.begins_with else []),
        f"keeps     {size(plan.kept_bytes)} ({size(plan.checkpoint_bytes)} a checkpoint) "
        f"in {storage.parent if assumed else storage}",
        f"workers   {placement.workers} for {planned.job.recipe.shards} shards; {cores_for(planned)}",
    ]
    if left_out:
        whole = f"{left_out:,} of {plan.used:,} images in each epoch, others each time: batches are whole"
        totals.insert(1, f"left out  {whole}")
    if placement.gpus_per_worker < 1:
        pixels, classes = planned.dataset.size, len(planned.dataset.classes)
        needed = size(bytes_needed(planned.job.recipe, classes, (pixels, pixels)))
        totals.append(f"gpu       {placement.gpus_per_worker:g} of one; about {needed} of it, and the images")
    if plan.caution:
        totals.append(f"warning   {plan.caution}")
    if assumed:
        totals += [f"data      {assumed}", UNKNOWN]
    else:
        goes_on = f"; would go on with epoch {plan.done + 1}" if 0 < plan.done < plan.epochs else ""
        totals.append(f"state     {'new' if plan.status == 'new' else state}{goes_on}")
    return [_phase_table(title, plan.phases), Text("\n".join(totals))]


def _phase_table(title: str, phases: Sequence[PlannedPhase]) -> FittedTable:
    columns = (
        *(Column("gen"), Column("phase"), Column("epochs"), Column("edit", folds_to=14)),
        *(Column("lr early"), Column("lr late"), Column("steps", leaves=2)),
        Column("sum of ascent rates", leaves=1),
    )
    rows = [
        (
            label,
            phase.phase,
            _span(phase.first_epoch, phase.first_epoch + phase.epochs - 1),
            phase.edit or "-",
            _rates(phase.lr_early),
            _rates(phase.lr_late),
            f"{phase.steps:,}",
            _rates(phase.ascent or "-", digits=3),
        )
        for label, phase in _merged(phases)
    ]
    return FittedTable(title, columns, rows)


PHASES = 12
"""Kinds of phases that the plan of a sweep shows at most."""


def sweep_plan_table(plan: SweepPlan, runs: SweepRuns) -> list[RenderableType]:
    """A sweep's plan: its runs as a table, the generation tree, phases, then its totals."""
    from seal_ray.data.assumed import assumption
    from seal_ray.sweeps.plan import cautions
    from seal_ray.sweeps.progress import clock

    assumed = [assumption(one.dataset) for one in runs.planned]
    rows = []
    for run, unknown in zip(plan.runs, assumed, strict=True):
        name, status = ("-", "-") if unknown else (run.run_id, run.status)
        rows.append((name, run.setting, str(run.seed), f"{run.epochs:,}", f"{run.trains:,}", status))
    columns = (
        *(Column("run"), Column("setting", folds_to=14), Column("seed", right=True)),
        *(Column("epochs", right=True), Column("trains", right=True), Column("status")),
    )
    table = FittedTable(runs.sweep.name, columns, rows)
    placement = runs.planned[0].job.placement
    needed = f"{placement.workers} worker{'s' * (placement.max_workers > 1)} a run"
    fits = f"{plan.at_once} run{'s' * (plan.at_once > 1)} at once on this machine's {plan.cores} cores"
    if placement.min_workers > plan.cores:
        fits = f"more than this machine's {plan.cores} cores: needs a cluster"
    hours = "unknown: give --measure, or --images-per-second" if plan.seconds is None else clock(plan.seconds)
    search = runs.search
    warned = [f"{', '.join(names) or 'all'}: {caution}" for _, caution, names in plan.phases if caution]
    if runs.corners:
        warned = [*cautions(runs.planned, runs.corners)]
    totals = [
        *([f"search    {runs.sweep.size}; {search.summary()}"] if search else []),
        f"epochs    {plan.asked:,} asked for, {plan.shared:,} after sharing"
        + ("" if any(assumed) else f", {plan.left:,} left to train"),
        f"images    {plan.images:,}" + ("" if any(assumed) else " left to train on"),
        f"keeps     {size(plan.bytes)} in {runs.planned[0].store.folder.parent}",
        f"workers   {needed}; {fits}",
        f"time      {hours}",
        *(f"warning   {text}" for text in warned),
        *(f"data      {one}" for one in dict.fromkeys(assumed) if one),
        *([UNKNOWN] if any(assumed) else []),
    ]
    phases = [_phase_table(", ".join(names) or "all", some) for some, _, names in plan.phases[:PHASES]]
    left = sum(len(names) for _, _, names in plan.phases[PHASES:])
    more = [Text(f"and other phases of {left} more settings\n")] if left else []
    return [table, Text("\n".join(plan.tree) + "\n"), *phases, *more, Text("\n".join(totals))]


def sources_table(
    sources: Sequence[SourceInfo], prepared: Mapping[str, Sequence[Path]], code: Mapping[str, str]
) -> RenderableType:
    """Data sets that can be prepared, each with its terms under it, and the file of its code if not ours."""
    lines = []
    for one in sources:
        images = f"{one.train:,} train, {one.val:,} val" if one.train is not None else ""
        counts = ", ".join(filter(None, [f"{one.classes} classes" if one.classes else "", images]))
        places = ", ".join(map(str, prepared.get(one.name, ())))
        lines += [
            f"{one.name}" + (f"  ({counts})" if counts else "") + (f"  prepared: {places}" if places else ""),
            f"    needs  {', '.join(one.needs) or 'nothing'}",
            *([f"    from   {one.address}"] if one.address else []),
            *([f"    terms  {one.licence_note}"] if one.licence_note else []),
            *([f"    code   {code[one.name]}"] if one.name in code else []),
        ]
    return Text("\n".join(lines))


def jobs_table(jobs: Sequence[dict[str, Any]], title: str) -> RenderableType:
    """The jobs of a cluster: what each runs, how it stands, and what it said last."""
    if not jobs:
        return Text(f"{title}: no jobs")
    columns = (
        *(Column("id"), Column("kind"), Column("file", folds_to=14, leaves=3), Column("status")),
        *(Column("started", leaves=1), Column("last", folds_to=24, leaves=2)),
    )
    return FittedTable(title, columns, [[job[one.heading] or "-" for one in columns] for job in jobs])


@contextmanager
def data_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of preparing data, on a terminal; elsewhere nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield show


def _merged(phases: Sequence[PlannedPhase]) -> list[tuple[str, PlannedPhase]]:
    """Phases with their generations, those of equal later generations in one row."""
    groups: dict[tuple[Any, ...], list[PlannedPhase]] = {}
    for phase in phases:
        rates = (phase.lr_early, phase.lr_late)
        key = (phase.phase, phase.first_epoch, phase.epochs, phase.edit, rates, phase.generation == 0)
        groups.setdefault(key, []).append(phase)
    return [(_span(group[0].generation, group[-1].generation), group[0]) for group in groups.values()]


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _rates(rates: tuple[float, float] | str, digits: int = 4) -> str:
    if isinstance(rates, str):
        return rates
    first, last = rates
    return f"{first:.{digits}g}" if first == last else f"{first:.{digits}g} .. {last:.{digits}g}"


def _rise(ascent: dict[str, float | None]) -> str:
    after = ascent["loss_after"]
    return f"{ascent['loss_before']:.2f} -> {'...' if after is None else f'{after:.2f}'}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def size(count: float) -> str:
    """Bytes, in a unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
