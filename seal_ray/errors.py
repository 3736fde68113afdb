"""Errors a user can cause. Each says what is wrong, where, and what to do.

Anything else that escapes from seal_ray is a bug in seal_ray.
"""


class SealRayError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback."""


class ConfigError(SealRayError):
    """A recipe, placement or command-line option that cannot be used."""


class DataError(SealRayError):
    """A data set that is missing, incomplete, damaged or not what the recipe says."""


class CheckpointError(SealRayError):
    """A run folder from which nothing usable can be read, or that belongs to someone else."""


class StorageError(SealRayError):
    """An object store that cannot be reached, or refuses; what was read or written may be all right."""


class ClusterError(SealRayError):
    """A Ray cluster that cannot be reached or cannot run what was asked."""


def in_a_line(error: BaseException) -> str:
    """What a user caused in its words; of any other exception the kind and the first line of what it says."""
    said = str(error).strip()
    if isinstance(error, SealRayError):
        return said
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


class SealRayWarning(UserWarning):
    """Something a user should know of that does not stop the run."""


class Diverged(SealRayError):  # noqa: N818 - an outcome of training, named as the field names it
    """The training loss became non-finite. The run ends; the last checkpoint stays."""
