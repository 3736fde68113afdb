"""Work that can be sent to a Ray cluster: what a job does, its name, and the files that it needs.

What is sent is this package as it is here, so that the cluster runs the same code and needs only its
dependencies, and the YAML files with the plugin files that they name, each at its place below the working
directory. Nothing else is: data and storage are named by paths that the cluster's hosts see, keys and tokens
are the cluster's own.

The same work has the same name, `<name>-<8 hex digits>`: of what is computed and where it is stored. The
run id would do as well, but needs the data, which may be on the cluster only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seal_ray.config.document import override, read, stored_in
from seal_ray.config.plugin_files import FOLDER
from seal_ray.errors import ConfigError
from seal_ray.recipe import Job, load_job
from seal_ray.storage.paths import AnyPath, ObjectPath, storage_path
from seal_ray.sweeps.file import load_sweep

Kind = Literal["train", "sweep", "analyze", "transfer", "fewshot"]

LARGEST = 100 * 2**20
"""Bytes that are sent at most; the head keeps them in memory."""


@dataclass(frozen=True)
class Work:
    """What a job does: `python -m seal_ray KIND ARGUMENTS`."""

    kind: Kind
    name: str  # the same for the same work; the submission ids begin with it
    files: tuple[Path, ...]  # the YAML file and what it refers to, below the working directory
    arguments: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The command. `exec` leaves no shell between Ray, which sends signals, and the driver."""
        return shlex.join(["exec", "python", "-m", "seal_ray", self.kind, *self.arguments])


def read_work(
    kind: Kind,
    file: Path,
    overrides: Sequence[str] = (),
    options: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> Work:
    """The training that a YAML file describes, after overrides; options are those of `seal-ray KIND`.

    plugins: files of code beside those that the YAML names; all of them are sent. ConfigError for
    whatever is wrong with the file, for one outside the working directory, and for paths of data or storage
    that are relative: nobody would find again what is stored in a job's own folder.
    """
    if kind == "train":
        job = load_job(file, overrides, plugins)
        name, jobs, rest = job.name, [job], None
    else:
        sweep = load_sweep(file, overrides, plugins)
        name, jobs = sweep.name, [run.job for run in sweep.runs]
        rest = sweep.early_stopping and sweep.early_stopping.model_dump()
    sent = tuple(_below_here(one) for one in [*_files_of(file, overrides), *plugins])
    _check_paths(file, jobs)
    recipes = [one.recipe.model_dump(mode="json") for one in jobs]
    said = [kind, jobs[0].placement.storage, recipes, rest]
    said += [jobs[0].plugins] if jobs[0].plugins else []
    assignments = [text for assignment in overrides for text in ("--set", assignment)]
    code = [text for one in plugins for text in ("--plugin", str(_below_here(one)))]
    arguments = (str(sent[0]), *assignments, *code, *options, "--address", "auto")
    return Work(kind, _name(name, kind, said), sent, arguments)


def read_analysis(kind: Kind, target: AnyPath, options: Mapping[str, Sequence[str]]) -> Work:
    """The analysis, transfer or few-shot of a sweep, by its YAML file, or of a folder that all hosts find.

    options: of `seal-ray KIND`, each with the words that follow it, once for each time it is given; none for
    a flag.
    ConfigError as read_work, and for an option that a job cannot have.
    """
    for option in ("--address", "--in-process", "--weights", "--arch", "--trained-on"):
        if option in options:
            raise ConfigError(f"{option}: is not for a job on a cluster; leave it out")
    given = {option: list(values) for option, values in options.items()}
    files: list[Path] = []
    if isinstance(target, Path) and target.is_file():
        overrides = stored_in(*given.get("--storage", [None]))
        files = _files_of(target, overrides)
        jobs = [run.job for run in load_sweep(target, overrides).runs]
        _check_paths(target, jobs)
        what: Any = [jobs[0].placement.storage, [one.recipe.model_dump(mode="json") for one in jobs]]
    elif _found_anywhere(str(target)):
        what = str(target)
    else:
        raise ConfigError(
            f"{target}: is no file here, and as a folder on the cluster it must be absolute, such as "
            f"/mnt/{target.name}"
        )
    if evaluation := [Path(value) for value in given.get("--evaluation", ())]:
        files += evaluation
        given["--evaluation"] = [str(_below_here(one)) for one in evaluation]
    targets = ",".join([*given.get("--to", []), *given.get("--on", [])]).split(",")
    by_name = kind != "analyze" and not all(map(_found_anywhere, targets))
    if by_name and not all(map(_found_anywhere, given.get("--data", ["data"]))):
        raise ConfigError(
            "--data: name the folder of the prepared data sets as the cluster's hosts find it, such as "
            "--data /mnt/data"
        )
    sent = tuple(_below_here(one) for one in files)
    words = [
        word
        for option, values in sorted(given.items())
        for word in ([w for value in values for w in (option, value)] or [option])
    ]
    texts = [one.read_text() for one in evaluation]
    arguments = (str(target if what == str(target) else sent[0]), *words, "--address", "auto")
    return Work(kind, _name(f"{kind}-{target.stem}", kind, [kind, what, words, texts]), sent, arguments)


def _files_of(file: Path, overrides: Sequence[str]) -> list[Path]:
    """The file of a run or a sweep, and what it refers to: a sweep's base, and the plugin files of both."""
    held = override(read(file), overrides).value
    base = held.get("base")
    if base is not None and Path(base).is_absolute():
        raise ConfigError(f"{file}: base: {base} is absolute; to be sent it must be relative to {file}")
    code = [file.parent / entry for entry in held.get(FOLDER, ())]
    return [file, *code] if base is None else [file, *_files_of(file.parent / base, ()), *code]


def _name(name: str, kind: Kind, said: Any) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:40].strip("-.") or kind
    return f"{readable}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]}"


