"""What is computed from moments, one file an analysis.

To add one: write its file and list it in `BUILT_IN_ANALYSES` of `seal_ray.recipe`; or keep it in a file of
your own, named by `plugins:`. The package itself is the decorator, `@seal_ray.analysis`.
"""

import sys
from types import ModuleType

from seal_ray.analysis.base import Analysis, AnalysisClass, Result
from seal_ray.analysis.base import analysis as _register
from seal_ray.recipe import ANALYSES

__all__ = ["ANALYSES", "Analysis", "Result"]


class _Decorator(ModuleType):
    def __call__(self, cls: type[AnalysisClass]) -> type[AnalysisClass]:
        return _register(cls)


sys.modules[__name__].__class__ = _Decorator
