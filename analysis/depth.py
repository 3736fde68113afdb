"""Prediction depth: from which place in the network on k-NN probes agree with its prediction.

Source: Baldock, Maennel and Neyshabur, NeurIPS 2021, arXiv 2106.09647, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from seal_ray.analysis.base import Analysis, Result, Seed, analysis
from seal_ray.analysis.features import Features, extract, probes
from seal_ray.analysis.neighbours import nearest, vote
from seal_ray.config.messages import STRICT
from seal_ray.data.dataset import Labels
from seal_ray.data.images import SPLITS
from seal_ray.errors import ConfigError, DataError
from seal_ray.streams import stream
from seal_ray.tracking.workspace import Panel, PanelSection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from seal_ray.analysis.figures import MomentResults
    from seal_ray.analysis.inputs import Data, Inputs
    from seal_ray.analysis.moments import Moment

DOMINANT, FEWEST = 50.0, 0.1
"""With more images (%) than the first at one depth a histogram is drawn on a log axis from the second on."""


class DepthSettings(BaseModel):
    """See `measure_depth`."""

    model_config = STRICT

    k: int = Field(default=30, ge=1, description="neighbours that vote")
    support_size: int = Field(default=1_000, ge=1, description="training images that are neighbours")
    points: int | None = Field(
        default=500, ge=1, description="images of each split that are measured; null: all"
    )
    max_features: int = Field(default=2048, ge=1, description="numbers an embedding is pooled to at most")
    exclude_self: bool = Field(default=True, description="a training image is no neighbour of itself")
    listed: int = Field(default=16, ge=1, description="deepest and shallowest images that are listed")
    seed: Seed = 0


@analysis
class Depth(Analysis):
    """From which place in the network on k-NN probes agree with its prediction, of images of both splits
    (Baldock, Maennel and Neyshabur, NeurIPS 2021, arXiv 2106.09647).
    """

    name = "depth"
    Settings = DepthSettings
    paper = DepthSettings(support_size=10_000, points=None)
    section = PanelSection(
        "Prediction depth",
        (
            Panel("Mean depth, validation", ("depth/val_mean",), unit="probes"),
            Panel("Mean depth, training images", ("depth/train_mean",), unit="probes"),
            Panel("Right and wrong", ("depth/val_mean_correct", "depth/val_mean_wrong"), unit="probes"),
            Panel("After each ascent", ("ascended/depth/val_mean",), unit="probes"),
            Panel("Figures", ("figures/depth-histogram", "figures/depth-mean"), "pictures"),
            Panel("Deepest and shallowest images", ("depth/examples",), "table"),
        ),
    )

    def compute(self, inputs: Inputs, settings: DepthSettings) -> Result:
        """Depths of each image, their means and histograms, and the images at either end."""
        data, asked = inputs.data, settings.model_dump(exclude={"listed"})
        depths = measure_depth(
            inputs.network(), data.examples("train"), data.examples("val"), device=inputs.device, **asked
        )
        found = {"train": depths.train, "val": depths.val}
        indices = {"train": data.used[depths.train.indices.numpy()], "val": depths.val.indices.numpy()}
        ends = {split: _ends(found[split], indices[split], data, settings.listed) for split in SPLITS}
        numbers = {
            **depths.summary(),
            "listed": {
                split: {end: [asdict(example) for example in some] for end, some in both.items()}
                for split, both in ends.items()
            },
        }
        arrays: dict[str, Any] = {}
        for split, points in found.items():
            arrays |= {
                f"{split}_indices": indices[split],
                f"{split}_depths": points.depths.numpy().astype(np.int16),
                f"{split}_predictions": points.predictions.numpy().astype(np.int32),
                f"{split}_labels": points.labels.numpy().astype(np.int32),
                f"{split}_probe_predictions": points.probe_predictions.numpy().astype(np.int32),
            }
        chosen = torch.tensor([example.index for end in ends["val"].values() for example in end])
        arrays["val_listed_pixels"] = shown = data.pixels("val", chosen).numpy()
        from seal_ray.analysis.figures import picture

        return Result(numbers, arrays, picture(ends["val"], shown, len(depths.probes)))

    def scalars(self, result: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Mean depths: of all images, and of those predicted rightly and wrongly."""
        return {
            f"depth/{split}_mean" + ("" if group == "all" else f"_{group}"): result[split][group]["mean"]
            for split in SPLITS
            for group in ("all", "correct", "wrong")
        }

    def media(self, moment: Moment, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """A histogram of each split, and a table of the listed images."""
        import wandb

        from seal_ray.analysis.tasks import read_arrays

        shown: dict[str, Any] = {}
        for split in SPLITS:
            counts = np.asarray(result[split]["all"]["histogram"])
            edges = np.arange(len(counts) + 1) - 0.5
            shown[f"depth/{split}_histogram"] = wandb.Histogram(np_histogram=(counts, edges))
        columns = ["end", "image", "index", "depth", "label", "prediction"]
        table = wandb.Table(columns=columns)
        pixels = iter(read_arrays(moment, self.name)["val_listed_pixels"])
        for end, examples in result["listed"]["val"].items():
            for one in examples:
                table.add_data(end, wandb.Image(next(pixels)), *(one[name] for name in columns[2:]))
        return shown | {"depth/examples": table}

    def figures(self, found: Sequence[MomentResults]) -> Mapping[str, Figure]:
        """Histograms at the last ends of generations, and means over epochs."""
        from seal_ray.analysis.figures import has_ends, plot_depths, plot_mean_depth

        if not has_ends(found):
            return {}
        return {"depth-histogram": plot_depths(found), "depth-mean": plot_mean_depth(found)}


@dataclass(frozen=True)
class Example:
    """An image of a split, by its index there, with its prediction depth and what it was taken for."""

    index: int
    depth: int
    label: str
    prediction: str


def _ends(points: Points, indices: Labels, data: Data, count: int) -> dict[str, list[Example]]:
    """The `count` deepest and shallowest points of a split, by (depth, index)."""

    def example(i: int) -> Example:
        return Example(
            index=int(indices[i]),
            depth=int(points.depths[i]),
            label=data.class_name(int(points.labels[i])),
            prediction=data.class_name(int(points.predictions[i])),
        )

    order = {
        "deepest": points.depths.argsort(stable=True, descending=True),
        "shallowest": points.depths.argsort(stable=True),
    }
    return {end: [example(int(i)) for i in some[:count]] for end, some in order.items()}


@dataclass(frozen=True, eq=False)
class Examples:
    """Images of one split as the network sees them, with their labels.

    labels: int64 (N,); of training images those that were trained on, wrong ones included.
    batches: the normalised images (B, C, H, W) at ascending indices, batch by batch.
    """

    labels: Tensor
    batches: Callable[[Tensor], Iterator[Tensor]]

    @classmethod
    def from_tensors(cls, images: Tensor, labels: Tensor, *, batch_size: int = 256) -> Examples:
        """Normalised images (N, C, H, W) in memory."""
        return cls(labels, lambda indices: (images[some] for some in indices.split(batch_size)))


@dataclass(frozen=True, eq=False)
class Points:
    """What was measured of N examples of a split. All int64 on the CPU.

    indices: (N,), which examples of the split. depths: (N,), 0 to the number of probes P.
    probe_predictions: (P, N). predictions: (N,), the network's. labels: (N,).
    """

    indices: Tensor
    depths: Tensor
    probe_predictions: Tensor
    predictions: Tensor
    labels: Tensor

    def summary(self) -> dict[str, Any]:
        """Of all points, and of those predicted rightly and wrongly apart: how many, mean, histogram.

        histogram[d] is the number of points of depth d, for d from 0 to P. mean is None without points.
        """
        correct = self.predictions == self.labels
        groups = {"all": torch.ones_like(correct), "correct": correct, "wrong": ~correct}
        return {name: self._summary(self.depths[chosen]) for name, chosen in groups.items()}

    def _summary(self, depths: Tensor) -> dict[str, Any]:
        return {
            "count": len(depths),
            "mean": depths.double().mean().item() if len(depths) else None,
            "histogram": torch.bincount(depths, minlength=len(self.probe_predictions) + 1).tolist(),
        }


@dataclass(frozen=True, eq=False)
class Depths:
    """Prediction depths of training and validation points, and all that determined them."""

    probes: tuple[str, ...]
    train: Points
    val: Points
    k: int
    max_features: int
    shapes: dict[str, tuple[int, ...]]  # of each probe's embedding after pooling
    support_size: int
    exclude_self: bool
    seed: int

    def summary(self) -> dict[str, Any]:
        """The settings and both splits' summaries, as JSON holds them."""
        return {
            "probes": list(self.probes),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "k": self.k,
            "max_features": self.max_features,
            "support_size": self.support_size,
            "exclude_self": self.exclude_self,
            "seed": self.seed,
            "train": self.train.summary(),
            "val": self.val.summary(),
        }


def measure_depth(
    network: nn.Module,
    train: Examples,
    val: Examples,
    *,
    k: int = 30,
    support_size: int = 10_000,
    points: int | None = None,
    max_features: int = 2048,
    exclude_self: bool = True,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Depths:
    """Prediction depths under `network`, which is on `device`, of train and val points.

    The support is a class-balanced subset of `support_size` training examples (all, if there are fewer).
    Measured are the support's own points, each left out of its neighbours when exclude_self, and the
    val examples; with `points` a class-balanced subset of that many of either (all, if fewer). layers: the
    probes in depth order, by default `probes(network)`; see `extract`.
    Raises ConfigError when the support offers fewer than k neighbours, and as `extract` does; DataError for
    labels that the network has no output for and for embeddings that are not finite.
    """
    names = tuple(layers) if layers is not None else probes(network)
    support = balanced_subset(train.labels, min(support_size, len(train.labels)), seed)
    offered = len(support) - exclude_self
    if not 1 <= k <= offered:
        raise ConfigError(
            f"k: {k} neighbours, but a support of {len(support)} training images offers {offered} "
            f"(exclude_self={exclude_self}); raise support_size or lower k"
        )
    labels = train.labels[support]
    of_support, of_val = (
        balanced_subset(truth, len(truth) if points is None else min(points, len(truth)), seed)
        for truth in (labels, val.labels)
    )
    known, new = (
        _embed(network, names, split, indices, max_features, device)
        for split, indices in ((train, support), (val, of_val))
    )
    classes = known.logits.shape[1]
    if (greatest := int(labels.max())) >= classes:
        raise DataError(f"label {greatest} among the training images, but the network has {classes} outputs")

    def ask(features: Features, rows: Tensor, exclude: Tensor | None) -> Tensor:
        votes = []
        for name in names:
            queries, embedded = features.layers[name][rows], known.layers[name]
            neighbours = nearest(queries, embedded, k, exclude=exclude, ordered=False, device=device)
            votes.append(vote(labels[neighbours], classes))
        return torch.stack(votes)

    asked = ask(known, of_support, of_support if exclude_self else None)
    return Depths(
        probes=names,
        train=_points(support[of_support], labels[of_support], known.logits[of_support], asked),
        val=_points(of_val, val.labels[of_val], new.logits, ask(new, torch.arange(len(of_val)), None)),
        k=k,
        max_features=max_features,
        shapes=known.shapes,
        support_size=len(support),
        exclude_self=exclude_self,
        seed=seed,
    )


def prediction_depth(probe_predictions: Tensor, network_predictions: Tensor) -> Tensor:
    """The smallest l such that probes l, l + 1, ..., last all give the network's prediction, int64 (N,).

    0 where all agree, P where the last one disagrees. probe_predictions: (P, N); network_predictions: (N,).
    """
    disagree = probe_predictions != network_predictions
    following = torch.arange(1, len(probe_predictions) + 1, device=disagree.device)
    return (disagree * following[:, None]).amax(dim=0)


def balanced_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Ascending indices of `size` examples, as evenly spread over the classes as these allow.

    Drawn from the seed alone. A smaller subset is part of a larger one. Raises ConfigError when there are
    fewer than `size` examples.
    """
    if size > len(labels):
        raise ConfigError(f"a subset of {size} was asked for, but there are only {len(labels)} examples")
    shuffled = torch.randperm(len(labels), generator=stream(seed, "balanced_subset"))
    by_class = labels[shuffled].sort(stable=True)
    starts = torch.searchsorted(by_class.values, by_class.values)
    # An example's turn: how many of its class were drawn before it. Then every class's first, second, ...
    turn = torch.empty_like(shuffled)
    turn[by_class.indices] = torch.arange(len(labels)) - starts
    return shuffled[turn.sort(stable=True).indices[:size]].sort().values


def _points(indices: Tensor, labels: Tensor, logits: Tensor, probe_predictions: Tensor) -> Points:
    predictions = logits.argmax(dim=1)
    return Points(
        indices=indices,
        depths=prediction_depth(probe_predictions, predictions),
        probe_predictions=probe_predictions,
        predictions=predictions,
        labels=labels,
    )


def _embed(
    network: nn.Module,
    layers: Sequence[str],
    split: Examples,
    indices: Tensor,
    max_features: int,
    device: torch.device | str,
) -> Features:
    features = extract(network, split.batches(indices), layers, max_features=max_features, device=device)
    for name, embedded in features.layers.items():
        if not embedded.isfinite().all():
            raise DataError(f"the embeddings at {name!r} are not all finite; the network has diverged")
    return features
