"""What is imported when: the core needs no service, and importing does no work."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import seal_ray

ROOT = Path(__file__).parents[2]
SERVICES = {"ray", "wandb", "ffcv", "numba", "pydantic", "rich", "typer", "cv2", "sklearn"}
CORE = [
    "phases.edits",
    "training.gradients",
    "runs.lineage",
    "phases.losses",
    "methods",
    "metrics",
    "networks",
    "training.optimizer",
    "plugins",
    "training.run",
    "phases.schedule",
    "runs.checkpoint",
    "phases.steps",
    "runs.folder",
    "streams",
    "training.loop",
    "training.world",
]
EXTENDS_RAY = "seal_ray.distributed.ray_internals"
"""Its classes are Ray's with changes: importing it imports Ray, which sets a variable."""
MODULES = [module.name for module in pkgutil.walk_packages(seal_ray.__path__, "seal_ray.")]


def python(code: str) -> str:
    """What a new interpreter prints, warnings being errors."""
    command = [sys.executable, "-W", "error:::seal_ray", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    return found.stdout


def loaded_after(code: str) -> set[str]:
    out = python(f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))")
    return set(out.split())


def test_the_package_alone_is_light() -> None:
    loaded = loaded_after("import seal_ray; assert seal_ray.__version__ and seal_ray.train")
    assert not loaded & {*SERVICES, "torch", "numpy", "torchvision"}


def test_the_core_loads_no_service() -> None:
    loaded = loaded_after("\n".join(f"import seal_ray.{name}" for name in CORE))
    assert {"torch", "numpy", "seal_ray"} <= loaded
    assert not loaded & SERVICES


def test_recipes_need_pydantic_and_nothing_more() -> None:
    loaded = loaded_after("from seal_ray import Images, Recipe, Store, fit, open_store; assert callable(fit)")
    assert loaded & SERVICES == {"pydantic"}


def test_the_command_line_explains_itself_without_torch_or_ray() -> None:
    loaded = loaded_after(
        "sys.argv = ['seal-ray', '--help']\n"
        "import contextlib, io, seal_ray.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): seal_ray.cli.main()"
    )
    assert not loaded & {"torch", "ray", "wandb", "ffcv", "pydantic"}


def test_the_launch_and_the_worker_load_ray_and_wandb_only_when_they_run() -> None:
    shells = (
        "distributed.launch distributed.workers sweeps.tune distributed.session "
        "tracking.wandb cli.doctor jobs"
    )
    loaded = loaded_after("\n".join(f"import seal_ray.{name}" for name in shells.split()))
    assert not loaded & {"ray", "wandb", "ffcv", "numba"}


def test_every_public_name_is_there_and_no_other() -> None:
    for module in MODULES:
        if not module.endswith("__main__") and module != EXTENDS_RAY:
            importlib.import_module(module)  # which makes each submodule an attribute of the package
    assert dir(seal_ray) == sorted(seal_ray.__all__)
    for name in seal_ray.__all__:
        found = getattr(seal_ray, name)
        assert callable(found) or not isinstance(found, ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = seal_ray.nothing


def imported_by(module: str) -> set[str]:
    """What the statements of a module import of the package when it is imported itself.

    Not followed: what functions import that are called then, and names that a module gives on demand.
    """
    found = set()
    todo = [*ast.parse(Path(str(importlib.util.find_spec(module).origin)).read_text()).body]  # type: ignore[union-attr]
    while todo:
        statement = todo.pop()
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                todo += statement.orelse
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case ast.Import():
                found |= {alias.name for alias in statement.names}
            case ast.ImportFrom():
                names = {f"{statement.module}.{alias.name}" for alias in statement.names}
                found |= {name if name in MODULES else str(statement.module) for name in names}
            case _:
                todo += [*ast.iter_child_nodes(statement)]
    return found & {*MODULES}


def test_no_import_statement_leads_back() -> None:
    """So that any module may be imported first; importing one of a package begins with the package."""
    graph = {}
    for module in MODULES:
        needed = {name[: at.start()] for name in imported_by(module) for at in re.finditer(r"\.|$", name)}
        graph[module] = {name for name in needed & {*MODULES} if not f"{module}.".startswith(f"{name}.")}
    assert {"seal_ray.recipe", "seal_ray.analysis"} < {name for needed in graph.values() for name in needed}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names one that leads back


def test_importing_does_no_work() -> None:
    modules = [name for name in MODULES if not name.endswith("__main__") and name != EXTENDS_RAY]
    assert len(modules) > 40
    code = f"""
import importlib, json, os, sys, threading, warnings, signal
import torch, torchvision, pydantic, typer, ruamel.yaml, scipy.special
def state():
    return [
        dict(os.environ), os.getcwd(), threading.active_count(), len(warnings.filters),
        repr(signal.getsignal(signal.SIGINT)), torch.get_num_threads(), torch.get_default_dtype().itemsize,
        torch.get_rng_state().tolist()[:40], torch.are_deterministic_algorithms_enabled(),
    ]
before = state()
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps(before == state()))
"""
    assert json.loads(python(code)) is True
