"""Code that pages quote is what the source does."""

from __future__ import annotations

import inspect

import pytest

from seal_ray.methods import seal
from seal_ray.methods.seal import Seal
from seal_ray.phases.schedule import Budget
from seal_ray.training.loop import _epochs
from tests.documents import PAGES, ROOT, blocks

QUOTES = {block.value: block.text for page in PAGES for block in blocks(page) if block.mark == "quotes"}


def code(text: str) -> list[str]:
    """Lines without comments, indentation and blank lines."""
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_what_is_quoted_is_known() -> None:
    assert QUOTES.keys() == {"seal_ray/training/loop.py", "seal_ray/methods/seal.py"}
    assert all((ROOT / path).is_file() for path in QUOTES)


def test_the_loop_shown_is_the_loop() -> None:
    source = code(inspect.getsource(_epochs))
    shown = code(QUOTES["seal_ray/training/loop.py"])[1:]  # the first line names the arguments plainly
    assert len(shown) <= 12
    start = source.index(shown[0])
    assert source[start : start + len(shown)] == shown


@pytest.mark.parametrize("generation", [0, 1, 2])
@pytest.mark.parametrize("method", [Seal(), Seal(ascent_share=0.5, ascent_rate=0.3)])
def test_the_seal_shown_has_the_phases_of_seal(method: Seal, generation: int) -> None:
    names = dict(vars(seal))
    exec(QUOTES["seal_ray/methods/seal.py"], names)
    budget = Budget(24, 8)
    assert names["phases"](method, generation, budget) == method.phases(generation, budget)
