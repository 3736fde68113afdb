"""`seal-ray transfer` and `fewshot`: how well features that were learned serve on other data sets."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from seal_ray.analysis.compute import made_by
from seal_ray.analysis.destination import Destination, find_destination
from seal_ray.analysis.evaluations import COMMANDS, Evaluation
from seal_ray.analysis.finetune import finetune, source_of
from seal_ray.analysis.moments import Moment, Subject, Target, find_target, sweep_target
from seal_ray.analysis.results import plain
from seal_ray.analysis.run import carry_out, check_placement, new_results
from seal_ray.analysis.scores import moments_table, weights_table, widen_results, write_carried
from seal_ray.analysis.scoring import Normalisation, judge
from seal_ray.analysis.tasks import FORMAT, Outcome, Piece, Plan, Status, plan_pieces
from seal_ray.analysis.track import track
from seal_ray.config.document import stored_in
from seal_ray.data.beton import Dataset
from seal_ray.data.staging import open_dataset
from seal_ray.device import prepare_process
from seal_ray.distributed.launch import ray_session
from seal_ray.errors import ConfigError, SealRayError
from seal_ray.runs.export import Loaded, load_weights
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath
from seal_ray.sweeps.file import is_sweep, load_sweep
from seal_ray.sweeps.leaderboard import notes, to_table
from seal_ray.sweeps.results import SweepRuns, prepare_sweep, track_results, write_results

IMAGENET = Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's and timm's weights were trained with."""


def carry(
    path: AnyPath,
    rich: Console,
    evaluation: Evaluation,
    *,
    data: Path = Path("data"),
    moments: Sequence[str] | None = None,
    storage: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    in_process: bool = False,
) -> list[Outcome]:
    """Evaluate moments of the runs that `path` stands for (see `find_target`) on each of the data sets.

    data: where the data sets lie that are called by name. moments: names, or labels such as g002-relearned;
    None: the last `relearned` of each run. Results are `<run>/analysis/<kind>-<target>-gGGG-<moment>.json`;
    only what is missing is computed, by actors on the cluster at `address` or on a local one, or
    `in_process`. Of a sweep's file the comparison is written and shown, of anything else the moments. What is
    wrong with one moment, run or data set fails alone. ConfigError, ClusterError and CheckpointError, before
    anything starts, for what cannot be asked.
    """
    check_placement(workers, address, in_process)
    runs = _sweep_at(path, storage)
    target = find_target(path, storage) if runs is None else sweep_target(runs)
    destinations, unprepared = _destinations(evaluation, data)
    planned = plan_evaluation(target, evaluation, destinations, moments)
    planned = replace(planned, failed=(*unprepared, *planned.failed))
    session = None if in_process else ray_session(address)
    outcomes = carry_out(planned, rich, session, workers=workers, in_process=in_process)
    if any(outcome.status == "stopped" for outcome in outcomes):
        return outcomes
    found = new_results(target, outcomes)
    track(found, [], job_type=COMMANDS[evaluation.kind])
    if runs is None:
        rich.print(moments_table(target, outcomes, f"{target.name}: {evaluation.kind}"))
    elif lines := write_carried(runs, evaluation.kind):
        widen_results(runs, *write_results(runs))
        if found:
            track_results(runs, {f"{evaluation.kind}_leaderboard": lines})
        rich.print(to_table(lines, f"{runs.sweep.name}: {evaluation.kind}"))
        for note in dict.fromkeys(notes(lines)):
            rich.print(f"  {note}", markup=False)
    return outcomes


def plan_evaluation(
    target: Target,
    evaluation: Evaluation,
    destinations: Sequence[Destination],
    moments: Sequence[str] | None,
) -> Plan:
    """A piece for each moment and data set. ConfigError as `plan`."""
    settings = _settings(evaluation)
    by_name = {f"{evaluation.kind}-{one.label}": one for one in destinations}

    def make(what: str, moment: Moment, subject: Subject, dataset: Dataset) -> Piece:
        facts, model = subject.facts(moment), subject.job.recipe.model
        network = [model.arch, model.stem, model.width]
        normalisation = Normalisation.of_dataset(dataset)
        key = _key(what, settings, by_name[what], normalisation, facts.weights_sha256, network)
        return Piece(
            what, moment, key, facts.weights_sha256, facts.epochs, settings, destination=by_name[what]
        )

    return plan_pieces(target, list(by_name), moments, make, last=True)


