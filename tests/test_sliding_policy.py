"""The ring of sliding-window layers, against a model that knows which position each slot holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkv.engine.state.sliding_policy import RingMarks, SlidingPolicy
from mixkv.kernels import TILE

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["step", "draft", "truncate", "give up", "clear"]), st.integers(0, 400)), max_size=40
)


class Ring:
    """Slots, each with one tile's positions: what a store with so many slots remembers."""

    def __init__(self, tiles: int) -> None:
        self.slots: dict[int, set[int]] = {i: set() for i in range(tiles)}

    def write(self, start: int, stop: int) -> None:
        for p in range(start, stop):
            slot = self.slots[p // TILE % len(self.slots)]
            if any(q // TILE != p // TILE for q in slot):
                slot.clear()
            slot.add(p)

    @property
    def positions(self) -> set[int]:
        return set().union(*self.slots.values())


@settings(max_examples=300)
@given(st.integers(1, 90), st.integers(1, 70), st.integers(1, 400), OPERATIONS)
def test_what_the_policy_says_is_there_is_there(
    window: int, chunk: int, n_ctx: int, operations: list[tuple[str, int]]
) -> None:
    """Through steps, drafts, steps that were given up and truncations: every query finds what it reads."""
    chunk = min(chunk, n_ctx)
    policy, n = SlidingPolicy(n_ctx=n_ctx, window=window, chunk=chunk), 0
    ring = Ring(policy.tiles)
    for what, number in operations:
        if what in ("step", "draft", "give up"):
            begun = min(1 + number % chunk, n_ctx - n)
            if begun == 0:
                continue
            ring.write(n, n + begun)
            for p in range(n, n + begun):
                assert set(range(max(0, p - window + 1), p + 1)) <= ring.positions, "a query of the step"
            if what == "give up":
                policy.marks = RingMarks(n, policy.oldest_after(n + begun))
            else:
                keep = begun if what == "step" else 1 + number // 7 % begun
                policy.commit(begun, None if what == "step" else keep)
                n += keep
        elif what == "truncate":
            cut = number % (n + 1)
            needed = set(range(max(0, cut - window + 1), cut))
            if policy.reaches(cut):
                assert needed <= ring.positions
                policy.truncate(cut)
                n = cut
            else:
                assert cut > 0 and policy.first_read(cut) < policy.marks.oldest
        else:
            policy.clear()
            n = 0
        assert policy.n == n and policy.reaches(n)
        assert set(range(policy.marks.oldest, n)) <= ring.positions
        assert policy.held_tokens == n - policy.marks.oldest <= min(n, policy.tiles * TILE)


def test_how_long_the_ring_is() -> None:
    """By hand: 128 positions of a window and 128 of a step lie in 17 tiles, if they begin with a tile's last position
    or second one; 1 and 1 in one. A context that is shorter needs no more than its own."""
    assert SlidingPolicy(n_ctx=10_000, window=128, chunk=128).tiles == 17
    assert SlidingPolicy(n_ctx=10_000, window=1, chunk=1).tiles == 1
    assert SlidingPolicy(n_ctx=10_000, window=2, chunk=1).tiles == 2
    assert SlidingPolicy(n_ctx=100, window=128, chunk=100).tiles == 7


def test_how_far_a_truncation_goes_back() -> None:
    """By hand: a window of 33 and steps of 16 lie in 4 tiles. 200 tokens leave tiles 9 to 12, positions from 144 on: a
    query at 176 reads those from 144 on, one at 175 does not find 143."""
    policy = SlidingPolicy(n_ctx=1000, window=33, chunk=16)
    while policy.n < 192:
        policy.commit(16)
    policy.commit(8)
    assert (policy.tiles, policy.marks) == (4, RingMarks(200, 144))
    assert policy.reaches(176) and not policy.reaches(175)
    policy.truncate(176)
    assert (policy.n, policy.held_tokens) == (176, 32)


@pytest.mark.parametrize("n", np.arange(1, 34).tolist())
def test_a_draft_may_be_as_long_as_a_step(n: int) -> None:
    """Taking all but one token back leaves what the next query reads."""
    policy = SlidingPolicy(n_ctx=10_000, window=50, chunk=34)
    while policy.n < 300 + n:
        policy.commit(1)
    policy.commit(34, 1)
    assert policy.reaches(policy.n)
