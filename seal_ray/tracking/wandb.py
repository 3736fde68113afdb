"""Where an epoch's metrics and moments go beside the run's folder: Weights & Biases, or nowhere.

Training never waits for a tracker. W&B is spoken to from a thread of its own; when it fails or hangs it
is given up with one warning, and metrics.jsonl still has everything.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import seal_ray
from seal_ray.data.prepared import describe_dataset
from seal_ray.device import hardware
from seal_ray.errors import CheckpointError, DataError, SealRayError, SealRayWarning, StorageError
from seal_ray.phases.averaging import Averaging
from seal_ray.phases.schedule import Row
from seal_ray.runs.checkpoint import read_manifest
from seal_ray.runs.folder import Store
from seal_ray.storage.paths import AnyPath, listed, on_this_host, storage_path
from seal_ray.tracking.environment import MISSING, PROJECT, SILENT, git_commit, mode_now

if TYPE_CHECKING:
    from seal_ray.recipe import Job, Recipe, Tracking

WANDB_TIMEOUT = 30.0
"""Seconds that W&B gets to begin, and offline, where nothing is far away, to end."""
ONLINE_TIMEOUT = 10.0
"""Seconds that the end of a run waits for W&B's server."""
KILL_TIMEOUT = 5.0
"""Seconds until a process that was killed is gone."""
RETRIES: dict[str, Any] = {
    f"x_{what}_retry_{limit}": value
    for what in ("graphql", "file_stream", "file_transfer")
    for limit, value in (("max", 20), ("wait_min_seconds", 1), ("wait_max_seconds", 15))
}
"""W&B's process outlives a trainer that was killed for as long as it still tries to upload: some minutes."""


class NoTracker:
    """Tracks nothing."""

    def log(self, row: Row) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_tracker(job: Job, run_id: str, folder: AnyPath, data: str) -> Wandb | NoTracker:
    """The tracker that the placement asks for. data: the data set's name, a tag."""
    mode = mode_now(job.placement.tracking)
    return NoTracker() if mode == "off" else Wandb(job, Store(folder, run_id), data, mode)


class Wandb:
    """A W&B run that is fed from a thread, each epoch at the step of its number.

    Epochs that W&B lacks come first, from metrics.jsonl: those that another run has trained, and online those
    of an offline launch or lost in a kill.
    """

    def __init__(self, job: Job, store: Store, data: str, mode: str) -> None:
        self._mode = mode
        self._queue: queue.SimpleQueue[Row | None] = queue.SimpleQueue()  # None: closed
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._feed, args=(job, store, data, mode), daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Hand an epoch to the thread."""
        if not self._failed.is_set():
            self._queue.put(row)

    def close(self) -> None:
        """Let the thread finish, as long as `patience` at most."""
        self._queue.put(None)
        seconds = patience(self._mode)
        self._thread.join(seconds)
        if self._thread.is_alive():
            note_silence(self._mode)
            self._give_up(f"W&B did not finish within {seconds:g} s and is left behind")

    def _feed(self, job: Job, store: Store, data: str, mode: str) -> None:
        try:
            launches = _here(store.folder).glob(f"wandb/offline-run-*-{store.run_id}")
            first = mode == "online" or not list(launches)
            run = start_run(job, store.run_id, store.folder, data, mode)
            run.config.update(made_with(job), allow_val_change=True)
            held = epochs_held(run) if mode == "online" else 0 if first else None
            while (row := self._queue.get()) is not None:
                epoch = row["global_epoch"]
                before = [] if held in (None, epoch) else store.rows()[held:epoch]
                for missing in [*before, row] if (held or 0) <= epoch else []:  # else W&B has it
                    log_epoch(run, missing, job, store)
                held = None if held is None else max(held, epoch + 1)
            run.finish()
            if mode == "online" and epochs_held(run) < (held or 0):
                self._give_up("W&B did not take every epoch")
        except Exception as error:
            self._give_up(f"W&B is given up for this launch ({type(error).__name__}: {error})")

    def _give_up(self, what: str) -> None:
        """Say so, once, and let nothing wait for W&B any longer."""
        if self._failed.is_set():
            return
        self._failed.set()
        text = f"{what}; training goes on and metrics.jsonl is complete; {MISSING}"
        warnings.warn(text, SealRayWarning, stacklevel=2)
        end_service()


def start_run(job: Job, run_id: str, folder: AnyPath, data: str, mode: str) -> Any:
    """Start the W&B run of a run, or resume it where W&B has it; its files go under `folder`/wandb.

    Raises what W&B raises. W&B is imported here.
    """
    recipe = job.recipe
    run = init_run(
        job.placement.tracking,
        folder,
        mode,
        id=run_id,
        name=run_id,
        group=job.name,
        job_type="train",
        tags=tags_of(recipe, data),
        config=config_of(job),
    )
    run.define_metric("global_epoch")
    run.define_metric("*", step_metric="global_epoch")
    run.define_metric("generation", step_metric="global_epoch")
    run.define_metric("generation_top1", step_metric="generation", summary="last,max")
    run.define_metric("val_top1", step_metric="global_epoch", summary="last,max")
    run.define_metric("val_loss", step_metric="global_epoch", summary="last,min")
    if job.recipe.averaging != Averaging():
        run.define_metric("val_averaged_top1", step_metric="global_epoch", summary="last,max")
        run.define_metric("val_averaged_loss", step_metric="global_epoch", summary="last,min")
    return run


def tags_of(recipe: Recipe, data: str) -> list[str]:
    """What a run is found by: method, network, data set."""
    return [recipe.method.name, recipe.model.arch, data]


def config_of(job: Job) -> dict[str, Any]:
    """The recipe, and by what views group."""
    setting = job.placement.tracking.setting or job.recipe.method.name
    return {**job.recipe.model_dump(mode="json"), "setting": setting}


def made_with(job: Job) -> dict[str, Any]:
    """What else a launch is told by: where it runs, and with which code. No secrets, nobody's environment."""
    return {
        "placement": job.placement.model_dump(mode="json", exclude={"tracking"}),
        "hardware": hardware(),
        "seal_ray": seal_ray.__version__,
        "git_commit": git_commit(),
    }


