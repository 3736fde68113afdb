"""What an analysis is: one class, from its settings to what W&B, figures and tables show of its results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from seal_ray.config.messages import STRICT
from seal_ray.errors import ConfigError
from seal_ray.recipe import ANALYSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from seal_ray.analysis.figures import MomentResults
    from seal_ray.analysis.inputs import Inputs
    from seal_ray.analysis.moments import AnalysedRun, Moment
    from seal_ray.tracking.workspace import PanelSection

Arrays = Mapping[str, npt.NDArray[Any]]
Seed = Annotated[int, Field(ge=0, description="which images and probes are drawn")]


@dataclass(frozen=True)
class Result:
    """What an analysis found: small numbers as JSON holds them, arrays, and a PNG where there is something
    to look at.
    """

    numbers: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict)
    picture: bytes | None = None


class NoSettings(BaseModel):
    """Those of an analysis that has none."""

    model_config = STRICT


class Analysis:
    """What is computed from one moment of a run.

    Settings: a pydantic model whose defaults are those of a quick look; paper: its values for a publication,
    if others. Every field enters the key of a result but `shards`, which says how many processes work on a
    moment at a time. version: raised whenever its results change; that of an analysis outside of this package
    is the digest of its file. section: what W&B's workspace shows of it.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel]] = NoSettings
    paper: ClassVar[BaseModel | None] = None
    version: ClassVar[int] = 1
    section: ClassVar[PanelSection | None] = None

    def compute(self, inputs: Inputs, settings: Any) -> Result:
        """The result of a moment: a pure function of inputs and settings, an instance of Settings.

        Raises SealRayErrors for what is wrong with the moment, its data or the settings.
        """
        raise NotImplementedError

    def compared_with(self, moment: Moment, run: AnalysedRun) -> Mapping[str, Moment]:
        """Other kept moments that the result depends on, by their role; `inputs.others` has them."""
        return {}

    def depends_on(self, moment: Moment, run: AnalysedRun, settings: Any) -> Mapping[str, Any]:
        """What else decides the result, as JSON holds it, beside weights, data set, network and settings."""
        return {}

    def scalars(self, result: Mapping[str, Any]) -> Mapping[str, float | None]:
        """The numbers of a result that are drawn over epochs, by name; by default those on its top level."""
        return {
            f"{self.name}/{name}": value
            for name, value in result.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def media(self, moment: Moment, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Histograms, tables and images of a result, by name, as W&B takes them."""
        return {}

    def figures(self, found: Sequence[MomentResults]) -> Mapping[str, Figure]:
        """Figures of all results of this analysis beside each other, by the names of their files."""
        return {}


AnalysisClass = TypeVar("AnalysisClass", bound=Analysis)


def analysis(cls: type[AnalysisClass]) -> type[AnalysisClass]:
    """Class decorator: jobs and `seal-ray analyze --what` may name this analysis.

    ConfigError for a class that is no analysis, and for a name that another one has.
    """
    name, settings = getattr(cls, "name", None), getattr(cls, "Settings", None)
    if Analysis not in cls.__mro__:
        problem = "does not extend seal_ray.Analysis"
    elif not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        problem = f"is called {name!r}; give it a name of small letters, digits and _, as in `name = 'mine'`"
    elif cls.compute is Analysis.compute:
        problem = "computes nothing; write compute(self, inputs, settings)"
    elif not isinstance(settings, type) or not issubclass(settings, BaseModel) or not _has_defaults(settings):
        problem = "has Settings that are no pydantic model with a default for every field"
    else:
        return ANALYSES.add(name, cls)
    raise ConfigError(f"the analysis {cls.__qualname__} {problem}")


def _has_defaults(settings: type[BaseModel]) -> bool:
    try:
        settings()
    except ValidationError:
        return False
    return True
