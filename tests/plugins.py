"""Plugin files for tests, and what names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from seal_ray.testing import TINY
from tests.documents import DOCS, blocks


def of_docs(decorator: str) -> str:
    """The plugin file that docs/plugins.md shows."""
    [text] = [one.text for one in blocks(DOCS / "plugins.md") if f"@seal_ray.{decorator}" in one.text]
    return text


def method_of_docs() -> str:
    """The method that docs/plugins.md shows."""
    return of_docs("method")


FOCAL = '''"""The focal loss (Lin et al., arXiv 1708.02002)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge

import seal_ray


@seal_ray.loss
@dataclass(frozen=True)
class Focal:
    """Cross entropy, weighted by (1 - p)^gamma."""

    name: ClassVar[str] = "focal"
    gamma: Annotated[float, Ge(0)] = 2.0

    def __call__(self, logits, labels):
        log = logits.log_softmax(dim=1)
        target = labels if labels.ndim == 2 else torch.eye(logits.shape[1])[labels]
        return -((1 - log.exp()) ** self.gamma * log * target).sum(dim=1).mean()
'''
"""A plugin file with a loss."""


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


BROKEN = '''"""A method whose second epoch fails."""

from dataclasses import dataclass
from typing import ClassVar

import seal_ray
from seal_ray import LEARN, Method, Phase


@dataclass(frozen=True)
class Missing:
    """Looks for what is not there."""

    def __call__(self, network, context):
        raise KeyError("layer9")


@seal_ray.method
@dataclass(frozen=True)
class Broken(Method):
    """Fails (nowhere, 2024)."""

    name: ClassVar[str] = "broken"

    def phases(self, generation, budget):
        return (Phase("learn", budget.length, LEARN, edit=Missing() if generation else None),)
'''


def write_broken(folder: Path, data: Path, **more: Any) -> Path:
    """A job file, `broken.yaml`, of a run of two epochs whose second fails, and its plugin file."""
    (folder / "broken.py").write_text(BROKEN)
    recipe = {
        "data": {"path": str(data)},
        "model": {"arch": "resnet18", "width": 4},
        "method": "broken",
        "budget": {"epochs": 2, "generation_length": 1},
    }
    (folder / "broken.yaml").write_text(
        yaml.safe_dump({"plugins": ["./broken.py"], "recipe": recipe, **more})
    )
    return folder / "broken.yaml"