def contents(work: Work) -> dict[Path, Path]:
    """What is sent: for each path in the job's folder the file here. ConfigError when it is too much."""
    package = Path(__file__).parent
    found = {file: file for file in work.files}
    for folder in (package, package / "analysis"):  # a link in a checkout, which rglob does not follow
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        found |= {p.relative_to(package.parent): p for p in files if "__pycache__" not in p.parts}
    sizes = {source: source.stat().st_size for source in found.values()}
    if sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=lambda source: sizes[source])
        raise ConfigError(
            f"{sum(sizes.values()) / 2**20:,.0f} MiB would be sent, {LARGEST // 2**20} are the limit; the "
            f"largest file is {largest}: move what is no code out of {package}"
        )
    return found


def _below_here(file: Path) -> Path:
    """The file's place below the working directory, which it has on the cluster too."""
    here = Path.cwd()
    full = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow links
    if not full.is_relative_to(here):
        raise ConfigError(
            f"{file}: is outside the working directory {here}; files are sent by their place below it, so "
            "give the command in a folder above all of them, or copy the file"
        )
    return full.relative_to(here)


def _check_paths(file: Path, jobs: Sequence[Job]) -> None:
    fields = [("placement.storage", jobs[0].placement.storage)]
    fields += [("recipe.data.path", path) for path in dict.fromkeys(one.recipe.data.path for one in jobs)]
    starts = dict.fromkeys(one.recipe.model.init_from for one in jobs)
    fields += [("recipe.model.init_from", path) for path in starts if path is not None]
    problems = [
        f"{file}: {field}: {path} is relative, on a cluster to a folder that is removed with the job; give "
        f"the path under which all its hosts find it, such as --set {field}=/mnt/{Path(path).name}"
        for field, path in fields
        if not _found_anywhere(path)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _found_anywhere(path: str) -> bool:
    """Whether a path means the same wherever a job runs."""
    place = storage_path(path)
    return isinstance(place, ObjectPath) or place.is_absolute()
