"""What the W&B workspace shows, as data: sections of panels of metrics, named as in this folder's README.md.

It knows nothing of W&B, so that what is shown can be checked against what is logged; `workspace` translates.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "area", "bars", "table", "pictures"]
"""Lines and stacked areas over an axis; bars of a last or best value; a logged table; logged images."""

PRODUCT = "seal-ray"


@dataclass(frozen=True)
class Panel:
    """Some metrics in one frame.

    metrics: names; one with a <placeholder> stands for every name that fits. unit: of the values.
    summary: which value of a run bars show, of a metric that has several: "last" or "max".
    """

    title: str
    metrics: tuple[str, ...]
    kind: Kind = "lines"
    unit: str = ""
    axis: str = "global_epoch"
    summary: str = ""


@dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = False


@dataclass(frozen=True)
class View:
    """A saved view of a project.

    group: the W&B group whose runs it shows; None: all. grouped_by: what runs of one line have in common:
    "group", or fields of the recipe. The lines of a panel are means over the runs of a group.
    """

    name: str
    sections: tuple[Section, ...]
    grouped_by: tuple[str, ...]
    group: str | None = None

    @property
    def key(self) -> str:
        """What the view is found by when it is saved again: the same for the same name, 11 digits."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:11]


SETTING = ("method.name", "budget.generation_length")
"""Fields of the recipe that tell the lines of a sweep apart: runs that differ by seed are one line."""


def project_view() -> View:
    """All runs of a project; a line for each sweep, method and generation length."""
    return View(PRODUCT, SECTIONS, ("group", *SETTING))


def sweep_view(name: str) -> View:
    """The runs of one sweep and their analyses; a line for each method and generation length."""
    return View(f"{PRODUCT}: {name}", SECTIONS, SETTING, group=name)


def pattern(metric: str) -> str:
    """The regular expression of a metric's name: <any> is a piece without a slash, [part] may be left out."""
    pieces = re.split(r"(<[^>]*>|\[|\])", metric)
    meaning = {"[": "(?:", "]": ")?"}
    return "".join("[^/]+" if piece[:1] == "<" else meaning.get(piece, re.escape(piece)) for piece in pieces)


SECTIONS = (
    Section(
        "Leaderboard and accuracy",
        (
            Panel("Leaderboard of each sweep", ("leaderboard",), "table"),
            Panel("Top-1 after the last epoch", ("val_top1",), "bars", "%", summary="last"),
            Panel("Top-1 of the best epoch", ("val_top1",), "bars", "%", summary="max"),
            Panel("Top-1, and at each generation's end", ("val_top1", "generation_top1"), unit="%"),
            Panel("Validation loss", ("val_loss",), unit="nats"),
            Panel("Generation: its steps are the borders", ("generation",)),
        ),
        is_open=True,
    ),
    Section(
        "Phases and learning rates",
        (
            Panel("Learning rate, early part: below 0 it climbs the loss", ("lr_early",)),
            Panel("Learning rate, late part: below 0 it climbs the loss", ("lr_late",)),
            Panel("Loss, as trained and of validation", ("train_loss", "val_loss"), unit="nats"),
            Panel("Top-1, as trained and of validation", ("train_top1", "val_top1"), unit="%"),
            Panel("Gradient norm of each part", ("grad_norm_early", "grad_norm_late")),
            Panel("Weight norm of each part", ("weight_norm_early", "weight_norm_late")),
        ),
        is_open=True,
    ),
    Section(
        "Generations",
        (
            Panel("Last top-1 of each generation", ("generation_top1",), unit="%", axis="generation"),
            Panel("Loss barrier to the generation before", ("barrier",), unit="nats", axis="generation"),
        ),
        is_open=True,
    ),
    Section(
        "Prediction depth",
        (
            Panel("Mean depth, validation", ("depth/val_mean",), unit="probes"),
            Panel("Mean depth, training images", ("depth/train_mean",), unit="probes"),
            Panel("Right and wrong", ("depth/val_mean_correct", "depth/val_mean_wrong"), unit="probes"),
            Panel("After each ascent", ("ascended/depth/val_mean",), unit="probes"),
            Panel("Figures", ("figures/depth-histogram", "figures/depth-mean"), "pictures"),
            Panel("Deepest and shallowest images", ("depth/examples",), "table"),
        ),
    ),
    Section(
        "Curvature",
        (
            Panel("Largest eigenvalue", ("curvature/top",)),
            Panel("Smallest eigenvalue", ("curvature/bottom",)),
            Panel("Trace", ("curvature/trace",)),
            Panel("Negative mass", ("curvature/negative_mass",), unit="share"),
            Panel("Gradient within the top space", ("curvature/gradient_overlap",), unit="share"),
            Panel("Ascent within the top space", ("ascended/curvature/ascent_within_top",), unit="share"),
            Panel("Figures", ("figures/spectral-density", "figures/curvature"), "pictures"),
        ),
    ),
    Section(
        "Similarity, calibration, forgetting",
        (
            Panel("CKA with the moment before", ("cka_before/<stage>",)),
            Panel("CKA with the baseline", ("cka_baseline/<stage>",)),
            Panel("Distance moved", ("movement/<stage>_distance",)),
            Panel("Calibration error", ("calibration/ece",), unit="share"),
            Panel("Forgetting events of an image", ("forgetting/mean_events",)),
            Panel("Never learned; never forgotten", ("forgetting/never_learned", "forgetting/unforgettable")),
        ),
    ),
    Section(
        "Transfer and few-shot",
        (
            Panel("Linear probes and fine-tuning", ("transfer/<target>", "finetune/<target>"), unit="%"),
            Panel("Few-shot episodes", ("fewshot/<target>/<n>_shots",), unit="%"),
            Panel("Linear probes: settings compared", ("transfer_leaderboard",), "table"),
            Panel("Fine-tuning: settings compared", ("finetune_leaderboard",), "table"),
            Panel("Few-shot: settings compared", ("fewshot_leaderboard",), "table"),
        ),
    ),
    Section(
        "Throughput and time",
        (
            Panel("Training images a second", ("images_per_second",)),
            Panel("Seconds of an epoch", ("seconds_data", "seconds_compute", "seconds_eval"), "area", "s"),
            Panel("Workers", ("workers",)),
        ),
    ),
)
"""The sections of every view, from top to bottom."""
