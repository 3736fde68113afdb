"""Pictures of single images: the deepest and the shallowest of a moment."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from seal_ray.data.dataset import Pixels

COLUMNS = 8
WRONG = "#B3400B"
"""The colour of a wrong prediction, `label→prediction`."""


@dataclass(frozen=True)
class Example:
    """An image of a split, by its index there, with its prediction depth and what it was taken for."""

    index: int
    depth: int
    label: str
    prediction: str


def picture(ends: Mapping[str, Sequence[Example]], pixels: Pixels, greatest: int) -> bytes:
    """A PNG: a block of rows for each of `ends`, under each image its depth and label.

    pixels: (N, H, W, 3) uint8, of the examples of all ends in turn. greatest: the largest depth there is.
    """
    rows = [
        (end, list(some[i : i + COLUMNS])) for end, some in ends.items() for i in range(0, len(some), COLUMNS)
    ]
    size = pixels.shape[1]
    across, down = size * 1.08, size * 1.45  # of a cell, in pixels
    figure = Figure(figsize=(1.05 * COLUMNS + 0.3, 1.4 * len(rows) + 0.4))
    axis = figure.add_axes((0.04, 0.0, 0.95, 1 - 0.35 / figure.get_figheight()))
    axis.set(xlim=(0, across * COLUMNS), ylim=(down * len(rows), 0), xticks=[], yticks=[])
    axis.axis("off")
    shown = iter(pixels)
    for i, (end, examples) in enumerate(rows):
        top = i * down
        axis.text(-0.08 * size, top + size / 2, end, rotation=90, ha="right", va="center", fontsize=9)
        for j, example in enumerate(examples):
            left = j * across
            axis.imshow(next(shown), extent=(left, left + size, top + size, top), interpolation="nearest")
            right = example.label == example.prediction
            named = (
                _short(example.label) if right else f"{_short(example.label)}→{_short(example.prediction)}"
            )
            said = f"depth {example.depth}\n{named}"
            colour = "black" if right else WRONG
            axis.text(
                left + size / 2, top + 1.04 * size, said, ha="center", va="top", fontsize=7.5, color=colour
            )
    axis.set(xlim=(0, across * COLUMNS), ylim=(down * len(rows), 0), aspect="auto")
    figure.suptitle(f"Prediction depth, 0 to {greatest}: validation images at either end", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"