def data_name(job: Job) -> str:
    """The name of the data set, or of its folder where it no longer lies."""
    path = job.recipe.data.path
    try:
        return describe_dataset(path).name
    except (DataError, StorageError):
        return storage_path(path).name


def track_tables(
    name: str,
    run_id: str,
    tracking: Tracking,
    folder: AnyPath,
    tables: Mapping[str, str],
    tags: Sequence[str],
) -> None:
    """Send a sweep's tables (CSV, by name) to the sweep's group, in time or never."""
    mode = mode_now(tracking)
    if mode == "off":
        return

    def send() -> None:
        named = {"id": run_id, "name": name, "job_type": "sweep"}
        run = init_run(tracking, folder, mode, group=name, tags=tags, **named)
        run.log({table: _to_wandb(text) for table, text in tables.items()})
        run.finish()

    sent_in_time(send, mode, f"the {' and the '.join(tables).replace('_', ' ')}", folder)


def _to_wandb(table: str) -> Any:
    """A table of W&B from CSV; what is empty is missing."""
    import wandb

    columns, *rows = csv.reader(io.StringIO(table))
    typed: list[list[float | str | None]] = []
    for cells in zip(*rows, strict=True):  # W&B refuses a column of numbers and words
        try:
            typed.append([float(cell) if cell else None for cell in cells])
        except ValueError:
            typed.append([cell or None for cell in cells])
    return wandb.Table(columns=columns, data=[list(row) for row in zip(*typed, strict=True)])


def patience(mode: str) -> float:
    """Seconds that something waits for W&B to end."""
    return ONLINE_TIMEOUT if mode == "online" else WANDB_TIMEOUT


def note_silence(mode: str) -> None:
    """After a wait in vain: what is online is not waited for again in this process, see `mode_now`."""
    if mode == "online":
        SILENT.set()


def sent_in_time(send: Callable[[], None], mode: str, what: str, folder: AnyPath) -> bool:
    """Whether `send` brought W&B something within `patience`; if not, one warning, and W&B is ended.

    what: it, in words; folder: where it lies meanwhile.
    """
    failure = ["W&B did not answer"]

    def attempt() -> None:
        try:
            send()
            failure.clear()
        except Exception as error:
            failure[:] = [f"{type(error).__name__}: {error}"]

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(patience(mode))
    if thread.is_alive():
        note_silence(mode)
    if failure:
        text = f"W&B did not get {what} ({failure[0]}); the files are in {folder}"
        warnings.warn(text, SealRayWarning, stacklevel=3)
        end_service()
    return not failure


def _here(folder: AnyPath) -> Path:
    """Beside whose `wandb` W&B keeps its files on this host."""
    return Path(os.environ.get("WANDB_DIR") or on_this_host(folder)).expanduser()


