from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_ray.errors import ConfigError
from seal_ray.methods import METHODS
from seal_ray.methods.seal import Seal
from seal_ray.phases.schedule import (
    Budget,
    Group,
    MissedRise,
    Phase,
    Position,
    Rise,
    Schedule,
    epochs_of,
    first_epochs,
    first_missed_rise,
    group_rate,
    learning_rate,
)
from seal_ray.phases.steps import NoisyGradient


@pytest.mark.parametrize("name", METHODS)
@given(length=st.integers(1, 400), generations=st.integers(1, 4))
def test_phases_tile_every_generation(name: str, length: int, generations: int) -> None:
    budget = Budget(generations * length, length)
    method = METHODS[name]()
    for generation in range(generations):
        try:
            phases = method.phases(generation, budget)
        except ConfigError:
            assert length < 3  # only a generation too short for its shares has no phases
            continue
        assert sum(phase.epochs for phase in phases) == length
        assert all(phase.epochs >= 1 for phase in phases)
        assert first_epochs(phases)[0] == 0


@given(share=st.decimals("0.001", "0.999", places=3), length=st.integers(2, 2000))
def test_shares_round_half_up_in_exact_decimals(share: object, length: int) -> None:
    exact = Fraction(str(share)) * length
    whole = max(1, math.floor(exact + Fraction(1, 2)))
    if whole < length:
        assert epochs_of(float(str(share)), length, "x") == whole
    else:
        with pytest.raises(ConfigError, match="leaves nothing"):
            epochs_of(float(str(share)), length, "x")


@pytest.mark.parametrize(
    ("share", "length", "epochs"),
    [(0, 10, 0), (0.25, 160, 40), (0.125, 160, 20), (0.125, 4, 1), (0.25, 2, 1), (0.35, 10, 4), (0.01, 4, 1)],
)
def test_epochs_of_by_hand(share: float, length: int, epochs: int) -> None:
    assert epochs_of(share, length, "x") == epochs


@given(
    name=st.sampled_from(["cosine", "step", "constant"]),
    length=st.integers(2, 300),
    share=st.sampled_from([0.0, 0.05, 0.125, 0.3]),
)
def test_a_cycle_warms_up_and_then_never_rises(name: str, length: int, share: float) -> None:
    schedule = Schedule(name, 0.1, share)  # type: ignore[arg-type]
    warmup = epochs_of(share, length, "x")
    rates = [schedule.rate(epoch, length) for epoch in range(length)]
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(0.1 * (0.1 if name == "step" and 2 * warmup >= length else 1))


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_a_cycle_of_one_epoch_has_no_warm_up(name: str) -> None:
    for share in (0.0, 0.125, 0.9):
        assert Schedule(name, 0.1, share).rate(0, 1) == 0.1  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 of 1 epochs is 1, which leaves nothing"):
        Schedule(name, 0.1, 1.0).rate(0, 1)  # type: ignore[arg-type]


def test_step_decays_twice_in_every_generation() -> None:
    schedule, budget = Schedule("step", 0.1, 0.125), Budget(480, 160)
    for generation in range(3):
        phase = METHODS["normal"]().phases(generation, budget)[0]
        rates = [learning_rate(schedule, phase, Position(generation, e), budget) for e in range(160)]
        assert rates[20] == 0.1
        assert rates[79] == 0.1
        assert rates[80] == pytest.approx(0.01)
        assert rates[119] == pytest.approx(0.01)
        assert rates[120] == pytest.approx(0.001)
        assert rates[159] == pytest.approx(0.001)


def test_a_budget_is_whole_generations() -> None:
    with pytest.raises(ConfigError, match="multiple of generation_length"):
        Budget(10, 4)


@given(epochs=st.integers(1, 200), length=st.integers(1, 50))
def test_positions_count_every_epoch_once(epochs: int, length: int) -> None:
    budget = Budget(epochs * length, length)
    position = Position(0, 0)
    for count in range(budget.epochs):
        assert position.global_epoch(budget) == count
        position = position.next(budget)
    assert position == Position(budget.generations, 0)


