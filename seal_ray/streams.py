"""Stateless randomness: every draw is a pure function of (seed, purpose, position)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one purpose at one position, such as ("order", generation, epoch).

    Never depends on a rank or on earlier draws, so nothing about randomness needs saving. Always on the
    CPU, because the generators of other devices give other numbers.
    """
    import torch

    text = "/".join([str(seed), purpose, *map(str, position)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
