"""How thoroughly moments are analysed: the settings of each analysis, two presets, overrides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, Strict

from seal_ray.config.document import Document, override
from seal_ray.config.messages import STRICT, parse
from seal_ray.errors import ConfigError
from seal_ray.recipe import Analysis

What = Analysis
WHAT: tuple[What, ...] = get_args(Analysis)
"""The analyses, in the order in which those of one moment are made."""

Part = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, description="which images and probes are drawn")]


class DepthSettings(BaseModel):
    """Prediction depth: see `seal_ray.analysis.depth.measure_depth`."""

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


class CurvatureSettings(BaseModel):
    """The Hessian's spectrum: see `seal_ray.analysis.curvature.measure_curvature`."""

    model_config = STRICT

    images: int = Field(default=200, ge=1, description="training images of the loss")
    probes: int = Field(default=2, ge=2, description="Lanczos runs")
    steps: int = Field(default=40, ge=2, description="products of each run")
    top: int = Field(default=5, ge=1, description="eigenvalues at each end")
    parts: Annotated[tuple[Part, ...], Strict(False)] = Field(
        default=("all",), min_length=1, description="all, early, late, head or stages"
    )
    batch: int = Field(default=100, ge=1, description="images of one pass")
    shards: int = Field(default=1, ge=1, description="processes that share a moment's images; no new numbers")
    seed: Seed = 0


class SimilaritySettings(BaseModel):
    """Movement, CKA and loss barriers: see `seal_ray.analysis.similarity`."""

    model_config = STRICT

    images: int = Field(default=500, ge=2, description="validation images of the CKA")
    max_features: int = Field(default=2048, ge=1, description="numbers an embedding is pooled to at most")
    barrier_images: int = Field(default=500, ge=1, description="training images of the loss barrier")
    barrier_points: int = Field(default=11, ge=3, description="places on the line, its ends included")
    seed: Seed = 0


class CalibrationSettings(BaseModel):
    """Confidence against accuracy on all validation images: see `seal_ray.analysis.calibration`."""

    model_config = STRICT

    bins: int = Field(default=15, ge=1, description="bins of the calibration error")


class Settings(BaseModel):
    """The settings of every analysis; the defaults are those of quick looks."""

    model_config = STRICT

    depth: DepthSettings = DepthSettings()
    curvature: CurvatureSettings = CurvatureSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    calibration: CalibrationSettings = CalibrationSettings()

    def of(self, what: What) -> dict[str, Any]:
        """One analysis' settings as JSON holds them."""
        section: BaseModel = getattr(self, what)
        return section.model_dump(mode="json")


PRESETS: dict[str, Settings] = {
    "quick": Settings(),
    "paper": Settings(
        depth=DepthSettings(support_size=10_000, points=None),
        curvature=CurvatureSettings(
            images=2_000, probes=10, steps=100, top=10, parts=("all", "early", "late")
        ),
        similarity=SimilaritySettings(images=5_000, barrier_images=5_000, barrier_points=21),
    ),
}
"""`quick` takes seconds a moment on a laptop; `paper` is for GPUs."""


def load_settings(preset: str, overrides: Sequence[str] = ()) -> Settings:
    """A preset after overrides such as `depth.k=10`. ConfigError names each that cannot be used."""
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: is not one of {', '.join(PRESETS)}")
    start = Document(PRESETS[preset].model_dump(mode="json"), {(): f"preset {preset}"})
    return parse(override(start, overrides), Settings)


def choose(what: Sequence[str]) -> tuple[What, ...]:
    """The analyses that are asked for, in their order. ConfigError for one that there is not."""
    unknown = [name for name in what if name not in WHAT]
    if unknown:
        raise ConfigError(f"--what {unknown[0]}: is not one of {', '.join(WHAT)}")
    return tuple(name for name in WHAT if name in what)