def judge_weights(
    file: Path,
    arch: str,
    evaluation: Evaluation,
    rich: Console,
    *,
    data: Path = Path("data"),
    trained_on: str = "imagenet",
) -> list[Outcome]:
    """Evaluate weights that somebody else trained as moments are, in this process.

    file, arch: as `seal_ray.runs.export.load_weights` reads them. trained_on: whose normalisation they
    expect, ImageNet's or that of a prepared data set, by its folder. Each result is written beside the file,
    as `<its stem>-<kind>-<target>.json`, and only made if it is not there. Raises as load_weights, and
    DataError for a data set `trained_on` that there is not.
    """
    loaded = load_weights(file, arch)
    destinations, outcomes = _destinations(evaluation, data)
    normalisation = IMAGENET
    if trained_on != IMAGENET.of:
        normalisation = Normalisation.of_dataset(open_dataset(trained_on))
    held = {}
    for one in destinations:
        what = f"{evaluation.kind}-{one.label}"
        try:
            found, seconds = _judged(file, loaded, what, one, normalisation, _settings(evaluation))
        except SealRayError as error:
            outcomes.append(Outcome(file.name, what, "", "failed", 0.0, str(error)))
            continue
        held[what] = found
        status: Status = "known" if seconds is None else "computed"
        outcomes.append(Outcome(file.name, what, "", status, seconds or 0.0))
    for outcome in outcomes:
        if outcome.status == "failed":
            rich.print(f"{outcome.what}: failed: {outcome.reason}", markup=False)
    rich.print(weights_table(held, f"{file.name}: {evaluation.kind}"))
    return outcomes


def _judged(
    file: Path,
    loaded: Loaded,
    what: str,
    destination: Destination,
    normalisation: Normalisation,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], float | None]:
    """The result beside a file, and the seconds that it took; None if it was there already."""
    key = _key(what, settings, destination, normalisation, loaded.weights_sha256, [loaded.arch])
    path = file.with_name(f"{file.stem}-{what}.json")
    there = _read(path)
    if there.get("key") == key:
        return there, None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_process(device, deterministic=True, precision="fp32")
    started = time.perf_counter()
    if settings["kind"] == "finetune":
        folder = file.with_name(f"{file.stem}-{what}")
        source = source_of(file, loaded)
        computed = finetune(source, destination, normalisation, settings, device, folder)
    else:
        computed = judge(loaded.network.to(device), destination, normalisation, settings, device)
    seconds = round(time.perf_counter() - started, 3)
    body = {
        "weights": file.name,
        "arch": loaded.arch,
        "weights_sha256": loaded.weights_sha256,
        "what": what,
        "key": key,
        "settings": dict(settings),
        **made_by(device, seconds),
        "result": plain(computed.numbers),
    }
    with saving(file.parent):
        write_durably(path, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode())
    return body, seconds


def _read(path: Path) -> dict[str, Any]:
    """A result as it was written; empty when there is none that can be read."""
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) and isinstance(held.get("result"), dict) else {}


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(mode="json", exclude={"targets"})


def _key(
    what: str,
    settings: Mapping[str, Any],
    destination: Destination,
    normalisation: Normalisation,
    weights_sha256: str,
    network: Sequence[str | int],
) -> str:
    """Says by what a result is determined; equal keys have equal results."""
    dataset = destination.dataset
    body = {
        "format": FORMAT,
        "what": what,
        "settings": dict(settings),
        "data": [dataset.identity, dataset.encoding],
        "normalised_with": asdict(normalisation),
        "weights": weights_sha256,
        "network": list(network),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _destinations(evaluation: Evaluation, data: Path) -> tuple[list[Destination], list[Outcome]]:
    """The data sets that are there, and for the others why not. ConfigError for two of one name."""
    found: dict[str, Destination] = {}
    failed = []
    for wanted in dict.fromkeys(evaluation.targets):
        try:
            one = find_destination(wanted, data)
        except SealRayError as error:
            failed.append(Outcome("", f"{evaluation.kind}-{wanted}", "", "failed", 0.0, str(error)))
            continue
        if one.label in found:
            first = found[one.label].dataset.folder
            raise ConfigError(
                f"{first} and {one.dataset.folder} are both called {one.label}, as their results would be; "
                "evaluate them in storages of their own, or rename a folder"
            )
        found[one.label] = one
    return list(found.values()), failed


def _sweep_at(path: AnyPath, storage: str | None) -> SweepRuns | None:
    """The sweep whose file this is; None for anything else."""
    if not isinstance(path, Path) or not path.is_file() or not is_sweep(path):
        return None
    return prepare_sweep(load_sweep(path, stored_in(storage)))
