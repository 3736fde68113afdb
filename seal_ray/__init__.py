"""seal_ray: forget-and-relearn training of image classifiers, distributed and resumable bit for bit.

from seal_ray import Recipe, fit

for epoch in fit(Recipe.load("jobs/runs/laptop/seal.yaml")):
    print(epoch.position, epoch.row["val_top1"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal_ray.data.images import Images
    from seal_ray.recipe import Recipe
    from seal_ray.store import Store, open_store
    from seal_ray.train import fit

__version__ = "0.1.0"
__all__ = ["Images", "Recipe", "Store", "__version__", "fit", "open_store"]

_HOMES = {
    "Images": "seal_ray.data.images",
    "Recipe": "seal_ray.recipe",
    "Store": "seal_ray.store",
    "fit": "seal_ray.train",
    "open_store": "seal_ray.store",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the core can be imported without pydantic."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
