"""From a task to its result: what it reads, and what it keeps of what it finds."""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel

import seal_ray
from seal_ray.analysis.base import Analysis, Result
from seal_ray.analysis.finetune import finetune
from seal_ray.analysis.inputs import InputCache, Inputs
from seal_ray.analysis.scoring import Normalisation, score
from seal_ray.analysis.tasks import RESULTS, Task, plain, write_result
from seal_ray.errors import CheckpointError, SealRayError
from seal_ray.plugins import source_digest
from seal_ray.recipe import check_images
from seal_ray.runs.checkpoint import State, weights_sha256


class AnalysisFailed(SealRayError):  # noqa: N818 - what happened, as `Diverged`
    """An analysis of a plugin file that raised, or whose result JSON does not hold."""


def compute_task(task: Task, cache: InputCache, *, processes: int = 1) -> float:
    """Compute a task and write its result; returns the seconds it took.

    processes: how many share this machine's memory. Raises SealRayErrors for what is wrong with the
    moment, its data or the settings.
    """
    started = time.perf_counter()
    made: dict[str, Any] = {}
    weights = task.moment.weights()
    if weights_sha256(weights) != task.weights_sha256:
        raise CheckpointError(f"{task.moment.path}: has changed since the analysis began; analyse again")
    if task.analysis is None:
        result = _evaluated(task, weights, cache)
    else:
        settings = task.analysis.Settings.model_validate_json(json.dumps(task.settings))
        weights = cache.in_order(task.moment.run, weights)
        inputs = Inputs(task.moment, weights, task.epochs, task.others, cache, processes)
        if source_digest(task.analysis) is None:
            result = task.analysis().compute(inputs, settings)
        else:
            result, made["scalars"] = computed_elsewhere(task.analysis, inputs, settings)
    seconds = round(time.perf_counter() - started, 3)
    made |= made_by(cache.device, seconds)
    write_result(task.moment, task.what, {**task.head(), **made}, result)
    return seconds


def computed_elsewhere(
    kind: type[Analysis], inputs: Inputs, settings: BaseModel
) -> tuple[Result, Mapping[str, float | None]]:
    """The result and the scalars of an analysis that is not this package's.

    The scalars are kept with the result, so that a report needs none of its code. AnalysisFailed says where
    it raised, and what of its numbers JSON does not hold.
    """
    try:
        result = kind().compute(inputs, settings)
        numbers = json.loads(json.dumps(plain(result.numbers)))
        scalars = {str(name): None if v is None else float(v) for name, v in kind().scalars(numbers).items()}
    except SealRayError:
        raise
    except Exception as error:
        file = sys.modules[kind.__module__].__file__
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f"{file}:{lines[-1]}" if lines else file
        raise AnalysisFailed(f"{kind.name}: {where}: {type(error).__name__}: {error}") from error
    return result, plain(scalars)


def made_by(device: torch.device, seconds: float) -> dict[str, Any]:
    """What of a result says how it was made."""
    versions = {"seal_ray": seal_ray.__version__, "torch": torch.__version__}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "versions": {**versions, "python": platform.python_version()},
        "device": {"name": name, "threads": torch.get_num_threads()},
        "seconds": seconds,
    }


def _evaluated(task: Task, weights: State, cache: InputCache) -> Result:
    """Images are normalised as those that the network was trained on."""
    assert task.destination is not None
    run = task.moment.run
    trained_on = Normalisation.of_dataset(cache.data(run).dataset)
    if task.settings["kind"] == "finetune":
        named = {"init_from": str(task.moment.path), "init_sha256": task.weights_sha256}
        source = cache.recipe(run).model.model_copy(update=named)
        folder = run / RESULTS / f"{task.what}-{task.moment.label}"
        return finetune(source, task.destination, trained_on, task.settings, cache.device, folder)
    check_images(cache.recipe(run).model, task.destination.dataset.size)
    network = cache.network(run, weights)
    return score(network, task.destination, trained_on, task.settings, cache.device)
