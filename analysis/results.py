"""What analyses write beside a run: `<run>/analysis/<what>-gGGG-<moment>.json`, arrays and a picture.

The .json is written last, so that where it is, the others are. Arrays need no unpickling:
`numpy.load(path, allow_pickle=False)`.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seal_ray.analysis.base import Result
from seal_ray.analysis.moments import Moment
from seal_ray.errors import CheckpointError
from seal_ray.storage.files import saving, write_durably
from seal_ray.storage.paths import AnyPath

FOLDER = "analysis"


def result_path(moment: Moment, what: str, suffix: str = ".json") -> AnyPath:
    """Where a result lies."""
    return moment.run / FOLDER / f"{what}-{moment.label}{suffix}"


def read_result(moment: Moment, what: str) -> dict[str, Any] | None:
    """A result as it was written; None when there is none that can be read."""
    try:
        held = json.loads(result_path(moment, what).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(held, dict) and isinstance(held.get("result"), dict)
    return held if whole and all(path.exists() for path in _files(moment, what, held)) else None


def read_arrays(moment: Moment, what: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a result. CheckpointError when they are damaged."""
    path = result_path(moment, what, ".npz")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            return dict(held)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"{path}: damaged ({type(error).__name__}); remove it and analyse again"
        raise CheckpointError(problem) from None


def write_result(moment: Moment, what: str, head: Mapping[str, Any], result: Result) -> None:
    """Write a result, as a whole or not at all. CheckpointError when the storage does not take it."""
    files = {}
    if result.arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **dict(result.arrays))  # type: ignore[arg-type]
        files[".npz"] = buffer.getvalue()
    if result.picture is not None:
        files[".png"] = result.picture
    _write(moment, what, files, {**head, "files": sorted(files), "result": plain(result.numbers)})


def copy_result(source: Moment, moment: Moment, what: str, head: Mapping[str, Any]) -> None:
    """Give `moment` the result of `source`, whose weights are the same. CheckpointError as write_result."""
    held = read_result(source, what)
    if held is None:
        raise CheckpointError(f"{result_path(source, what)}: is gone; analyse again")
    files = {path.suffix: path.read_bytes() for path in _files(source, what, held)}
    _write(moment, what, files, {**held, **head, "copied_from": f"{source.run.name}/{source.label}"})


def _write(moment: Moment, what: str, files: Mapping[str, bytes], body: Mapping[str, Any]) -> None:
    with saving(moment.run):
        for suffix, data in files.items():
            write_durably(result_path(moment, what, suffix), data)
        text = json.dumps(body, indent=1, allow_nan=False) + "\n"
        write_durably(result_path(moment, what), text.encode())


def _files(moment: Moment, what: str, held: Mapping[str, Any]) -> list[AnyPath]:
    return [result_path(moment, what, suffix) for suffix in held.get("files", ())]


def plain(value: Any) -> Any:
    """Nested mappings and sequences as JSON holds them; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
