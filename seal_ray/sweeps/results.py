"""What a sweep has come to, read from its run folders, and the files that say so.

`<storage>/sweeps/<name>/` holds results.csv, results.json and results.md.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seal_ray.data.beton import BetonFile
from seal_ray.data.prepared import Dataset, open_dataset
from seal_ray.data.subset import steps_per_epoch, training_split
from seal_ray.distributed.launch import Planned, prepare_job
from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job, Recipe
from seal_ray.runs.folder import SWEEPS, Store
from seal_ray.runs.summary import averaged_top1, generation_ends, held_top1, summarise
from seal_ray.runs.weights import weights_digest
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath, ObjectPath
from seal_ray.sweeps.file import Setting, Sweep, SweepRun
from seal_ray.sweeps.leaderboard import Line, RunResult, headings, leaderboard, to_csv, to_json, to_markdown
from seal_ray.sweeps.search import SearchRuns
from seal_ray.tracking.wandb import tags_of, track_tables


@dataclass(frozen=True)
class Member:
    """A run of a sweep or of a page, whether it has begun or not."""

    folder: AnyPath
    seed: int
    epochs: int  # the budget
    setting: Setting


@dataclass(frozen=True)
class SweepRuns:
    """A sweep whose data is there: its runs in order, each with its setting; of a search those so far.

    corners: of a search, a run at each combination of choices and ends that was checked.
    """

    sweep: Sweep
    planned: tuple[Planned, ...]
    search: SearchRuns | None = None
    corners: tuple[Planned, ...] = ()

    def latest(self) -> SweepRuns:
        """The same by the results so far."""
        return self if self.search is None else _advanced(self, self.search)

    def anew(self, *, tries: bool = False) -> SweepRuns:
        """The same by results that are all read again. tries: see `SearchRuns`."""
        return self if self.search is None else _advanced(self, self.search.anew(tries=tries))

    @functools.cached_property
    def settings(self) -> dict[str, Setting]:
        """The setting of each run, by its id."""
        return {one.run_id: run.setting for one, run in zip(self.planned, self.sweep.runs, strict=True)}

    @functools.cached_property
    def names(self) -> dict[str, tuple[str, int]]:
        """A short name of the setting of each run, with its seed, by its id.

        The labels of the axes that tell more settings apart than those before them.
        """
        settings, axes, told = self.settings, list[str](), 1
        for axis in self.sweep.runs[0].setting:
            if (now := len({tuple(s[a] for a in (*axes, axis)) for s in settings.values()})) > told:
                axes, told = [*axes, axis], now
        seeds = {one.run_id: one.job.recipe.seed for one in self.planned}
        return {run: (" ".join(s[axis] for axis in axes), seeds[run]) for run, s in settings.items()}

    @property
    def folder(self) -> AnyPath:
        """Where the results go."""
        return self.planned[0].store.folder.parent / SWEEPS / self.sweep.name


def prepare_sweep(sweep: Sweep, open_data: Callable[[str], Dataset] = open_dataset) -> SweepRuns:
    """Open the data of all runs. ConfigError when two settings are the same run; DataError as prepare_job."""
    digest = functools.cache(weights_digest)  # so that initial weights are read once

    def prepare(run: SweepRun) -> Planned:
        return prepare_job(_tracked_as_setting(run), digest, open_data)

    if sweep.space is not None:
        runs = _advanced(SweepRuns(sweep, ()), SearchRuns(sweep.space, prepare))
        if isinstance(runs.folder, ObjectPath):  # where each run costs a request
            return runs
        return replace(runs, corners=tuple(map(prepare, sweep.space.corners)))
    planned = tuple(map(prepare, sweep.runs))
    owners: dict[str, Setting] = {}
    for one, run in zip(planned, sweep.runs, strict=True):
        if one.run_id in owners:
            raise ConfigError(
                f"{sweep.name}: {dict(owners[one.run_id])} and {dict(run.setting)} are the same run "
                f"{one.run_id}; leave one out with `exclude`"
            )
        owners[one.run_id] = run.setting
    return SweepRuns(sweep, planned)


def _advanced(before: SweepRuns, search: SearchRuns) -> SweepRuns:
    search.advance()
    runs, planned = zip(*search.runs.values(), strict=True)
    return replace(before, sweep=replace(before.sweep, runs=runs), planned=planned, search=search)


def _tracked_as_setting(run: SweepRun) -> Job:
    """The run's job, its setting told to W&B, whose views draw a line for each."""
    words = zip(headings([*run.setting]), run.setting.values(), strict=True)
    setting = " ".join(f"{axis}={label}" for axis, label in words) or None
    placement = run.job.placement
    tracking = placement.tracking.model_copy(update={"setting": placement.tracking.setting or setting})
    return run.job.model_copy(update={"placement": placement.model_copy(update={"tracking": tracking})})


def results(runs: SweepRuns) -> list[RunResult]:
    """How each run stands."""
    found = [_result_of(one, runs.settings[one.run_id]) for one in runs.planned]
    if runs.search is None:
        return found
    left, why = runs.search.given_up(), "another seed of its setting failed, diverged or was stopped"
    return [replace(one, status="pruned", reason=why) if one.run_id in left else one for one in found]


