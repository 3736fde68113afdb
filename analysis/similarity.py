"""How alike representations are, and how far weights have moved between two states of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import BaseModel, Field
from torch import Tensor, nn

from seal_ray.analysis.base import Analysis, Result, Seed, analysis
from seal_ray.analysis.depth import balanced_subset
from seal_ray.config.messages import STRICT
from seal_ray.errors import ConfigError
from seal_ray.networks import stage_parameters
from seal_ray.runs.checkpoint import State
from seal_ray.tracking.workspace import Panel, PanelSection

if TYPE_CHECKING:
    from seal_ray.analysis.inputs import Inputs
    from seal_ray.analysis.moments import AnalysedRun, Moment


class SimilaritySettings(BaseModel):
    """How many images movement, CKA and loss barriers are measured on."""

    model_config = STRICT

    images: int = Field(default=500, ge=2, description="validation images of the CKA")
    max_features: int = Field(default=2048, ge=1, description="numbers an embedding is pooled to at most")
    barrier_images: int = Field(default=500, ge=1, description="training images of the loss barrier")
    barrier_points: int = Field(default=11, ge=3, description="places on the line, its ends included")
    seed: Seed = 0


@analysis
class Similarity(Analysis):
    """How far weights moved, how alike representations are (CKA: Kornblith et al., ICML 2019, arXiv
    1905.00414), and the loss barrier between generations (Frankle et al., ICML 2020, arXiv 1912.05671).

    Compared with the moment before, the end of the generation before, and the same moment of the baseline.
    """

    name = "similarity"
    Settings = SimilaritySettings
    paper = SimilaritySettings(images=5_000, barrier_images=5_000, barrier_points=21)
    section = PanelSection(
        "Similarity",
        (
            Panel("CKA with the moment before", ("cka_before/<stage>",)),
            Panel("CKA with the baseline", ("cka_baseline/<stage>",)),
            Panel("Distance moved", ("movement/<stage>_distance",)),
            Panel("Loss barrier to the generation before", ("barrier",), unit="nats", axis="generation"),
        ),
    )

    def compared_with(self, moment: Moment, run: AnalysedRun) -> Mapping[str, Moment]:
        """`before`, `generation` (the previous `relearned`) and `baseline`, as far as they were kept."""
        others = {}
        earlier = [other for other in run.moments() if other.place < moment.place]
        if earlier:
            others["before"] = earlier[-1]
        if moment.name == "relearned":
            ends = [other for other in earlier if other.name == "relearned"]
            if ends and ends[-1].generation == moment.generation - 1:
                others["generation"] = ends[-1]
        if run.baseline is not None:
            same = replace(moment, run=run.baseline)
            if (same.path / "manifest.json").exists():
                others["baseline"] = same
        return others

    def compute(self, inputs: Inputs, settings: SimilaritySettings) -> Result:
        """Movement and norms of each stage, CKA of each stage, and the barrier."""
        data, network, weights, others = inputs.data, inputs.network(), inputs.weights, inputs.others
        size = min(settings.images, len(data.val_labels))
        indices = balanced_subset(data.val_labels, size, settings.seed)
        numbers: dict[str, Any] = {
            "weight_norms": weight_norms(network, weights),
            "cka_images": size,
            "cka": {},
        }
        if "before" in others:
            moved = movement(network, others["before"].weights(), weights)
            numbers["movement"] = {stage: asdict(one) for stage, one in moved.items()}

        def features(moment: Moment, state: State) -> dict[str, Tensor]:
            return inputs.cache.stage_features(moment.run, state, indices, settings.max_features).layers

        own = features(inputs.moment, weights)
        for role in ("before", "baseline"):
            if role in others:
                theirs = features(others[role], others[role].weights())
                numbers["cka"][role] = {stage: linear_cka(own[stage], theirs[stage]) for stage in own}
        if "generation" in others:
            batches, labels = data.training_subset(settings.barrier_images, settings.seed)
            loss, start = _line_loss(network, batches, labels, inputs.device), others["generation"].weights()
            numbers["barrier"] = asdict(loss_barrier(loss, start, weights, points=settings.barrier_points))
        return Result(numbers)

    def scalars(self, result: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Movement, CKA and norm of each stage, and the height of the barrier."""
        named: dict[str, float | None] = {}
        for stage, moved in result.get("movement", {}).items():
            named[f"movement/{stage}_distance"] = moved["distance"]
            named[f"movement/{stage}_cosine"] = moved["cosine"]
        for role, alike in result["cka"].items():
            named |= {f"cka_{role}/{stage}": value for stage, value in alike.items()}
        named |= {f"weight_norm/{stage}": norm for stage, norm in result["weight_norms"].items()}
        return {**named, "barrier": result.get("barrier", {}).get("height")}


