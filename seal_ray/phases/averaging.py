"""Averages of a run's weights, as small frozen values; `seal_ray.training.averaging` keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

from annotated_types import Interval


@dataclass(frozen=True)
class Averaging:
    """No average. Others keep one of the parameters beside training, which it does not change.

    It starts anew with each generation: the weights of a relearned network and those from before it forgot
    lie in different valleys, and their mean in neither.
    """

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class Ema(Averaging):
    """Exponential moving average a of the weights w: a <- decay a + (1 - decay) w after each step.

    It starts with the weights that a generation begins with, after its edit. Source: as
    torch.optim.swa_utils.get_ema_multi_avg_fn; Polyak and Juditsky, SIAM J. Control Optim. 30 (1992).
    """

    name: ClassVar[str] = "ema"

    decay: Annotated[float, Interval(gt=0, lt=1)] = 0.999


@dataclass(frozen=True)
class Swa(Averaging):
    """Stochastic weight averaging: the mean of the weights at the end of each of a generation's last epochs.

    share: of a generation, in whole epochs, at least 1. The learning rate stays as it is scheduled; the paper
    keeps it constant then. Source: Izmailov et al., UAI 2018, arXiv 1803.05407.
    """

    name: ClassVar[str] = "swa"

    share: Annotated[float, Interval(gt=0, le=1)] = 0.25

    def count(self, epoch: int, length: int) -> int:
        """How many epochs are averaged after `epoch` (0-based) of a generation of `length`; 0: none yet."""
        last = max(1, math.floor(Fraction(str(self.share)) * length + Fraction(1, 2)))
        return max(0, epoch + 1 - (length - last))


AVERAGINGS: Mapping[str, type[Averaging]] = {kind.name: kind for kind in (Averaging, Ema, Swa)}
"""What recipes may name."""
