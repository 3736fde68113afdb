"""What the README shows is what the code is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from seal_ray.training.loop import _epochs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def code(text: str) -> list[str]:
    """Lines without comments, indentation and blank lines."""
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_loop_shown_is_the_loop() -> None:
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "train_epoch" in b)
    source = code(inspect.getsource(_epochs))
    shown = code(block)[1:]  # the first line names the arguments plainly
    assert len(shown) <= 12
    start = source.index(shown[0])
    assert source[start : start + len(shown)] == shown


def test_every_make_target_and_file_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets
    for path in re.findall(r"`((?:jobs|seal_ray|tests)/[\w/.-]+)`", README):
        assert (ROOT / path).exists(), path
