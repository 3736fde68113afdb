"""Whether all hosts of a cluster see one storage and the same data: asked before anything starts."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from seal_ray.errors import ClusterError
from seal_ray.storage.files import make_folder, saving, write_durably

ANSWER_TIMEOUT = 60.0
"""Seconds that hosts get to answer."""
SHARE = "mount one file system on all (NFS, EFS, a Kubernetes volume for ReadWriteMany)"


def check_hosts(storage: str, data: Iterable[str]) -> None:
    """Ask each host that may train, under a Ray that is initialised, whether it sees this storage and data.

    storage: a folder, made if need be; data: folders of prepared data sets. What a URI names is not asked
    for, and nothing is where this host is the only one. ClusterError names the hosts where something is not
    right, CheckpointError says that nothing can be written to the storage from here.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    able = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in able if node["NodeID"] != here}
    facts = {folder: dataset_facts(folder) for folder in data if "://" not in folder}
    if not others:
        return
    asked = ray.remote(num_cpus=0, max_retries=0)(problems_here)
    with _probe(storage) as probe:
        answers = {
            asked.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                probe, facts
            ): address
            for node, address in others.items()
        }
        done, silent = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_TIMEOUT)
        problems: dict[str, list[str]] = {}
        for answer in done:
            try:
                found: list[str] = ray.get(answer)
            except ray.exceptions.RayError as error:
                found = [f"does not answer ({str(error).strip().splitlines()[-1]}); see `ray status`"]
            for problem in found:
                problems.setdefault(problem, []).append(answers[answer])
    if silent:
        problems[f"no answer within {ANSWER_TIMEOUT:.0f} s; see `ray status`"] = [
            answers[one] for one in silent
        ]
    if problems:
        raise ClusterError("\n".join(f"{', '.join(at)}: {problem}" for problem, at in problems.items()))


def problems_here(probe: tuple[str, str] | None, facts: dict[str, str]) -> list[str]:
    """What is wrong with a storage and with data sets as this host sees them.

    probe: a file in the storage, and what it holds. facts: folders of data, and what `dataset_facts` says
    of them.
    """
    problems = [] if probe is None else list(_wrong_with_storage(Path(probe[0]), probe[1]))
    for folder, wanted in facts.items():
        if (seen := dataset_facts(folder)) != wanted:
            what = "holds another data set" if seen else "is not there"
            problems.append(f"recipe.data.path: {folder} {what}; copy it there, or {SHARE}")
    return problems


def dataset_facts(folder: str) -> str:
    """What tells a prepared data set, by its description and the sizes of its files, from others; or ""."""
    try:
        text = (Path(folder) / "dataset.json").read_bytes()
        sizes = sorted((file.name, file.stat().st_size) for file in Path(folder).glob("*.beton"))
    except OSError:
        return ""
    return f"{hashlib.sha256(text).hexdigest()} {sizes}"


def _wrong_with_storage(file: Path, token: str) -> Iterator[str]:
    where = f"placement.storage: {file.parent}"
    try:
        seen = file.read_text()
    except OSError:
        seen = ""
    if seen != token:
        yield f"{where} is not the folder that the other hosts see; {SHARE}, or use an s3:// URI"
        return
    answer = file.with_name(f"{file.name}-{secrets.token_hex(4)}")
    try:
        answer.write_text(token)
        answer.unlink()
    except OSError as error:
        yield f"{where} cannot be written to ({error.strerror}); see how it is mounted, and for which user"


@contextlib.contextmanager
def _probe(storage: str) -> Iterator[tuple[str, str] | None]:
    """A file in the storage and what it holds, for the length of the block; None where it is no folder."""
    if "://" in storage:
        yield None
        return
    token = secrets.token_hex(8)
    file = Path(storage) / f".probe-{token}"
    with saving(file.parent):
        make_folder(file.parent)
        write_durably(file, token.encode())
    try:
        yield str(file), token
    finally:
        file.unlink(missing_ok=True)
