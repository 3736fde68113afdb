"""Plugin files for tests, and what names them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from seal_ray.testing import TINY

README = Path(__file__).parents[1] / "README.md"


def shrink_and_perturb() -> str:
    """The plugin file with a method that the README shows."""
    return _shown("@seal_ray.method")


def effective_rank() -> str:
    """The plugin file with an analysis that the README shows."""
    return _shown("@seal_ray.analysis")


def _shown(said: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [block] = [block for block in blocks if said in block]
    return str(block)


def plain_method(name: str = "mine", cls: str = "Mine", body: str = "return learn(budget)") -> str:
    """A plugin file with a method of this name, class and `phases`."""
    return f'''"""A method for tests (nowhere, 2024)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

import seal_ray
from seal_ray import LEARN, Method, Phase, Reinit, learn


@seal_ray.method
@dataclass(frozen=True)
class {cls}(Method):
    """What it does.

    And more of it.
    """

    name: ClassVar[str] = "{name}"
    strength: Annotated[float, Gt(0)] = 0.5

    def phases(self, generation, budget):
        {body}
'''


def write_job(path: Path, method: Any = "mine", plugins: Any = ("./mine.py",), **more: Any) -> Path:
    """A job file with plugin files, of a tiny run."""
    fields = {"recipe": {**TINY, "method": method}, **more}
    named = {} if plugins is None else {"plugins": list(plugins) if isinstance(plugins, tuple) else plugins}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**named, **fields}, sort_keys=False))
    return path
