"""Example images as data: URIs: the deepest and shallowest of a moment, and what was forgotten most often."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from seal_ray.analysis.inputs import Data
from seal_ray.analysis.moments import trained_on
from seal_ray.analysis.tasks import read_arrays
from seal_ray.data.dataset import Pixels
from seal_ray.errors import SealRayError
from seal_ray.recipe import Job
from seal_ray.reports.blocks import Picture
from seal_ray.reports.study import MomentFacts

GRID_PICTURES = 8
"""Images of a grid."""
SIDE = 64
"""Pixels that an image is shrunk to at most, either way."""


def by_depth(one: MomentFacts, end: str) -> list[Picture]:
    """The `deepest` or `shallowest` validation images of a moment; none where the arrays are damaged."""
    listed = one.results["depth"]["result"]["listed"]["val"]
    try:
        pixels = read_arrays(one.moment, "depth")["val_listed_pixels"]
    except (SealRayError, KeyError):
        return []
    before = 0 if end == "deepest" else len(listed["deepest"])
    some = pixels[before : before + min(GRID_PICTURES, len(listed[end]))]
    return [
        _picture(image, f"depth {example['depth']}", example["label"], example["prediction"])
        for image, example in zip(some, listed[end], strict=False)
    ]


def _picture(image: Pixels, said: str, label: str, prediction: str) -> Picture:
    wrong = label != prediction
    named = f"{label} → {prediction}" if wrong else label
    taken = f", taken for {prediction}" if wrong else ""
    return Picture(data_uri(image), (said, named), f"{label}, {said}{taken}", wrong)


def most_forgotten(one: MomentFacts, job: Job) -> Iterator[Picture]:
    """The validation images that a run forgot most often by a moment, of those that it forgot at all.

    SealRayError when the images are not where they were.
    """
    forgetting = one.results["calibration"]["result"]["forgetting"]
    listed = [found for found in forgetting["most_forgotten"] if found["events"] > 0][:GRID_PICTURES]
    dataset = trained_on(one.moment.run, job)
    loader = Data.open(dataset, job.recipe).loaders["val"]
    indices = np.asarray([found["index"] for found in listed], dtype=np.int64)
    images = [image.numpy() for batch in loader.batches(indices) for image in batch]
    for image, found in zip(images, listed, strict=True):
        name = dataset.classes[int(loader.labels[found["index"]])].words.split(",")[0]
        times = "once" if found["events"] == 1 else f"{found['events']} times"
        yield Picture(data_uri(image), (times, name), f"{name}, forgotten {times}", wrong=False)


def data_uri(image: Pixels) -> str:
    """An image (H, W, 3) as a PNG in a URI, at most SIDE pixels either way."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
