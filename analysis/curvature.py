"""How curved the training loss is at given weights, in one call and one JSON-able result.

Quick look: 100 images, 2 probes x 20 steps, which find the largest eigenvalues, and about the smallest.
For papers: 2,000 images, 10 x 100. The images should be a fixed class-balanced subset of the training set,
without augmentation; the loss is without weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import BaseModel, Field, Strict
from torch import Tensor, nn

from seal_ray.analysis.base import Analysis, Result, Seed, analysis
from seal_ray.analysis.hessian import HessianOperator, hessian_operator, rounding_errors
from seal_ray.analysis.lanczos import (
    Density,
    Eigenpairs,
    Jacobi,
    Mass,
    Quadrature,
    TraceEstimate,
    extremes,
    lanczos,
    negative_mass,
    ritz_pairs,
    share_within,
    spectral_density,
    trace,
)
from seal_ray.analysis.shards import MakeOperator, sharding
from seal_ray.analysis.similarity import weight_norms
from seal_ray.config.messages import STRICT
from seal_ray.errors import ConfigError
from seal_ray.networks import Parts
from seal_ray.phases.losses import RecipeLoss, SmoothedCrossEntropy
from seal_ray.streams import stream
from seal_ray.tracking.workspace import Panel, PanelSection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from seal_ray.analysis.figures import MomentResults
    from seal_ray.analysis.inputs import Inputs
    from seal_ray.analysis.moments import AnalysedRun, Moment

TRACE_PROBES = 5
SHARPNESS_STEPS = 8
ROUNDING_IMAGES = 20
"""Rounding is measured on so many images, in float64, which takes many times longer."""
GRAPH_BYTES = 2 << 30
"""What a process's second derivatives may keep in memory, if there is as much."""


class CurvatureSettings(BaseModel):
    """See `measure_curvature`."""

    model_config = STRICT

    images: int = Field(default=100, ge=1, description="training images of the loss")
    probes: int = Field(default=2, ge=2, description="Lanczos runs")
    steps: int = Field(default=20, ge=2, description="products of each run")
    top: int = Field(default=5, ge=1, description="eigenvalues at each end")
    parts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Strict(False)] = Field(
        default=("all",), min_length=1, description="all, early, late, head or stages"
    )
    batch: int = Field(default=100, ge=1, description="images of one pass")
    shards: int = Field(default=1, ge=1, description="processes that share a moment's images; no new numbers")
    seed: Seed = 0


