"""Simulated annealing in early layers (SEAL, CVPR 2023, arXiv 2304.04858), with the paper's ablations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt, Interval

from seal_ray.methods.base import LEARN, Method, learn, method
from seal_ray.phases.edits import Reinit
from seal_ray.phases.losses import ConfidentError
from seal_ray.phases.schedule import Budget, Group, Phase, Rise, epochs_of
from seal_ray.phases.steps import NoisyGradient, RandomDirection

DECAY = {"none": 0.0, "decay": 1.0, "growth": -1.0}


@method
@dataclass(frozen=True)
class Seal(Method):
    """From generation 1 on the early layers climb the loss for `ascent_share` of the generation, at
    `ascent_rate` x the scheduled learning rate and without weight decay, while the others descend; then
    everything descends.

    ascend, head_ascends: which part climbs, and whether the classifier climbs with it (if not, it moves
    with the others). With `late` and `all` the published code lets it climb by default, so head_ascends
    true is what was published. others: what the rest does meanwhile. ascent_weight_decay: `decay` shrinks
    the ascending weights, `growth` grows them (what a negative learning rate does). forget `llf`: the late
    layers are re-initialised first. ascent_loss `confident_error`: instead of climbing the loss, the
    ascending part descends the cross entropy towards the most probable wrong class. direction, for controls:
    `random` moves the ascending part by Gaussian noise as large as its gradient; {noise: 0.5} lets it
    *descend*, at the rate of the ascent, with Gaussian noise half as large as its gradient.

    ascent_rate {rise: 0.5}: adjusted once an epoch until the training loss has risen by `rise` nats. The
    first epoch of ascent uses `start`; after each the rate is multiplied by `factor`, up to `cap`, while the
    loss has risen less, and divided by `factor` otherwise.

    rate_cooling, share_cooling: the ascent of generation g >= 1 has ascent_rate x rate_cooling^(g - 1), of
    {rise: 0.5} a target of that much less, and ascent_share x share_cooling^(g - 1), at least an epoch: the
    geometric cooling of simulated annealing (Kirkpatrick et al., Science 220, 1983). 1: never cooler, as
    published.
    """

    name: ClassVar[str] = "seal"

    ascent_share: Annotated[float, Interval(gt=0, lt=1)] = 0.25
    ascent_rate: Annotated[float, Gt(0)] | Rise = 0.01
    ascend: Literal["early", "late", "all"] = "early"
    head_ascends: bool = False
    others: Literal["descend", "freeze"] = "descend"
    ascent_weight_decay: Literal["none", "decay", "growth"] = "none"
    forget: Literal["none", "llf"] = "none"
    ascent_loss: Literal["ce", "confident_error"] = "ce"
    direction: Literal["gradient", "random"] | NoisyGradient = "gradient"
    rate_cooling: Annotated[float, Interval(gt=0, le=1)] = 1.0
    share_cooling: Annotated[float, Interval(gt=0, le=1)] = 1.0

    def phases(self, generation: int, budget: Budget) -> tuple[Phase, ...]:
        """Ascend, then relearn; generation 0 only learns."""
        if generation == 0:
            return learn(budget)
        cooled = self.share_cooling ** (generation - 1)
        share = self.ascent_share if cooled == 1 else round(self.ascent_share * cooled, 12)  # not a hair less
        ascent = max(1, epochs_of(share, budget.length, "method.ascent_share"))
        forget = Reinit("late") if self.forget == "llf" else None
        return (
            Phase("ascend", ascent, self._anneal(self.rate_cooling ** (generation - 1)), edit=forget),
            Phase("relearn", budget.length - ascent, LEARN),
        )

    def _anneal(self, temperature: float) -> tuple[Group, ...]:
        """The groups of the ascent; temperature: what its rate is multiplied by."""
        rate = self.ascent_rate
        cooled = replace(rate, rise=rate.rise * temperature) if isinstance(rate, Rise) else rate * temperature
        confident = self.ascent_loss == "confident_error"
        noisy = self.direction if isinstance(self.direction, NoisyGradient) else None

        def climbing(part: str) -> Group:
            return Group(
                part,
                lr=cooled,
                weight_decay=DECAY[self.ascent_weight_decay],
                ascend=not (confident or noisy),
                loss=ConfidentError() if confident else None,
                direction=RandomDirection() if self.direction == "random" else noisy,
            )

        def rest(part: str) -> Group:
            return Group(part, lr=0.0 if self.others == "freeze" else 1.0)

        climbs = {"early": ("early",), "late": ("late",), "all": ("early", "late")}[self.ascend]
        groups = [climbing(part) if part in climbs else rest(part) for part in ("early", "late")]
        if self.head_ascends != ("late" in climbs):
            groups.append(climbing("head") if self.head_ascends else rest("head"))
        return tuple(groups)
