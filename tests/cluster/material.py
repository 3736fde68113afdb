"""What the tests of cluster/ read: the files, the Pods in them, and the commands in them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from seal_ray.recipe import load_job
from seal_ray.sweeps.file import is_sweep, load_sweep

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
MANIFESTS = ("cluster.yaml", "run.yaml", "sweep.yaml")
READMES = sorted(CLUSTER.glob("*/README.md"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def manifest(name: str) -> dict[str, Any]:
    (found,) = documents(KUBERAY / name)
    return found


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The spec of every kind of Pod: the head's first."""
    spec = cluster_spec(document)
    return [one["template"]["spec"] for one in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from walk(one)


def version(package: str) -> str:
    """The version that constraints.txt pins."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def our_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def image_environment() -> dict[str, str]:
    """What the Dockerfile's last ENV sets, and PATH as it is in the base."""
    line = re.findall(r"^ENV ((?:.*\\\n)*.*)$", (CLUSTER / "docker/Dockerfile").read_text(), re.MULTILINE)[-1]
    return dict(word.split("=", 1) for word in shlex.split(line.replace("\\\n", " ")))


def tool(name: str) -> str:
    """A program of a development dependency."""
    return str(Path(sys.executable).parent / name)


def succeeds(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def shell_blocks(readme: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", readme.read_text(), re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The simple commands of a script, without assignments and redirections; what is quoted is one word."""
    lexer = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, "#"
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("<>"):
            next(lexer)
        elif set(word) <= set(";&|\n"):
            found.append([])
        elif found[-1] or not re.match(r"\w+=", word):
            found[-1].append(word)
    return [words for words in found if words]


def check_job(words: list[str]) -> None:
    """`python -m seal_ray train FILE ...` is a command of seal-ray whose file is valid, options included."""
    kind, file = words[3], ROOT / words[4]
    assert words[:3] == ["python", "-m", "seal_ray"]
    check_seal_ray(words[3:])
    overrides = [value for option, value in pairwise(words) if option == "--set"]
    assert is_sweep(file) == (kind == "sweep")
    if kind == "sweep":
        load_sweep(file, overrides)
    else:
        load_job(file, overrides)


def check_seal_ray(words: list[str]) -> None:
    import typer.main

    from seal_ray.cli import app

    parse(typer.main.get_command(app), words)


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    parse(cli, words)


def parse(command: Any, words: list[str]) -> None:
    """Let a command line parse its words, without running it; raises what click raises."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))
