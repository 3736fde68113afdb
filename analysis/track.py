"""Analyses in Weights & Biases: a run of its own beside each training run, in the same group.

The files under `<run>/analysis/` are the truth; what W&B does not take is said once and costs nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from seal_ray.analysis.moments import Moment, Subject
from seal_ray.analysis.results import FOLDER, read_arrays, read_result
from seal_ray.storage.paths import AnyPath
from seal_ray.tracking.wandb import data_name, init_run, sent_in_time, tags_of, wandb_mode

PLAIN = ("init", "relearned")
"""Moments whose scalars have no prefix; those of others would zigzag between them."""


def track(
    analysed: Sequence[tuple[Subject, Sequence[tuple[Moment, str]]]],
    figures: Sequence[AnyPath],
    job_type: str = "analysis",
) -> None:
    """Send the results of each run, given by moment and analysis, and the figures of all.

    One SealRayWarning when W&B fails, or needs longer than PATIENCE for a run; the rest is left out then.
    """
    for subject, results in analysed:
        if wandb_mode(subject.job.placement.tracking.wandb) == "off":
            continue
        send = partial(_send, subject, results, figures, job_type)
        if not sent_in_time(send, f"the analyses of {subject.run_id}", subject.folder / FOLDER):
            return


def _send(
    subject: Subject, results: Sequence[tuple[Moment, str]], figures: Sequence[AnyPath], job_type: str
) -> None:
    import wandb

    tracking, recipe = subject.job.placement.tracking, subject.job.recipe
    run = init_run(
        tracking,
        subject.folder / FOLDER,
        wandb_mode(tracking.wandb),
        id=f"{subject.run_id}-{job_type}",
        name=f"{subject.run_id}-{job_type}",
        group=subject.job.name,
        job_type=job_type,
        tags=tags_of(recipe, data_name(subject.job)),
        config={"parent": subject.run_id, **recipe.model_dump(mode="json")},
    )
    run.define_metric("global_epoch")
    run.define_metric("*", step_metric="global_epoch")
    for moment in sorted({moment for moment, _ in results}, key=lambda moment: moment.place):
        row: dict[str, Any] = {}
        for what in (what for analysed, what in results if analysed == moment):
            held = read_result(moment, what)
            if held is not None:
                row["global_epoch"] = held["epochs"] - 1  # the last epoch before it; -1: none
                row |= {name: value for name, value in scalars(what, held["result"]) if value is not None}
                row |= _pictures(wandb, moment, what, held)
        if row:
            prefix = "" if moment.name in PLAIN else f"{moment.name}/"
            axis = row.pop("global_epoch")
            named = {f"{prefix}{name}": value for name, value in row.items()}
            run.log({"global_epoch": axis, "generation": moment.generation, **named})
    drawn = {
        path.stem: Image.open(io.BytesIO(path.read_bytes())) for path in figures if path.suffix == ".png"
    }
    run.log({f"figures/{name}": wandb.Image(picture) for name, picture in drawn.items()})
    run.finish()


def scalars(what: str, result: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers of a result that are drawn over epochs, by name."""
    if what == "depth":
        for split in ("train", "val"):
            for group in ("all", "correct", "wrong"):
                name = f"depth/{split}_mean" + ("" if group == "all" else f"_{group}")
                yield name, result[split][group]["mean"]
    elif what == "curvature":
        for part, found in result["parts"].items():
            name = "curvature" if part == "all" else f"curvature/{part}"
            yield f"{name}/top", found["largest"][0]["value"]
            yield f"{name}/bottom", found["smallest"][0]["value"]
            yield f"{name}/trace", found["trace"]["value"]
            mass = found["negative_mass"].get("resolved") or {}  # results of before have neither
            yield f"{name}/negative_mass", mass.get("value")
            yield f"{name}/negative_mass_low", mass.get("low")
            yield f"{name}/negative_mass_high", mass.get("high")
            yield f"{name}/negative_mass_threshold", mass.get("relative")
            yield f"{name}/sharpness", found["sharpness"]["value"]
            yield f"{name}/gradient_overlap", found["gradient_overlap"]
            if "ascent_within_top" in found:
                yield f"{name}/ascent_within_top", found["ascent_within_top"]["share"]
    elif what == "similarity":
        for stage, moved in result.get("movement", {}).items():
            yield f"movement/{stage}_distance", moved["distance"]
            yield f"movement/{stage}_cosine", moved["cosine"]
        for role, stages in result["cka"].items():
            yield from ((f"cka_{role}/{stage}", value) for stage, value in stages.items())
        yield from ((f"weight_norm/{stage}", norm) for stage, norm in result["weight_norms"].items())
        yield "barrier", result.get("barrier", {}).get("height")
    elif what.startswith(("transfer-", "finetune-")):
        yield f"{what.partition('-')[0]}/{result['target']['label']}", result["top1"]
    elif what.startswith("fewshot-"):
        for shots, found in result["shots"].items():
            yield f"fewshot/{result['target']['label']}/{shots}_shots", found["top1"]
    else:
        yield from ((f"calibration/{name}", result[name]) for name in ("ece", "nll", "top1", "confidence"))
        forgotten = result.get("forgetting", {})
        named = ("mean_events", "never_learned", "unforgettable")
        yield from ((f"forgetting/{name}", forgotten.get(name)) for name in named)


def _pictures(wandb: Any, moment: Moment, what: str, held: Mapping[str, Any]) -> dict[str, Any]:
    """Histograms, tables and images of a result."""
    if what == "depth":
        arrays = read_arrays(moment, what)
        shown: dict[str, Any] = {}
        for split in ("train", "val"):
            counts = np.asarray(held["result"][split]["all"]["histogram"])
            edges = np.arange(len(counts) + 1) - 0.5
            shown[f"depth/{split}_histogram"] = wandb.Histogram(np_histogram=(counts, edges))
        columns = ["end", "image", "index", "depth", "label", "prediction"]
        table = wandb.Table(columns=columns)
        pixels = iter(arrays["val_listed_pixels"])
        for end, examples in held["result"]["listed"]["val"].items():
            for one in examples:
                values = [one[name] for name in columns[2:]]
                table.add_data(end, wandb.Image(next(pixels)), *values)
        return shown | {"depth/examples": table}
    if what == "curvature":
        arrays = read_arrays(moment, what)
        shown = {}
        for part in held["result"]["parts"]:
            grid, density = arrays[f"{part}_grid"], arrays[f"{part}_values"]
            rows = [[float(x), float(y)] for x, y in zip(grid, density, strict=True)]
            table = wandb.Table(columns=["eigenvalue", "density"], data=rows)
            shown[f"curvature/{part}_density"] = wandb.plot.line(
                table, "eigenvalue", "density", title=f"Spectral density, {part}, {moment.label}"
            )
        return shown
    return {}
