"""Which runs an analysis is of, and the moments they keep: read from their folders alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from seal_ray.config.document import stored_in
from seal_ray.data.prepared import Dataset, open_dataset
from seal_ray.errors import CheckpointError, ConfigError, DataError, SealRayError
from seal_ray.phases.schedule import Budget, Position, moments_of
from seal_ray.recipe import Job, MomentName, load_job
from seal_ray.runs.checkpoint import State, read_manifest
from seal_ray.runs.folder import MOMENT, Store, epoch_label, moment_label
from seal_ray.runs.lineage import run_id
from seal_ray.storage.paths import AnyPath, check_outlives_job, listed, storage_path

if TYPE_CHECKING:
    from seal_ray.sweeps.results import SweepRuns

NAMES: tuple[str, ...] = get_args(MomentName)
"""The moments of a generation, in the order in which they come."""
LAST = "last"
"""What stands for the last `relearned` moment of each run."""


@dataclass(frozen=True)
class Moment:
    """A kept moment of a run."""

    run: AnyPath  # the run's folder
    generation: int
    name: str

    @property
    def label(self) -> str:
        """`g001-relearned`, the name of its folder."""
        return moment_label(self.name, self.generation)

    @property
    def path(self) -> AnyPath:
        """Its folder."""
        return self.run / "moments" / self.label

    @property
    def place(self) -> tuple[int, int]:
        """Where it comes in its run."""
        return self.generation, NAMES.index(self.name)

    def weights(self) -> State:
        """Its parameters and buffers, every checksum verified. CheckpointError as Store.moment."""
        return Store(self.run, self.run.name).moment(self.name, self.generation).weights


@dataclass(frozen=True)
class Facts:
    """What a manifest says of a moment: its weights' SHA-256, and the epochs trained by then."""

    weights_sha256: str
    epochs: int


@dataclass(frozen=True)
class AnalysedRun:
    """A run that is analysed."""

    folder: AnyPath
    job: Job
    label: str  # what figures call it: its setting in a sweep, else its method
    baseline: AnyPath | None = None  # the run that it is compared with, of the same seed

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return self.folder.name

    def moments(self) -> list[Moment]:
        """The moments that are there, in the order in which the run reached them."""
        found = []
        for path in (self.folder / "moments").glob("*/manifest.json"):
            named = MOMENT.fullmatch(path.parent.name)
            if named and named[2] in NAMES:
                found.append(Moment(self.folder, int(named[1]), named[2]))
        return sorted(found, key=lambda moment: moment.place)

    def facts(self, moment: Moment) -> Facts:
        """Its digest and epochs, from its manifest. CheckpointError when that is not there or damaged."""
        manifest = read_manifest(moment.path)
        position, length = manifest["position"], self.job.recipe.budget.length
        epochs = 0 if position is None else position["generation"] * length + position["epoch"] + 1
        return Facts(str(manifest["weights_sha256"]), epochs)

    def before_ascent(self, moment: Moment) -> Moment | None:
        """The kept moment at which the ascent that ends at `moment` began; None when it was not kept."""
        recipe, generation = self.job.recipe, moment.generation
        edited = "forgotten" in moments_of(recipe.method.phases(generation, recipe.budget), generation)
        start = (generation, "forgotten") if edited else (generation - 1, "relearned")
        return next((kept for kept in self.moments() if (kept.generation, kept.name) == start), None)

    def dataset(self) -> Dataset:
        """The data set that the run was trained on. DataError when it is not there, or another one."""
        return trained_on(self.folder, self.job)


def tracked_epochs(folder: AnyPath, budget: Budget, epochs: int) -> list[Position]:
    """Those of the run's first epochs of which it was kept which validation images were right."""
    positions = (Position(*divmod(epoch, budget.length)) for epoch in range(epochs))
    kept = {path.stem for path in (folder / "examples").glob("*.json")}
    return [p for p in positions if epoch_label(p) in kept]


def trained_on(folder: AnyPath, job: Job) -> Dataset:
    """The data set at the run's path, if the run was trained on that very one, else a DataError."""
    dataset = open_dataset(job.recipe.data.path)
    if run_id(job.recipe, dataset.training_identity) != folder.name:
        raise DataError(
            f"{dataset.folder}: is not the data set that {folder.name} was trained on; prepare that one "
            f"again, or name where it lies as recipe.data.path in {folder / 'job.yaml'}"
        )
    return dataset


@dataclass(frozen=True)
class RunSet:
    """What is analysed together. folder: where its figures go, under `analysis/`."""

    name: str
    folder: AnyPath
    runs: tuple[AnalysedRun, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)  # runs left out, and why


