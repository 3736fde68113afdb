"""A run's YAML file over the one that it names as its `base`, and so on; each with its own plugin files."""

from __future__ import annotations

from collections.abc import Sequence

from seal_ray.config.document import Document, check_kind, override, put_over, read
from seal_ray.config.plugin_files import named_files
from seal_ray.errors import ConfigError
from seal_ray.plugins import PluginFile
from seal_ray.storage.paths import AnyPath, ObjectPath, storage_path

OWN = ("base", "plugins", "name")
"""Fields of one file alone."""


def read_run_file(
    path: str | AnyPath, overrides: Sequence[str] = (), above: Sequence[AnyPath] = ()
) -> tuple[Document, list[PluginFile]]:
    """What a run's file says over what its base says, after overrides; the plugin files of all of them.

    above: the files that it is a base of. ConfigError as `read`, for a file that is no run's, and for one
    that is a base of itself.
    """
    of_own = [one for one in overrides if one.partition("=")[0].partition(".")[0].strip() in OWN]
    document = override(read(path), of_own)
    check_kind(document, path, "run")
    files = named_files(document, path)
    base = base_of(document, path)
    if base is not None:
        below, more = read_base(document, base, [*above, storage_path(path).resolve()])
        document, files = _over(document, below), [*files, *more]
    return override(document, [one for one in overrides if one not in of_own]), files


def base_of(document: Document, path: str | AnyPath) -> AnyPath | None:
    """The file that the document of the file at `path` names as its base, relative to it."""
    named = document.value.get("base")
    if named is None:
        return None
    place = document.places[("base",)]
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{place}: base: must be a run's YAML file, beside this one, not {named!r}")
    try:
        base = storage_path(named)
    except ConfigError as error:
        raise ConfigError(f"{place}: base: {error}") from None
    return base if isinstance(base, ObjectPath) else storage_path(path).parent / str(base)


def read_base(
    document: Document, base: AnyPath, above: Sequence[AnyPath]
) -> tuple[Document, list[PluginFile]]:
    """The same of the base of a document; what is wrong with it is said where it is named, too."""
    place = document.places[("base",)]
    if base.resolve() in above:
        raise ConfigError(f"{place}: base: {base} begins with this file itself; remove one of the two")
    try:
        return read_run_file(base, above=above)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{place}: base: {line}" for line in str(error).split("\n"))) from None


def _over(document: Document, base: Document) -> Document:
    value = {field: held for field, held in base.value.items() if field not in OWN}
    merged = Document(value, {**base.places, (): document.places[()]})
    for field in document.value:
        if field != "base":
            merged = put_over(merged, document, (field,))
    return merged
