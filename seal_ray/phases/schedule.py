"""Where training is and what happens there: pure arithmetic, no torch.

Units: an epoch is one pass over the training images, 0-based inside its generation. Learning rates are
per optimizer step. Shares are fractions of a generation, in (0, 1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from seal_ray.errors import ConfigError
from seal_ray.phases.losses import CrossEntropy, takes_partners
from seal_ray.phases.steps import Descend

if TYPE_CHECKING:
    from seal_ray.networks import Parts
    from seal_ray.phases.edits import Edit
    from seal_ray.phases.losses import Loss, RecipeLoss
    from seal_ray.phases.steps import Direction, Step

Row = Mapping[str, Any]
"""One epoch's metrics, as a line of metrics.jsonl."""


@dataclass(frozen=True)
class Budget:
    """How long a run trains: `epochs` in all, in generations of `generation_length` epochs."""

    epochs: int
    generation_length: int

    def __post_init__(self) -> None:
        if self.generation_length < 1 or self.epochs < 1 or self.epochs % self.generation_length:
            raise ConfigError(
                f"budget: {self.epochs} epochs are not whole generations of {self.generation_length}; "
                "choose epochs as a multiple of generation_length"
            )

    @property
    def length(self) -> int:
        """Epochs in one generation."""
        return self.generation_length

    @property
    def generations(self) -> int:
        """Number of generations, the first (in which nothing is forgotten) included."""
        return self.epochs // self.generation_length


@dataclass(frozen=True, order=True)
class Position:
    """An epoch boundary or an epoch: `epoch` counts from 0 inside `generation`."""

    generation: int
    epoch: int

    def global_epoch(self, budget: Budget) -> int:
        """Generation x generation_length + epoch."""
        return self.generation * budget.length + self.epoch

    def next(self, budget: Budget) -> Position:
        """The epoch after this one."""
        if self.epoch + 1 < budget.length:
            return Position(self.generation, self.epoch + 1)
        return Position(self.generation + 1, 0)


@dataclass(frozen=True)
class Rise:
    """An ascent rate that is adjusted once an epoch until the training loss has risen by `rise` nats.

    The first ascent epoch uses `start`. After each ascent epoch the rate is multiplied by `factor` (up to
    `cap`) while the loss is less than `rise` above the last epoch before the ascent, and divided by
    `factor` otherwise. Says "forget this much" independently of the length of a run, the batch size and
    the learning rate, where a fixed rate does not carry over.
    """

    rise: Annotated[float, Gt(0)]
    start: Annotated[float, Gt(0)] = 0.01
    factor: Annotated[float, Gt(1)] = 2.0
    cap: Annotated[float, Gt(0)] = 1.0

    def rate(self, reference: float, losses: Sequence[float]) -> float:
        """The rate after ascent epochs that ended with training `losses` (nats), from `reference` on."""
        rate = min(self.start, self.cap)
        for loss in losses:
            rate = min(rate * self.factor, self.cap) if loss - reference < self.rise else rate / self.factor
        return rate


@dataclass(frozen=True)
class Group:
    """How one part of the network moves during a phase. A part without a group, or at lr 0, is frozen.

    Groups may overlap; a parameter belongs to the most specific one that holds it: a stage name before
    `head`, before `early` and `late`, before `all`.
    """

    part: str
    lr: float | Rise = 1.0  # multiple of the scheduled learning rate
    weight_decay: float = 1.0  # multiple of the configured one
    ascend: bool = False  # climb the loss instead of descending it
    loss: Loss | None = None  # another loss for this part
    direction: Direction | None = None  # what its gradient becomes before the update; None: as it is

    @property
    def forgets(self) -> bool:
        """Whether it moves otherwise than down the loss of the phase."""
        return self.ascend or self.loss is not None or self.direction is not None


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs whose groups do not change. The edit happens before its first step."""

    name: str
    epochs: int
    groups: tuple[Group, ...]
    edit: Edit | None = None
    loss: Loss = CrossEntropy()
    step: Step = Descend()
    fresh: bool = True  # momentum starts anew with this phase
    cycle: Literal["generation", "budget"] = "generation"  # what one learning-rate schedule spans

    @property
    def ascends(self) -> bool:
        """Whether something is being forgotten by gradient steps during this phase."""
        return any(group.forgets for group in self.groups)

    @property
    def rise(self) -> Rise | None:
        """The measured rate of a group of it; None where every rate is fixed."""
        return next((group.lr for group in self.groups if isinstance(group.lr, Rise)), None)

    def passes(self, recipe_loss: RecipeLoss) -> int:
        """How often as many images as a batch has pass through the network in a step: its compute.

        A teacher's pass, without backward, is not counted.
        """
        own: int = getattr(self.step, "passes", 1)
        return 2 * own if takes_partners(recipe_loss) else own


@dataclass(frozen=True)
class Schedule:
    """Learning rate over one cycle (a generation, or the whole budget): linear warm-up, then decay.

    cosine: lr/2 * (1 + cos(pi * (e - w) / (n - w))); step: x0.1 at n/2 and again at 3n/4; constant.
    e is the epoch in the cycle, n its length, w = `warmup_share` of n in epochs, 0 where n is 1; in the
    warm-up the rate is lr * (e + 1) / w. Source: SEAL's published training code (restarted every generation).
    """

    name: Literal["cosine", "step", "constant"] = "cosine"
    lr: Annotated[float, Gt(0)] = 0.1
    warmup_share: Annotated[float, Ge(0)] = 0.125

    def rate(self, epoch: int, length: int) -> float:
        """Learning rate of `epoch` (0-based) in a cycle of `length` epochs; ConfigError as epochs_of."""
        alone = length == 1 and self.warmup_share < 1
        warmup = 0 if alone else epochs_of(self.warmup_share, length, "optimizer.warmup_share")
        if epoch < warmup:
            return self.lr * (epoch + 1) / warmup
        if self.name == "cosine":
            return self.lr / 2 * (1 + math.cos(math.pi * (epoch - warmup) / (length - warmup)))
        if self.name == "step":
            return self.lr * 0.1 ** ((2 * epoch >= length) + (4 * epoch >= 3 * length))
        return self.lr


def epochs_of(share: float, length: int, field: str) -> int:
    """`share` of `length` in whole epochs: rounded half up, at least 1 when above 0.

    Computed in exact decimals, so 0.125 of 4 is half an epoch and not a hair less. ConfigError when it
    would leave no epoch of the generation for anything else.
    """
    if share == 0:
        return 0
    whole = max(1, math.floor(Fraction(str(share)) * length + Fraction(1, 2)))
    if length == 1 and share < 1:
        raise ConfigError(
            f"{field}: {share:g} of one epoch is rounded up to one, which leaves nothing for the rest; a "
            "generation of it needs two, see budget.generation_length"
        )
    if whole >= length:
        raise ConfigError(
            f"{field}: {share:g} of {length} epochs is {whole}, which leaves nothing of them for the rest; "
            "lower the share or lengthen the generation"
        )
    return whole


def learning_rate(schedule: Schedule, phase: Phase, position: Position, budget: Budget) -> float:
    """The scheduled learning rate of the epoch at `position`, before each group's multiple."""
    if phase.cycle == "budget":
        return schedule.rate(position.global_epoch(budget), budget.epochs)
    return schedule.rate(position.epoch, budget.length)


