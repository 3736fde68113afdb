"""Random streams: pure functions of seed, purpose and position, apart from one another."""

from __future__ import annotations

import hashlib
from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from seal_ray.streams import stream

PLACES = st.tuples(
    st.integers(0, 2**63 - 1),
    st.sampled_from(["init", "order", "augment", "edit", "mask"]),
    st.lists(st.integers(0, 2000), max_size=2).map(tuple),
)


@given(PLACES)
def test_a_stream_is_seeded_by_the_documented_hash(place: tuple[int, str, tuple[int, ...]]) -> None:
    seed, purpose, position = place
    text = "/".join(map(str, (seed, purpose, *position)))
    number = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
    expected = torch.rand(5, generator=torch.Generator().manual_seed(number))
    assert torch.equal(torch.rand(5, generator=stream(seed, purpose, *position)), expected)


@given(PLACES, PLACES)
def test_different_places_have_different_streams(
    one: tuple[int, str, tuple[int, ...]], two: tuple[int, str, tuple[int, ...]]
) -> None:
    draws = [torch.randint(2**62, (2,), generator=stream(s, p, *at)) for s, p, at in (one, two)]
    assert torch.equal(*draws) == (one == two)


def test_neighbouring_positions_are_not_confused() -> None:
    places = [(1, "a", 11), (11, "a", 1), (1, "a", 1, 1), (1, "a", 1), (1, "a", 111), (1, "a1", 1), (1, "a")]
    draws = [tuple(torch.rand(3, generator=stream(*place)).tolist()) for place in places]  # type: ignore[arg-type]
    assert all(a != b for a, b in combinations(draws, 2))


def test_a_stream_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = torch.rand(3, generator=stream(0, "order", 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(one, torch.rand(3, generator=stream(0, "order", 1, 2)))


def test_streams_are_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert stream(0, "init").device == torch.device("cpu")
