"""seal_ray: forget-and-relearn training of image classifiers, distributed and resumable bit for bit.

from seal_ray import Recipe, fit

for epoch in fit(Recipe.load("jobs/runs/laptop/seal.yaml")):
    print(epoch.position, epoch.row["val_top1"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal_ray.analysis.base import Analysis, analysis
    from seal_ray.data.images import Images
    from seal_ray.methods import LEARN, Method, learn, method
    from seal_ray.phases.edits import EditContext, Reinit
    from seal_ray.phases.schedule import Budget, Group, Phase
    from seal_ray.recipe import Recipe
    from seal_ray.runs.folder import Store, open_store
    from seal_ray.streams import stream
    from seal_ray.training.loop import fit

__version__ = "0.2.0"
__all__ = [
    "LEARN",
    "Analysis",
    "Budget",
    "EditContext",
    "Group",
    "Images",
    "Method",
    "Phase",
    "Recipe",
    "Reinit",
    "Store",
    "__version__",
    "analysis",
    "fit",
    "learn",
    "method",
    "open_store",
    "stream",
]

_HOMES = {
    "LEARN": "seal_ray.methods",
    "Analysis": "seal_ray.analysis",
    "Budget": "seal_ray.phases.schedule",
    "EditContext": "seal_ray.phases.edits",
    "Group": "seal_ray.phases.schedule",
    "Images": "seal_ray.data.images",
    "Method": "seal_ray.methods",
    "Phase": "seal_ray.phases.schedule",
    "Recipe": "seal_ray.recipe",
    "Reinit": "seal_ray.phases.edits",
    "Store": "seal_ray.runs.folder",
    "fit": "seal_ray.training.loop",
    "learn": "seal_ray.methods",
    "method": "seal_ray.methods",
    "open_store": "seal_ray.runs.folder",
    "stream": "seal_ray.streams",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the core can be imported without pydantic."""
    if name == "analysis":  # the package, which is the decorator too
        return import_module("seal_ray.analysis")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, whichever have been imported."""
    return __all__