def find_runs(place: str | AnyPath, storage: str | None = None) -> RunSet:
    """The runs that a path stands for: a run's folder or YAML file, a sweep's, or a storage folder.

    storage: overrides placement.storage of a YAML file. ConfigError for a path that is none of these and a
    storage that is not asked of a file; CheckpointError when there is no run.
    """
    path = storage_path(place)
    if (runs := sweep_at(path, storage)) is not None:
        return sweep_runs(runs)
    if isinstance(path, Path) and path.is_file():
        from seal_ray.distributed.launch import prepare_job

        folder = prepare_job(load_job(path, stored_in(storage))).store.folder
        return _run_set(folder.name, folder, [folder])
    if storage is not None:
        raise ConfigError(f"--storage: {path} is no YAML file, so it says itself where its runs are")
    check_outlives_job(path, "the folder of runs")
    if (path / "job.yaml").is_file():
        folder = path.resolve()
        return _run_set(folder.name, folder, [folder])
    if (path / "results.json").is_file():
        return _of_sweep_folder(path.resolve())
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder; name a run, a sweep, or a folder of runs")
    folders = [found.parent.resolve() for found in listed(path, "*/job.yaml")]
    return _run_set(path.resolve().name, path.resolve(), folders)


def sweep_at(path: AnyPath, storage: str | None) -> SweepRuns | None:
    """The sweep whose file this is; None for anything else."""
    from seal_ray.sweeps.file import is_sweep, load_sweep
    from seal_ray.sweeps.results import prepare_sweep

    if not isinstance(path, Path) or not path.is_file() or not is_sweep(path):
        return None
    return prepare_sweep(load_sweep(path, stored_in(storage)))


def sweep_runs(runs: SweepRuns) -> RunSet:
    """The runs of a sweep that have begun. CheckpointError when none has."""
    folders = [one.store.folder for one in runs.planned if (one.store.folder / "job.yaml").exists()]
    return _run_set(runs.sweep.name, runs.folder, folders, dict(runs.settings), dict(runs.sweep.baseline))


def _of_sweep_folder(folder: AnyPath) -> RunSet:
    """A sweep by the results it has written."""
    path = folder / "results.json"
    try:
        held = json.loads(path.read_bytes())
        settings = {str(run["run_id"]): dict(run["setting"]) for run in held["runs"]}
        lines = [dict(line["setting"]) for line in held["lines"]]
        baseline = baseline_in(held)
        settings = dict(sorted(settings.items(), key=lambda run: lines.index(run[1])))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}); `seal-ray sweep` writes it anew"
        ) from None
    storage = folder.parent.parent
    folders = [storage / run for run in settings if (storage / run / "job.yaml").exists()]
    return _run_set(folder.name, folder, folders, settings, baseline)


def baseline_in(held: Mapping[str, Any]) -> dict[str, str]:
    """The baseline of a sweep by its results.json; of an older one what the lines marked as such share."""
    if "baseline" in held:
        return dict(held["baseline"])
    marked = [set(line["setting"].items()) for line in held["lines"] if line["is_baseline"]]
    return dict(set.intersection(*marked)) if marked else {}


def _run_set(
    name: str,
    folder: AnyPath,
    folders: Sequence[AnyPath],
    settings: Mapping[str, Mapping[str, str]] | None = None,
    baseline: Mapping[str, str] | None = None,
) -> RunSet:
    """The runs in `folders`. With settings they are a sweep's, and compared with those of `baseline`."""
    jobs: dict[AnyPath, Job] = {}
    unreadable = {}
    for one in folders:
        try:
            jobs[one] = load_job(one / "job.yaml")
        except SealRayError as error:
            unreadable[one.name] = str(error)
    if not folders:
        raise CheckpointError(f"{folder}: holds no runs that were trained; see `seal-ray runs`")
    if settings is None:
        runs = [AnalysedRun(one, job, job.recipe.method.name) for one, job in jobs.items()]
        return RunSet(name, folder, tuple(runs), unreadable)
    axes = {axis for setting in settings.values() for axis in setting}
    varying = [axis for axis in sorted(axes) if len({setting[axis] for setting in settings.values()}) > 1]
    labels = {run: " ".join(setting[axis] for axis in varying) for run, setting in settings.items()}
    runs = [
        AnalysedRun(
            one, job, labels[one.name] or job.recipe.method.name, _rival(one, jobs, settings, baseline)
        )
        for one, job in jobs.items()
    ]
    return RunSet(name, folder, tuple(runs), unreadable)


def _rival(
    folder: AnyPath,
    jobs: Mapping[AnyPath, Job],
    settings: Mapping[str, Mapping[str, str]],
    baseline: Mapping[str, str] | None,
) -> AnyPath | None:
    """The run of the same seed whose setting is this run's with the baseline's labels over it."""
    wanted, seed = {**settings[folder.name], **(baseline or {})}, jobs[folder].recipe.seed
    for other, job in jobs.items():
        if other != folder and settings[other.name] == wanted and job.recipe.seed == seed:
            return other
    return None
