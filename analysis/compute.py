"""From a task to its result: what it reads, and what it keeps of what it finds."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

import torch

import seal_ray
from seal_ray.analysis.base import Result
from seal_ray.analysis.finetune import finetune
from seal_ray.analysis.inputs import InputCache, Inputs
from seal_ray.analysis.results import FOLDER, write_result
from seal_ray.analysis.scoring import Normalisation, judge
from seal_ray.analysis.tasks import Piece, verify_weights
from seal_ray.runs.checkpoint import State, weights_sha256


def work_off(piece: Piece, cache: InputCache, *, processes: int = 1) -> float:
    """Compute a piece and write its result; returns the seconds it took.

    processes: how many share this machine's memory. Raises SealRayErrors for what is wrong with the
    moment, its data or the settings.
    """
    started = time.perf_counter()
    weights = piece.moment.weights()
    verify_weights(piece, weights_sha256(weights))
    if piece.analysis is None:
        result = _evaluated(piece, weights, cache)
    else:
        settings = piece.analysis.Settings.model_validate_json(json.dumps(piece.settings))
        inputs = Inputs(piece.moment, weights, piece.epochs, piece.others, cache, processes)
        result = piece.analysis().compute(inputs, settings)
    seconds = round(time.perf_counter() - started, 3)
    made = made_by(cache.device, seconds)
    write_result(piece.moment, piece.what, {**piece.head(), **made}, result)
    return seconds


def made_by(device: torch.device, seconds: float) -> dict[str, Any]:
    """What of a result says how it was made."""
    return {"versions": versions(), "device": _device(device), "seconds": seconds}


def versions() -> dict[str, str]:
    """What a result was computed with."""
    return {"seal_ray": seal_ray.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _device(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.machine()
    return {"name": name, "threads": torch.get_num_threads()}


def _evaluated(piece: Piece, weights: State, cache: InputCache) -> Result:
    """Images are normalised as those that the network was trained on."""
    assert piece.destination is not None
    run = piece.moment.run
    trained_on = Normalisation.of_dataset(cache.data(run).dataset)
    if piece.settings["kind"] == "finetune":
        named = {"init_from": str(piece.moment.path), "init_sha256": piece.weights_sha256}
        source = cache.recipe(run).model.model_copy(update=named)
        folder = run / FOLDER / f"{piece.what}-{piece.moment.label}"
        return finetune(source, piece.destination, trained_on, piece.settings, cache.device, folder)
    network = cache.network(run, weights)
    return judge(network, piece.destination, trained_on, piece.settings, cache.device)
