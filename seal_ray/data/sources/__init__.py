"""The data sets that can be prepared, in the order in which they are listed; `registry` has the door."""

# isort: off
from seal_ray.data.sources import tiny_imagenet, builtin, folder, transfer
from seal_ray.data.sources.registry import (
    OPTIONS,
    SOURCES,
    SourceInfo,
    check_options,
    open_source,
    required,
    source,
)

__all__ = [
    "OPTIONS",
    "SOURCES",
    "SourceInfo",
    "builtin",
    "check_options",
    "folder",
    "open_source",
    "required",
    "source",
    "tiny_imagenet",
    "transfer",
]
