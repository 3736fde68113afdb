"""The plugin files that a YAML file names, and their copies in run folders.

A file lies in the folder of the YAML that names it, or below; a run's folder gets a copy of each, which the
`job.yaml` there names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from seal_ray.config.document import Document, Keys
from seal_ray.errors import ConfigError
from seal_ray.plugins import PluginFile, using
from seal_ray.storage.files import write_durably
from seal_ray.storage.paths import AnyPath, ObjectPath, listed, storage_path, with_home

FOLDER = "plugins"
"""Where the copies lie in a run's folder."""


def named_files(document: Document, path: str | AnyPath) -> list[PluginFile]:
    """What `plugins:` at the top of the YAML file at `path` names.

    ConfigError with the place in the file for what is no file of the YAML's own folder tree, and for one that
    comes from an object store, unless this process has loaded the same code already (see `trust`).
    """
    held = document.value.get(FOLDER)
    if held is None or held == {}:  # as in the JSON of a job without any
        return []
    if not isinstance(held, list):
        where = document.places[document.given((FOLDER,))]
        raise ConfigError(f"{where}: {FOLDER}: must be a list of files, such as [./mine.py], not {held!r}")
    folder = storage_path(path).parent
    files, problems = [], []
    for i, entry in enumerate(held):
        key: Keys = (FOLDER, i)
        try:
            files.append(_below(folder, entry))
        except ConfigError as error:
            problems.append(f"{document.places[document.given(key)]}: {FOLDER}.{i}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return files


def given_files(paths: Iterable[Path]) -> list[PluginFile]:
    """The files that a person names on the command line, wherever they lie."""
    files = []
    for path in paths:
        try:
            files.append(_read(path, str(path)))
        except ConfigError as error:
            raise ConfigError(f"--plugin: {error}") from None
    return files


def by_name(files: Sequence[PluginFile]) -> dict[str, str]:
    """The code of files by their names. ConfigError for two different ones of one name."""
    first: dict[str, PluginFile] = {}
    for file in files:
        other = first.setdefault(file.name, file)
        if other.code != file.code:
            raise ConfigError(
                f"the plugin files {other.path} and {file.path} differ and have one name, as copies in a "
                "run's folder cannot; rename one"
            )
    return {name: file.code for name, file in first.items()}


def from_names(plugins: Mapping[str, str]) -> list[PluginFile]:
    """The files of which `plugins` holds the code by name."""
    return [PluginFile(name, code) for name, code in plugins.items()]


def write_copies(folder: AnyPath, plugins: Mapping[str, str]) -> None:
    """Put copies of plugin files into a run's folder."""
    for name, code in plugins.items():
        write_durably(folder / FOLDER / name, code.encode())


def trust(target: AnyPath) -> None:
    """Load the copies that runs keep in an object store: a person says to.

    target: a run, a storage with its runs, or the folder of a sweep's results, which names its runs.
    ConfigError for a folder, whose runs need no such word.
    """
    if not isinstance(target, ObjectPath):
        raise ConfigError(
            f"--trust-plugins: is for runs in an object store, and {target} is none; leave it out"
        )
    results = target / "results.json"
    if results.is_file():
        runs = json.loads(results.read_bytes())["runs"]
        places = [p for run in runs for p in listed(target.parent.parent / run["run_id"], f"{FOLDER}/*.py")]
    else:
        places = [*listed(target, f"{FOLDER}/*.py"), *listed(target, f"*/{FOLDER}/*.py")]
    for place in places:
        with using([_read(place, str(place))]):
            pass


def _below(folder: AnyPath, entry: object) -> PluginFile:
    """The file that an entry of a YAML file in `folder` names."""
    if not isinstance(entry, str) or not entry:
        raise ConfigError(f"must be a file, such as ./mine.py, not {entry!r}")
    entry = with_home(entry)
    path = PurePosixPath(entry)
    if "://" in entry or path.is_absolute():
        raise ConfigError(
            f"{entry}: must be relative to the YAML's folder, {folder}; put a copy there, or give --plugin"
        )
    if isinstance(folder, ObjectPath):
        if ".." in path.parts:
            raise ConfigError(f"{entry}: leads out of the YAML's folder, {folder}")
        file = _read(folder / entry, str(folder / entry))
        if not file.is_loaded:
            raise ConfigError(
                f"{file.path} (sha256 {file.digest[:12]}) is code from an object store, where others may "
                "have put it; read it, then give --trust-plugins"
            )
        return file
    place = Path(folder, entry).resolve()
    if not place.is_relative_to(Path(folder).resolve()):
        raise ConfigError(
            f"{entry}: leads out of the YAML's folder, {folder}; put a copy there, or give --plugin"
        )
    return _read(place, str(Path(folder, entry)))


def _read(place: AnyPath, said: str) -> PluginFile:
    if place.suffix != ".py":
        raise ConfigError(f"{said}: is no Python file; its name must end in .py")
    try:
        return PluginFile(said, place.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(f"{said}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{said}: is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{said}: cannot be read: {error.strerror or error}") from None