def _line_loss(
    network: nn.Module, batches: Iterable[Tensor], labels: Tensor, device: torch.device
) -> Callable[[State], float]:
    """Mean cross entropy (nats) of a state on fixed images, its running statistics estimated anew on them."""
    moved, truth = [batch.to(device) for batch in batches], labels.to(device)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    @torch.inference_mode()
    def loss(state: State) -> float:
        network.load_state_dict(state)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches
            norm.train()  # and nothing else, that nothing is dropped
        for batch in moved if norms else ():
            network(batch)
        network.eval()
        return float(F.cross_entropy(torch.cat([network(batch) for batch in moved]).double(), truth))

    return loss


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two embeddings of the same images; nan when one is constant.

    ||Y' X||_F^2 / (||X' X||_F ||Y' Y||_F) of centred columns, in float64, in [0, 1]: the normalised HSIC of
    linear kernels. x: (N, F); y: (N, G). Source: Kornblith et al., ICML 2019, arXiv 1905.00414, section 3.
    """
    if len(x) != len(y):
        raise ConfigError(f"CKA compares embeddings of the same images, not of {len(x)} and {len(y)}")
    x, y = _centred(x), _centred(y)
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / own)


def _centred(x: Tensor) -> Tensor:
    # Relative to the first row first, so that a constant column becomes exactly 0.
    x = x.double() - x[:1].double()
    return x - x.mean(dim=0)


@dataclass(frozen=True)
class Movement:
    """How the parameters of a stage, as one vector, differ between two states."""

    distance: float  # Euclidean
    relative: float  # distance over the norm before; inf from 0
    cosine: float  # between the vectors before and after; nan when one is 0
    norm_before: float
    norm_after: float


def movement(
    network: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Movement]:
    """The movement of each stage of `network` from `before` to `after`, in depth order.

    Parameters only, in float64: running statistics are not weights.
    """
    old, new = _vectors(network, before), _vectors(network, after)
    return {stage: _movement(old[stage], new[stage]) for stage in old}


def _movement(before: Tensor, after: Tensor) -> Movement:
    distance, old, new = (float(torch.linalg.vector_norm(v)) for v in (after - before, before, after))
    return Movement(
        distance=distance,
        relative=distance / old if old else math.inf,
        cosine=float(before @ after) / (old * new) if old and new else math.nan,
        norm_before=old,
        norm_after=new,
    )


def weight_norms(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each stage's parameters, in depth order."""
    return {stage: float(torch.linalg.vector_norm(v)) for stage, v in _vectors(network, state).items()}


def _vectors(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each stage's parameters as one float64 vector."""
    return {
        stage: torch.cat([state[name].flatten().double().cpu() for name in names])
        for stage, names in stage_parameters(network).items()
    }


@dataclass(frozen=True)
class Barrier:
    """The loss on the straight line from one state to another.

    height: max over the line of loss(a) - ((1 - a) loss(0) + a loss(1)), at least 0 (at the ends).
    Source: Frankle et al., ICML 2020, arXiv 1912.05671; Entezari et al., ICLR 2022, arXiv 2110.06296.
    """

    positions: tuple[float, ...]  # 0 at the first state, 1 at the second
    losses: tuple[float, ...]
    height: float


def loss_barrier(loss: Callable[[State], float], start: State, end: State, *, points: int = 11) -> Barrier:
    """Evaluate `loss` at `points` evenly spaced states from `start` to `end`, both included.

    Floating-point tensors are interpolated, running statistics among them, so a network with batch norm
    should re-estimate those inside `loss`; of integer tensors the nearer end's are taken.
    Raises ConfigError for fewer than 3 points.
    """
    if points < 3:
        raise ConfigError(f"points: {points} leave nothing between the ends; use at least 3")
    positions = tuple(i / (points - 1) for i in range(points))
    losses = tuple(loss(interpolate(start, end, at)) for at in positions)
    first, last = losses[0], losses[-1]
    rises = (value - ((1 - at) * first + at * last) for at, value in zip(positions, losses, strict=True))
    return Barrier(positions, losses, max(0.0, *rises))


def interpolate(start: State, end: State, at: float) -> State:
    """The state a share `at` of the way; exactly `start` at 0 and `end` at 1."""
    return {
        name: torch.lerp(tensor, end[name], at)
        if tensor.is_floating_point()
        else (tensor if at < 0.5 else end[name]).clone()
        for name, tensor in start.items()
    }