@analysis
class Curvature(Analysis):
    """The Hessian of the training loss: its extreme eigenvalues, trace, spectral density (Ghorbani et al.,
    ICML 2019, arXiv 1901.10159) and adaptive sharpness (Kwon et al., ICML 2021, arXiv 2102.11600).
    """

    name = "curvature"
    Settings = CurvatureSettings
    paper = CurvatureSettings(images=2_000, probes=10, steps=100, top=10, parts=("all", "early", "late"))
    version = 3
    section = PanelSection(
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
    )

    def compared_with(self, moment: Moment, run: AnalysedRun) -> Mapping[str, Moment]:
        """Of the end of an ascent, where that began: `before`."""
        start = run.before_ascent(moment) if moment.name == "ascended" else None
        return {} if start is None else {"before": start}

    def depends_on(self, moment: Moment, run: AnalysedRun, settings: CurvatureSettings) -> Mapping[str, Any]:
        """The loss, and where early and late meet."""
        recipe = run.job.recipe
        split = {"split_at": recipe.method.split_at} if {"early", "late"} & set(settings.parts) else {}
        return {"loss": smoothing_of(recipe.loss), **split}

    def compute(self, inputs: Inputs, settings: CurvatureSettings) -> Result:
        """The spectrum of each part, and how far an ascent went along its top."""
        recipe, network = inputs.recipe, inputs.network()
        batches, labels = inputs.data.training_subset(settings.images, settings.seed)
        images, labels = torch.cat(batches).to(inputs.device), labels.to(inputs.device)
        before = inputs.others["before"].weights() if "before" in inputs.others else None
        room = psutil.virtual_memory().available // (4 * inputs.processes)
        asked = settings.model_dump(include={"steps", "probes", "top", "seed", "batch"})
        numbers: dict[str, dict[str, Any]] = {}
        arrays: dict[str, Any] = {}
        for part in settings.parts:
            with sharding(settings.shards) as make:
                found = measure_curvature(
                    network,
                    images,
                    labels,
                    parts=Parts.of(network, recipe.method.split_at),
                    part=part,
                    label_smoothing=smoothing_of(recipe.loss),
                    graph_bytes=min(GRAPH_BYTES, room),
                    make=make,
                    **asked,
                )
            numbers[part] = found.to_json()
            density = numbers[part].pop("density")
            numbers[part]["density_sigma"] = density.pop("sigma")
            arrays |= {f"{part}_{name}": np.asarray(values) for name, values in density.items()}
            if before is not None:
                numbers[part]["ascent_within_top"] = {
                    "share": found.movement_share(before, inputs.weights),
                    "of_a_random_direction": settings.top / found.dim,
                }
        return Result({"parts": numbers}, arrays)

    def scalars(self, result: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Extremes, trace, negative mass and shares of each part; of the whole network without its name."""
        named: dict[str, float | None] = {}
        for part, found in result["parts"].items():
            name = "curvature" if part == "all" else f"curvature/{part}"
            mass = found["negative_mass"].get("resolved") or {}  # results of before have neither
            named |= {
                f"{name}/top": found["largest"][0]["value"],
                f"{name}/bottom": found["smallest"][0]["value"],
                f"{name}/trace": found["trace"]["value"],
                f"{name}/negative_mass": mass.get("value"),
                f"{name}/negative_mass_low": mass.get("low"),
                f"{name}/negative_mass_high": mass.get("high"),
                f"{name}/negative_mass_threshold": mass.get("relative"),
                f"{name}/sharpness": found["sharpness"]["value"],
                f"{name}/gradient_overlap": found["gradient_overlap"],
                f"{name}/ascent_within_top": found.get("ascent_within_top", {}).get("share"),
            }
        return named

    def media(self, moment: Moment, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """The spectral density of each part."""
        import wandb

        from seal_ray.analysis.tasks import read_arrays

        arrays, shown = read_arrays(moment, self.name), {}
        for part in result["parts"]:
            grid, density = arrays[f"{part}_grid"], arrays[f"{part}_values"]
            rows = [[float(x), float(y)] for x, y in zip(grid, density, strict=True)]
            table = wandb.Table(columns=["eigenvalue", "density"], data=rows)
            shown[f"curvature/{part}_density"] = wandb.plot.line(
                table, "eigenvalue", "density", title=f"Spectral density, {part}, {moment.label}"
            )
        return shown

    def figures(self, found: Sequence[MomentResults]) -> Mapping[str, Figure]:
        """Densities at the last ends of generations; the largest eigenvalue and the trace over epochs."""
        from seal_ray.analysis import figures

        whole = [one for one in found if "all" in one.results["curvature"]["parts"]]
        if not figures.has_ends(whole):
            return {}
        return {"spectral-density": figures.plot_densities(whole), "curvature": figures.plot_curvature(whole)}


@dataclass(frozen=True)
class SpectrumSettings:
    """All that a result depends on besides weights and images."""

    loss: str
    label_smoothing: float
    part: str
    images: int
    batch: int
    steps: int
    probes: int
    top: int
    trace_probes: int
    sharpness_steps: int
    seed: int
    dtype: str


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue lies within `residual` of `value`: float32's residual, and what rounding adds to it."""

    value: float
    residual: float


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The Hessian of the mean training loss by the parameters of one part, dim of them.

    pairs: the `top` lowest and highest eigenpairs. rounding: how far the operator in float32 is from that in
    float64, see Eigenpairs.rounding, on ROUNDING_IMAGES of the images; no residual is smaller. negative:
    bounds on the share of eigenvalues below 0 at each threshold. gradient_overlap: the share of the
    gradient's squared norm in the span of the `top` highest eigenvectors (Gur-Ari et al. 2018, arXiv
    1812.04754). weight_norms: of every stage, because with batch norm the eigenvalues fall as weights grow,
    and the function stays. sharpness: free of that scale.
    """

    settings: SpectrumSettings
    names: tuple[str, ...]  # of the parameters, in the order of the vectors
    dim: int
    loss: float
    gradient_norm: float
    gradient_overlap: float
    pairs: Eigenpairs
    rounding: float
    trace: TraceEstimate
    negative: tuple[Mass, ...]  # by ascending threshold
    density: Density
    rules: tuple[Quadrature, ...]  # one per probe
    weight_norms: dict[str, float]
    sharpness: Eigenvalue

    @property
    def largest(self) -> list[Eigenvalue]:
        """The `top` largest eigenvalues, descending."""
        return self._eigenvalues()[: -self.settings.top - 1 : -1]

    @property
    def smallest(self) -> list[Eigenvalue]:
        """The `top` smallest eigenvalues, ascending."""
        return self._eigenvalues()[: self.settings.top]

    def _eigenvalues(self) -> list[Eigenvalue]:
        values, residuals = self.pairs.values.tolist(), (self.pairs.residuals + self.rounding).tolist()
        return [Eigenvalue(value, residual) for value, residual in zip(values, residuals, strict=True)]

    @property
    def negative_mass(self) -> Mass | None:
        """The negative mass at the smallest threshold where it is resolved, if there is one."""
        return next((mass for mass in self.negative if mass.resolved), None)

    @property
    def top_vectors(self) -> Tensor:
        """(top, dim), the eigenvectors of the largest eigenvalues, orthonormal."""
        return self.pairs.vectors[-self.settings.top :]

    def movement_share(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
        """The share of the squared distance between two states, in this part, in the span of top_vectors."""
        moved = [(after[name] - before[name]).reshape(-1) for name in self.names]
        return share_within(torch.cat(moved), self.top_vectors)

    def to_json(self) -> dict[str, Any]:
        """Numbers, strings, lists, dictionaries, None for what is not resolved; no eigenvectors."""
        mass = self.negative_mass
        return {
            "settings": asdict(self.settings),
            "parameters": self.dim,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "gradient_overlap": self.gradient_overlap,
            "largest": [asdict(eigenvalue) for eigenvalue in self.largest],
            "smallest": [asdict(eigenvalue) for eigenvalue in self.smallest],
            "rounding": self.rounding,
            "trace": asdict(self.trace),
            "negative_mass": {
                "resolved": mass and {"value": mass.value, **asdict(mass)},
                "bounds": [{**asdict(mass), "resolved": mass.resolved} for mass in self.negative],
            },
            "sharpness": asdict(self.sharpness),
            "weight_norms": self.weight_norms,
            "density": {
                "sigma": self.density.sigma,
                "grid": self.density.grid.tolist(),
                "values": self.density.values.tolist(),
                "spread": self.density.spread.tolist(),
                "nodes": [rule.nodes.tolist() for rule in self.rules],
                "weights": [rule.weights.tolist() for rule in self.rules],
            },
        }


def smoothing_of(loss: RecipeLoss) -> float:
    """The label smoothing of the loss whose curvature is measured. ConfigError for another than ce."""
    if isinstance(loss, SmoothedCrossEntropy):
        return loss.label_smoothing
    raise ConfigError(f"curvature: is that of the loss ce, and this run's is {loss.name}; leave it out")


def measure_curvature(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    parts: Parts,
    part: str = "all",
    label_smoothing: float,
    steps: int = 20,
    probes: int = 2,
    top: int = 5,
    seed: int = 0,
    batch: int = 100,
    graph_bytes: int = 2 << 30,
    basis_bytes: int = 2 << 30,
    make: MakeOperator = hessian_operator,
) -> Spectrum:
    """All of `Spectrum` from the same `probes` Lanczos runs of `steps` steps.

    network: in eval mode; images (N, 3, H, W), normalised, and labels (N,) on its device. Products:
    probes x steps, TRACE_PROBES, SHARPNESS_STEPS and a few for the checks. As
    many runs as fit in `basis_bytes` (steps + 1 vectors each; one in any case) share their passes over the
    data. graph_bytes: see hessian_operator. make: what builds the operator (`seal_ray.analysis.shards`). The
    result is a pure function of weights, images and settings on one device; neither memory bound nor `make`
    changes it beyond rounding.
    Raises ConfigError where hessian_operator does, for fewer than 2 probes, and for a `top` above half the
    steps.
    """
    chosen = {name: p for name, p in network.named_parameters() if parts.holds(part, name)}
    _require_room(top, steps, probes, dim=sum(p.numel() for p in chosen.values()))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    batches = list(zip(images.split(batch), labels.split(batch), strict=True))
    operator = make(network, batches, loss, list(chosen.values()), graph_bytes=graph_bytes)
    gradient = operator.gradient

    def draws(purpose: str, run: int) -> Tensor:
        return torch.randn(operator.dim, generator=stream(seed, f"curvature-{purpose}", run)).to(gradient)

    every = -(-len(images) // ROUNDING_IMAGES)
    errors = rounding_errors(network, images[::every], labels[::every], loss, list(chosen.values()))
    signs = torch.stack([draws("trace", run).sign() for run in range(TRACE_PROBES)])
    pairs, matrices, total = _spectrum(
        operator, lambda run: draws("lanczos", run), signs, steps, probes, top, basis_bytes
    )
    rounding = pairs.rounding(errors)
    rules = tuple(matrix.quadrature() for matrix in matrices)
    scale = filter_scale(chosen.values())
    # From the top eigenvector, in the new units, a few steps suffice; chance keeps them out of a subspace,
    # and decides on the sign, which an eigenvector does not have.
    aimed, drawn = scale * pairs.vectors[-1], draws("sharpness", 0)
    start = (aimed @ drawn).sign() * aimed / aimed.norm() + 0.1 * drawn / drawn.norm()
    (sharpest,) = lanczos(ScaledOperator(operator, scale), start[None], SHARPNESS_STEPS)
    normalised = ritz_pairs(sharpest, 1)
    bound = normalised.residuals[-1].item() + normalised.rounding(lambda v: scale * errors(scale * v))
    return Spectrum(
        settings=SpectrumSettings(
            loss="cross entropy",
            label_smoothing=label_smoothing,
            part=part,
            images=len(images),
            batch=batch,
            steps=steps,
            probes=probes,
            top=top,
            trace_probes=TRACE_PROBES,
            sharpness_steps=SHARPNESS_STEPS,
            seed=seed,
            dtype=str(gradient.dtype).removeprefix("torch."),
        ),
        names=tuple(chosen),
        dim=operator.dim,
        loss=operator.loss,
        gradient_norm=gradient.norm().item(),
        gradient_overlap=share_within(gradient, pairs.vectors[-top:]),
        pairs=pairs,
        rounding=rounding,
        trace=total,
        negative=negative_mass(
            matrices,
            magnitude=pairs.values.abs().max().item(),
            rounding=rounding,
            dim=operator.dim,
        ),
        density=spectral_density(rules),
        rules=rules,
        weight_norms=weight_norms(network, network.state_dict()),
        sharpness=Eigenvalue(normalised.values[-1].item(), bound),
    )


def _require_room(top: int, steps: int, probes: int, dim: int) -> None:
    if probes < 2:
        raise ConfigError(f"curvature: {probes} probe(s) have no spread between them; use at least 2")
    if not 1 <= top <= min(steps, dim) // 2:
        raise ConfigError(
            f"curvature: {steps} steps in {dim} dimensions find at most {min(steps, dim) // 2} eigenvalues "
            f"at each end, not top={top}; ask for fewer, or take more steps"
        )


def _spectrum(
    operator: HessianOperator,
    start: Callable[[int], Tensor],
    signs: Tensor,
    steps: int,
    probes: int,
    top: int,
    basis_bytes: int,
) -> tuple[Eigenpairs, tuple[Jacobi, ...], TraceEstimate]:
    """The extremes and matrices of runs from start(0), start(1), ..., as many at a time as fit, and the
    trace, by `signs` outside of the first basis.
    """
    together = max(1, basis_bytes // (operator.gradient.nbytes * (steps + 1)))
    pairs: list[Eigenpairs] = []
    matrices: list[Jacobi] = []
    for first in range(0, probes, together):
        starts = torch.stack([start(run) for run in range(first, min(first + together, probes))])
        runs = lanczos(operator, starts, steps)
        pairs = [extremes(runs, top, pairs)]
        matrices += [run.jacobi for run in runs]
        if first == 0:
            total = trace(operator, signs, runs[0].basis[:-1], runs[0].jacobi.alpha.sum().item())
        del runs  # their bases, before the next ones are made
    return pairs[0], tuple(matrices), total


def filter_scale(parameters: Iterable[Tensor]) -> Tensor:
    """(dim,), how large a step each weight takes for granted: the norm of its filter, a vector's own size.

    For a tensor of two or more dimensions the norm of its slice along the first one (a convolution's
    filter, a linear layer's row); for a vector, its absolute values.
    """
    scales = [
        p.flatten(1).norm(dim=1, keepdim=True).expand(-1, p[0].numel()) if p.dim() > 1 else p.abs()
        for p in (parameter.detach() for parameter in parameters)
    ]
    return torch.cat([scale.reshape(-1) for scale in scales])


@dataclass(frozen=True, eq=False)
class ScaledOperator:
    """D H D with D = diag(scale): the Hessian by weights measured in units of `scale` (dim,).

    With filter_scale its largest eigenvalue is twice the adaptive sharpness per squared radius to second
    order (ASAM, Kwon et al. 2021, arXiv 2102.11600): where batch norm undoes the scale of a filter, it does
    not depend on that scale, as the plain eigenvalues do (Dinh et al. 2017, arXiv 1703.04933).
    """

    operator: HessianOperator
    scale: Tensor

    def products(self, vectors: Tensor) -> Tensor:
        """(k, dim) -> (k, dim), D H D times each row."""
        return self.operator.products(vectors * self.scale) * self.scale