def init_run(
    tracking: Tracking, folder: AnyPath, mode: str, *, group: str, tags: Sequence[str], **what: Any
) -> Any:
    """wandb.init as every run of ours needs it; what W&B keeps on this host goes under `folder`/wandb.

    group: where `tracking` names none. tags: beside those of `tracking`.
    """
    # It would report errors of its own, and wait for that at the exit where nobody answers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    here = _here(folder)
    (here / "wandb").mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=tracking.project or PROJECT,
        entity=tracking.entity,
        group=tracking.group or group,
        tags=list(dict.fromkeys([*tags, *tracking.tags])),
        dir=str(here),
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=WANDB_TIMEOUT,
            x_transaction_log_flush_interval=1.0,
            **({} if tracking.system_metrics else {"x_disable_stats": True}),
            **RETRIES,
        ),
        **what,
    )


def log_epoch(run: Any, row: Row, job: Job, store: Store, *, upload: bool = False) -> None:
    """Log an epoch at the step of its number: W&B refuses a step that it has, so none is ever doubled.

    With the last epoch of a generation go its accuracy, on the axis of generations, and its moments; upload:
    with their files.
    """
    ends = ends_generation(row, job)
    ended = {"generation_top1": row["val_top1"]} if ends else {}
    run.log({**row, **ended}, step=row["global_epoch"], commit=True)
    if not ends:
        return
    try:
        log_moments(run, row, store, upload=upload)
    except StorageError as error:
        if upload:
            raise
        text = f"W&B got no moments of this generation ({error}); `seal-ray sync --moments` brings them"
        warnings.warn(text, SealRayWarning, stacklevel=2)


def log_moments(run: Any, row: Row, store: Store, *, upload: bool = False) -> None:
    """Log the moments of the generation that ends with `row` as artifacts `<run id>-<moment>`.

    They refer to the files where they lie, of which none is read but the manifest, or with `upload` hold
    them. Damaged moments are left out; whoever reads them says so. StorageError when S3 does not answer.
    """
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    known = store.generations()
    generation = row["generation"]
    for folder in listed(store.folder, f"moments/g{generation:03d}-*"):
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            continue
        facts = {
            "run": store.run_id,
            "generation": generation,
            "parent": {"run": row["trained_by"], "generation_key": known.keys[generation] if known else None},
            **{key: manifest[key] for key in ("moment", "position", "weights_sha256")},
        }
        artifact = wandb.Artifact(f"{store.run_id}-{folder.name}", type="moment", metadata=facts)
        described = (folder / "manifest.json").read_bytes()
        itself = {"bytes": len(described), "sha256": hashlib.sha256(described).hexdigest()}
        for name, held in {**manifest["files"], "manifest.json": itself}.items():
            path = folder / name
            if upload:
                with artifact.new_file(name, mode="wb") as file:
                    file.write(path.read_bytes())
            else:  # W&B's add_reference would need boto3
                uri = path.absolute().as_uri() if isinstance(path, Path) else str(path)
                entry = ArtifactManifestEntry(path=name, ref=uri, digest=held["sha256"], size=held["bytes"])
                artifact.manifest.add_entry(entry)
        run.log_artifact(artifact)


def ends_generation(row: Row, job: Job) -> bool:
    """Whether an epoch is the last one of its generation."""
    return bool((row["global_epoch"] + 1) % job.recipe.budget.length == 0)


def epochs_held(run: Any) -> int:
    """How many epochs W&B has of a run that was started online.

    The greater of the last step it resumes from, which it may remember late, and of its lines of history.
    """
    import wandb

    lines = wandb.Api().run(run.path).historyLineCount
    return max(int(run.starting_step), int(lines or 0))


def end_service() -> None:
    """End W&B's process, which this one would otherwise wait for at its exit."""
    import wandb

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "wandb-core":
                child.kill()
                child.wait(KILL_TIMEOUT)
    # It raises that its process is gone, and then leaves with that one's exit status.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


@contextlib.contextmanager
def speaking_to_wandb(who: str, remedy: str) -> Iterator[None]:
    """What W&B raises becomes a SealRayError, and nothing waits for what cannot be uploaded."""
    try:
        yield
    except BaseException as error:
        end_service()
        if isinstance(error, SealRayError) or not isinstance(error, Exception):
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SealRayError(f"{who}W&B cannot be reached or refuses ({what}); {remedy}") from error