def test_rise_adjusts_towards_the_target_by_hand() -> None:
    rise = Rise(0.5, start=0.1, factor=2, cap=0.5)
    assert rise.rate(1.0, []) == 0.1
    assert rise.rate(1.0, [1.2]) == 0.2
    assert rise.rate(1.0, [1.2, 1.4]) == 0.4
    assert rise.rate(1.0, [1.2, 1.4, 1.45]) == 0.5  # the cap
    assert rise.rate(1.0, [1.2, 1.4, 1.45, 1.5]) == 0.25


def test_rise_measures_from_the_last_epoch_before_the_ascent() -> None:
    group = Group("early", lr=Rise(0.5, start=0.1))
    rows = [{"train_loss": loss} for loss in (3.0, 1.0, 1.2)]
    assert group_rate(group, rows[:2], 0) == 0.1
    assert group_rate(group, rows, 1) == 0.2
    assert group_rate(group, [*rows, {"train_loss": 1.6}], 2) == 0.1


@pytest.mark.parametrize(
    ("losses", "missed"),
    [
        # An epoch of learning, then generations of two epochs of ascent and one of relearning.
        ((2.0, 1.5, 1.0, 0.5), MissedRise(1, 3, 1.0, -0.5)),
        ((2.0, 1.5), None),  # it has not ended
        ((2.0, 2.25, 2.375, 1.0, 0.5, 0.5, 0.5), MissedRise(1, 3, 1.0, 0.375)),  # and so does the next
        ((2.0, 2.5, 1.0, 1.0, 1.25, 1.0, 0.5), MissedRise(2, 6, 1.0, 0.25)),  # half was reached in the first
        ((2.0, 1.0, 2.5, 1.0, 2.25, 1.0, 0.5), None),
    ],
)
def test_the_first_ascent_that_misses_its_target_by_hand(
    losses: tuple[float, ...], missed: MissedRise | None
) -> None:
    climb = Phase("ascend", 2, (Group("early", lr=Rise(1.0), ascend=True),))
    learn = Phase("relearn", 1, (Group("all"),))
    rows = [{"train_loss": loss} for loss in losses]
    assert first_missed_rise([(learn,), (climb, learn), (climb, learn)], rows) == missed


def test_an_ascent_cools_over_generations_by_hand() -> None:
    method = Seal(ascent_share=0.3, ascent_rate=0.8, share_cooling=0.7, rate_cooling=0.5)
    ascents = [method.phases(generation, Budget(600, 100))[0] for generation in range(1, 6)]
    assert [phase.epochs for phase in ascents] == [30, 21, 15, 10, 7]  # 30, 21, 14.7, 10.29, 7.203
    assert [phase.groups[0].lr for phase in ascents] == pytest.approx([0.8, 0.4, 0.2, 0.1, 0.05])
    assert {phase.groups[1].lr for phase in ascents} == {1.0}  # the others do not cool
    rise = Seal(ascent_rate=Rise(0.6, start=0.2), rate_cooling=0.5).phases(3, Budget(40, 8))[0].groups[0].lr
    assert rise == Rise(pytest.approx(0.15), start=0.2)
    coldest = Seal(share_cooling=1e-9, ascent_share=0.5).phases(4, Budget(40, 8))
    assert [phase.epochs for phase in coldest] == [1, 7]


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_share_that_fills_the_generation_is_a_config_error(share: float) -> None:
    with pytest.raises(ConfigError, match=r"method\.ascent_share.*lower the share"):
        Seal(ascent_share=share).phases(1, Budget(8, 4))


def test_phases_ascend_when_a_part_climbs_or_has_its_own_loss() -> None:
    assert Phase("x", 1, (Group("early", ascend=True),)).ascends
    assert not Phase("x", 1, (Group("all"),)).ascends
    assert Seal(ascent_loss="confident_error").phases(1, Budget(8, 4))[0].ascends
    assert Seal(direction=NoisyGradient(0.5)).phases(1, Budget(8, 4))[0].ascends
