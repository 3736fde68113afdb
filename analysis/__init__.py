"""What is computed from moments, one file an analysis, in the order in which those of a moment are made.

To add one: write its file and list it here; or keep it in a file of your own, with the decorator, named by
`plugins:`. The package itself is that decorator, `@seal_ray.analysis`.
"""

# isort: off
import sys
from types import ModuleType

from seal_ray.analysis.base import AnalysisClass, Analysis, Result
from seal_ray.analysis.base import analysis as _register
from seal_ray.analysis.depth import Depth
from seal_ray.analysis.curvature import Curvature
from seal_ray.analysis.similarity import Similarity
from seal_ray.analysis.calibration import Calibration
from seal_ray.recipe import ANALYSES

__all__ = ["ANALYSES", "BUILT_IN", "Analysis", "Result"]

BUILT_IN = tuple(_register(kind).name for kind in (Depth, Curvature, Similarity, Calibration))


class _Decorator(ModuleType):
    def __call__(self, cls: type[AnalysisClass]) -> type[AnalysisClass]:
        return _register(cls)


sys.modules[__name__].__class__ = _Decorator
