"""seal_ray: forget-and-relearn training of image classifiers, distributed and resumable bit for bit.

import seal_ray as sr

recipe = sr.Recipe.load("jobs/runs/laptop/seal.yaml", ["recipe.seed=1"])
for epoch in sr.fit(recipe, storage="runs"):  # in this process, without Ray
    print(epoch.position, epoch.row["val_top1"])
outcome = sr.train("jobs/runs/laptop/seal.yaml")  # on Ray Train
board = sr.sweep("jobs/sweeps/laptop.yaml")  # on Ray Tune
run = sr.load("runs/seal-s0-32d0e696cb")
sr.analyze(run, ["depth"])
print(run.results("depth"), run.network("g002-relearned"))
sr.report("runs", "report.html")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal_ray.analysis.base import Analysis as Analysis
    from seal_ray.analysis.base import analysis as analysis
    from seal_ray.api import Leaderboard as Leaderboard
    from seal_ray.api import StoredRun as StoredRun
    from seal_ray.api import TrainingOutcome as TrainingOutcome
    from seal_ray.api import analyze as analyze
    from seal_ray.api import fewshot as fewshot
    from seal_ray.api import fit as fit
    from seal_ray.api import load as load
    from seal_ray.api import report as report
    from seal_ray.api import sweep as sweep
    from seal_ray.api import train as train
    from seal_ray.api import transfer as transfer
    from seal_ray.augmentations import augmentation as augmentation
    from seal_ray.data.dataset import ClassName as ClassName
    from seal_ray.data.dataset import Sample as Sample
    from seal_ray.data.dataset import Source as Source
    from seal_ray.data.images import Images as Images
    from seal_ray.data.sources import source as source
    from seal_ray.methods import LEARN as LEARN
    from seal_ray.methods import Method as Method
    from seal_ray.methods import learn as learn
    from seal_ray.methods import method as method
    from seal_ray.metrics import metric as metric
    from seal_ray.networks import network as network
    from seal_ray.phases.edits import EditContext as EditContext
    from seal_ray.phases.edits import Reinit as Reinit
    from seal_ray.phases.losses import loss as loss
    from seal_ray.phases.schedule import Budget as Budget
    from seal_ray.phases.schedule import Group as Group
    from seal_ray.phases.schedule import Phase as Phase
    from seal_ray.recipe import Job as Job
    from seal_ray.recipe import Placement as Placement
    from seal_ray.recipe import Recipe as Recipe
    from seal_ray.runs.folder import Store as Store
    from seal_ray.runs.folder import open_store as open_store
    from seal_ray.streams import stream as stream

__version__ = "0.2.0"

_HOMES = {
    "seal_ray.analysis": "Analysis",
    "seal_ray.api": "Leaderboard StoredRun TrainingOutcome analyze fewshot fit load report sweep train "
    "transfer",
    "seal_ray.augmentations": "augmentation",
    "seal_ray.data.dataset": "ClassName Sample Source",
    "seal_ray.data.images": "Images",
    "seal_ray.data.sources": "source",
    "seal_ray.methods": "LEARN Method learn method",
    "seal_ray.metrics": "metric",
    "seal_ray.networks": "network",
    "seal_ray.phases.edits": "EditContext Reinit",
    "seal_ray.phases.losses": "loss",
    "seal_ray.phases.schedule": "Budget Group Phase",
    "seal_ray.recipe": "Job Placement Recipe",
    "seal_ray.runs.folder": "Store open_store",
    "seal_ray.streams": "stream",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(["__version__", "analysis", *_HOME])


def __getattr__(name: str) -> Any:
    """Import on first use, so that the core can be imported without pydantic."""
    if name == "analysis":  # the package, which is the decorator too
        return import_module("seal_ray.analysis")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, whichever have been imported."""
    return __all__