def images_per_epoch(dataset: Dataset, recipe: Recipe) -> int:
    """Images that an epoch trains on: whole batches. DataError where their file is not there."""
    train = dataset.splits["train"]
    data = recipe.data
    used = _used(dataset.folder / train.file, train.sha256, data.per_class, data.holdout)
    return steps_per_epoch(used, recipe.batch_size) * recipe.batch_size


@functools.lru_cache(maxsize=64)
def _used(file: Path, sha256: str, per_class: int | None, holdout: float) -> int:
    """Images in use of a .beton file, whose labels are read once. sha256: which file it is."""
    return len(training_split(BetonFile.open(file).labels, per_class, holdout)[0])


def passes_of(recipe: Recipe, epochs: int) -> int:
    """The passes over each image in the first `epochs` of a run, added up."""
    phases = (
        phase
        for generation in range(recipe.budget.generations)
        for phase in recipe.method.phases(generation, recipe.budget)
    )
    each = itertools.chain.from_iterable([phase.passes(recipe.loss)] * phase.epochs for phase in phases)
    return sum(itertools.islice(each, epochs))


def seconds_of(rows: Sequence[Row]) -> float:
    """Seconds of epochs, as whoever trained them has measured: loading, computing, evaluation."""
    return math.fsum(row["seconds_data"] + row["seconds_compute"] + row["seconds_eval"] for row in rows)


def _result_of(planned: Planned, setting: Setting) -> RunResult:
    recipe = planned.job.recipe
    member = Member(planned.store.folder, recipe.seed, recipe.budget.epochs, setting)
    return run_result(member, planned.job, images_per_epoch(planned.dataset, recipe))[0]


def run_result(member: Member, job: Job | None, images: int) -> tuple[RunResult, tuple[Row, ...]]:
    """How a run stands, and its rows, of which a damaged one has none.

    job: None where it cannot be read; images: in an epoch, 0 where that is not known.
    """
    run_id, begun = member.folder.name, (member.folder / "job.yaml").exists()
    found: dict[str, Any] = summarise(member.folder, job) if begun else {"status": "new"}
    whole = begun and job is not None and found["status"] != "damaged"
    rows: tuple[Row, ...] = ()
    if whole:
        with contextlib.suppress(CheckpointError):  # damaged since
            rows = tuple(Store(member.folder, run_id).rows())
    own = sum(row["trained_by"] == run_id for row in rows)
    finished = found["status"] == "finished"
    result = RunResult(
        run_id=run_id,
        setting=member.setting,
        seed=member.seed,
        status=found["status"],
        reason=found.get("reason", ""),
        top1=found["top1"] if finished else None,
        best_top1=found.get("best_top1"),
        epochs=member.epochs,
        epochs_trained=own,
        epochs_shared=len(rows) - own,
        images=images * len(rows),
        generation_top1=generation_ends(rows, job.recipe.budget.length) if job else (),
        passes=images * passes_of(job.recipe, len(rows)) if job else 0,
        seconds=seconds_of(rows),
        held_top1=held_top1(rows),
        averaged_top1=averaged_top1(rows) if rows and finished else None,
    )
    return result, rows


def write_results(runs: SweepRuns) -> tuple[tuple[Line, ...], list[RunResult]]:
    """Compute the leaderboard and write it beside the runs; returns it with the runs it is made of."""
    found = results(runs)
    lines = leaderboard(found, runs.sweep.baseline, runs.sweep.after_generations)
    said = runs.search.summary() if runs.search else ""
    text = json.dumps(to_json(runs.sweep.name, lines, found, runs.sweep.baseline, said), indent=1) + "\n"
    table = to_markdown(lines) + (said and f"\n{said}\n")
    contents = {"results.json": text, "results.csv": to_csv(lines), "results.md": table}
    with saving(runs.folder):
        for name, content in contents.items():
            write_durably(runs.folder / name, content.encode())
    return lines, found


def track_results(runs: SweepRuns, tables: Mapping[str, Sequence[Line]]) -> None:
    """Send tables, by name, to W&B into the sweep's run; its id stays as seeds and methods are added."""
    first = runs.planned[0]
    tracked = f"sweep-{runs.sweep.name}-{first.run_id}"
    tags = {tag for one in runs.planned for tag in tags_of(one.job.recipe, one.dataset.name)}
    texts = {table: to_csv(lines) for table, lines in tables.items()}
    tracking = first.job.placement.tracking
    track_tables(runs.sweep.name, tracked, tracking, runs.folder, texts, sorted(tags))


def totals(found: Sequence[RunResult]) -> str:
    """Epochs asked for, trained and shared, in words."""
    asked = sum(result.epochs for result in found)
    trained = sum(result.epochs_trained for result in found)
    shared = sum(result.epochs_shared for result in found)
    return f"{asked:,} epochs asked for, {trained:,} trained, {shared:,} shared"


def problems(found: Sequence[RunResult]) -> Iterator[RunResult]:
    """The runs that did not end as they should: neither finished nor stopped early on purpose."""
    return (result for result in found if result.status not in ("finished", "pruned"))
