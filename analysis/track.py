"""Analyses in Weights & Biases: a run of its own beside each training run, in the same group; in TensorBoard.

The files under `<run>/analysis/` are the truth; what W&B does not take is said once and costs nothing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from seal_ray.analysis.moments import AnalysedRun, Moment
from seal_ray.analysis.tasks import RESULTS, read_result
from seal_ray.errors import SealRayWarning
from seal_ray.recipe import ANALYSES
from seal_ray.storage.paths import AnyPath, listed, on_this_host
from seal_ray.tracking.environment import mode_now
from seal_ray.tracking.tensorboard import EVENTS, write_events
from seal_ray.tracking.wandb import config_of, data_name, init_run, sent_in_time, tags_of

PLAIN = ("init", "relearned")
"""Moments whose scalars have no prefix; those of others would zigzag between them."""


def track(
    analysed: Sequence[tuple[AnalysedRun, Sequence[tuple[Moment, str]]]],
    figures: Sequence[AnyPath],
    job_type: str = "analysis",
) -> None:
    """Send the results of each run, given by moment and analysis, and the figures of all.

    Where TensorBoard is asked for, an event file of all results of a run is written before.
    One SealRayWarning when W&B fails, or does not end in time; the rest is left out then.
    """
    for run, _ in analysed:
        if run.job.placement.tracking.tensorboard:
            _write_events(run)
    for run, results in analysed:
        mode = mode_now(run.job.placement.tracking)
        if mode == "off":
            continue
        send = partial(_send, run, results, figures, job_type, mode)
        if not sent_in_time(send, mode, f"the analyses of {run.run_id}", run.folder / RESULTS):
            return


def _send(
    run: AnalysedRun,
    results: Sequence[tuple[Moment, str]],
    figures: Sequence[AnyPath],
    job_type: str,
    mode: str,
) -> None:
    import wandb

    tracking, recipe = run.job.placement.tracking, run.job.recipe
    logged = init_run(
        tracking,
        run.folder / RESULTS,
        mode,
        id=f"{run.run_id}-{job_type}",
        name=f"{run.run_id}-{job_type}",
        group=run.job.name,
        job_type=job_type,
        tags=tags_of(recipe, data_name(run.job)),
        config={"parent": run.run_id, **config_of(run.job)},
    )
    logged.define_metric("global_epoch")
    logged.define_metric("*", step_metric="global_epoch")
    for row in _rows(results, media=True):
        logged.log(row)
    drawn = {
        path.stem: Image.open(io.BytesIO(path.read_bytes())) for path in figures if path.suffix == ".png"
    }
    logged.log({f"figures/{name}": wandb.Image(picture) for name, picture in drawn.items()})
    logged.finish()


def _rows(results: Sequence[tuple[Moment, str]], *, media: bool) -> Iterator[dict[str, Any]]:
    """A row for each moment, in order; media: with tables and histograms, which W&B alone takes."""
    for moment in sorted({moment for moment, _ in results}, key=lambda moment: moment.place):
        row: dict[str, Any] = {}
        for what in (what for analysed, what in results if analysed == moment):
            held = read_result(moment, what)
            if held is not None:
                row["global_epoch"] = held["epochs"] - 1  # the last epoch before it; -1: none
                row |= {name: value for name, value in scalars_in(what, held).items() if value is not None}
                if media and what in ANALYSES:
                    row |= ANALYSES[what]().media(moment, held["result"])
        if row:
            prefix = "" if moment.name in PLAIN else f"{moment.name}/"
            axis = row.pop("global_epoch")
            whole = {f"{prefix}{name}": value for name, value in row.items()}
            yield {"global_epoch": axis, "generation": moment.generation, **whole}


def _write_events(run: AnalysedRun) -> None:
    """Put all results of a run into an event file, in the place of the one before."""
    found = []
    for moment in run.moments():
        end = f"-{moment.label}.json"
        paths = listed(run.folder, f"{RESULTS}/*{end}")
        found += [(moment, path.name.removesuffix(end)) for path in paths]
    rows = ((row["global_epoch"], row) for row in _rows(found, media=False))
    try:
        write_events(on_this_host(run.folder) / EVENTS / RESULTS, rows)
    except OSError as error:
        text = f"TensorBoard did not get the analyses of {run.run_id} ({error}); see {run.folder / RESULTS}"
        warnings.warn(text, SealRayWarning, stacklevel=3)


def scalars_in(what: str, held: Mapping[str, Any]) -> Mapping[str, float | None]:
    """The numbers of a result as it was written: those of a plugin's analysis are in the file."""
    return held["scalars"] if "scalars" in held else scalars(what, held["result"])


def scalars(what: str, result: Mapping[str, Any]) -> Mapping[str, float | None]:
    """The numbers of a result that are drawn over epochs, by name."""
    kind, _, evaluated = what.partition("-")
    if not evaluated:
        return ANALYSES[what]().scalars(result)
    label = result["target"]["label"]
    if kind == "fewshot":
        return {f"{kind}/{label}/{shots}_shots": found["top1"] for shots, found in result["shots"].items()}
    return {f"{kind}/{label}": result["top1"]}