def learning_rates(schedule: Schedule, phase: Phase, first: Position, budget: Budget) -> tuple[float, ...]:
    """The `learning_rate` of each epoch of a phase that begins at `first`."""
    whole = phase.cycle == "budget"
    start = first.global_epoch(budget) if whole else first.epoch
    return _cycle(schedule, budget.epochs if whole else budget.length)[start : start + phase.epochs]


@functools.lru_cache(maxsize=256)
def _cycle(schedule: Schedule, length: int) -> tuple[float, ...]:
    """The rates of a whole cycle; the runs of a sweep have few."""
    return tuple(schedule.rate(epoch, length) for epoch in range(length))


def group_rate(group: Group, rows: Sequence[Row], phase_epoch: int) -> float:
    """The group's multiple of the scheduled rate in epoch `phase_epoch` of its phase, sign left out.

    rows: the metrics of every epoch before this one, oldest first; only a Rise reads them.
    """
    if not isinstance(group.lr, Rise):
        return group.lr
    losses = [row["train_loss"] for row in rows]
    before = len(losses) - phase_epoch
    assert before > 0, "an ascent follows at least one epoch of descent"
    return group.lr.rate(losses[before - 1], losses[before:])


@dataclass(frozen=True)
class MissedRise:
    """An ascent in which the loss rose by `reached` nats at most, less than half of its target.

    epochs: trained by its end.
    """

    generation: int
    epochs: int
    target: float
    reached: float


def first_missed_rise(generations: Iterable[Sequence[Phase]], rows: Sequence[Row]) -> MissedRise | None:
    """The first ascent of a run's `generations` that has ended and missed its Rise by more than half.

    Of its highest training loss over that of the last epoch before it. rows: of every epoch so far.
    """
    end = 0
    for generation, phases in enumerate(generations):
        for phase in phases:
            start, end = end, end + phase.epochs
            if end > len(rows):
                return None
            if phase.rise is None:
                continue
            reached = max(row["train_loss"] for row in rows[start:end]) - rows[start - 1]["train_loss"]
            if reached < phase.rise.rise / 2:
                return MissedRise(generation, end, phase.rise.rise, reached)
    return None


def owner(groups: Sequence[Group], parts: Parts, stage: str) -> int | None:
    """Index of the group that moves a stage: the most specific one that holds it; None when frozen."""
    breadth = {"all": 3, "early": 2, "late": 2, "head": 1}
    holding = [i for i, group in enumerate(groups) if stage in parts.stages_of(group.part)]
    if not holding:
        return None
    best = min(holding, key=lambda i: breadth.get(groups[i].part, 0))
    return None if groups[best].lr == 0 else best


def first_epochs(phases: Sequence[Phase]) -> tuple[int, ...]:
    """The first epoch (0-based in the generation) of each phase."""
    starts, start = [], 0
    for phase in phases:
        starts.append(start)
        start += phase.epochs
    return tuple(starts)


def moments_of(phases: Sequence[Phase], generation: int) -> tuple[str, ...]:
    """The named moments of a generation with these phases, in the order in which they come."""
    reached = {
        "init": generation == 0,
        "forgotten": phases[0].edit is not None,
        "ascended": any(phase.ascends for phase in phases),
        "relearned": True,
    }
    return tuple(name for name, comes in reached.items() if comes)
