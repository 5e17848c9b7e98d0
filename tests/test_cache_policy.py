"""The cache's policy is integers, so it is tested as such: against a model that keeps a record for every token.

The model knows the specification (who reads what, as a function of the position alone) and nothing of marks: each
token has a hot form (exact or degraded) and a cold form, or not, and each tile of the ring has one owner.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mixkv.engine.state.mixed_policy import PIECE, CachePolicy, Step
from mixkv.kernels.errors import ContextFullError

TILE = 16
Window = int | None


def spec_first_hot(p: int, n: Window, s: int) -> int:
    """kv-cache.md section 2; without a window nothing is ever cold."""
    return s if n is None else s + 16 * (max(0, p + 1 - n - s) // 16)


def policy(n_ctx: int = 1000, s: int = 16, n: Window = 32, reserve: int = 0, chunk: int = 64) -> CachePolicy:
    return CachePolicy(n_ctx=n_ctx, sink_tokens=s, hot_window=n, rollback_reserve=reserve, chunk=chunk)


def feed(cache: CachePolicy, n: int) -> None:
    """Append n tokens, a chunk at a time."""
    while n:
        step = cache.step(min(n, cache.chunk))
        cache.commit(step)
        n -= step.n


@pytest.mark.parametrize(
    ("p", "n", "s", "first"),
    [(0, 32, 16, 16), (47, 32, 16, 16), (62, 32, 16, 16), (63, 32, 16, 32), (78, 32, 16, 32), (79, 32, 16, 48),
     (15, 0, 0, 16), (14, 0, 0, 0), (4, 1, 4, 4), (20, 1, 4, 20), (10**6, 512, 16, 999_488)],
)  # fmt: skip
def test_first_hot_by_hand(p: int, n: int, s: int, first: int) -> None:
    """At least the last n tokens, the query's own included, and at most 15 more, are exact."""
    assert policy(s=s, n=n).first_hot(p) == first
    assert n <= p + 1 - first <= n + 15 or first == s


class Tokens(RuleBasedStateMachine):
    """Steps, truncations and clears in any order, with settings of any kind."""

    @initialize(
        n=st.sampled_from([None, 0, 1, 15, 16, 17, 32, 40]),
        s=st.sampled_from([0, 1, 4, 16, 20]),
        reserve=st.sampled_from([0, 1, 5, 16, 30]),
        chunk=st.sampled_from([1, 7, 16, 33, 64]),
        n_ctx=st.sampled_from([10, 173, 400]),
    )
    def start(self, n: Window, s: int, reserve: int, chunk: int, n_ctx: int) -> None:
        self.n, self.s, self.reserve = n, s, reserve
        self.cache = policy(n_ctx, s, n, reserve, chunk)
        self.forget()

    def forget(self) -> None:
        self.length = self.longest = 0
        self.hot: dict[int, bool] = {}  # position past the sinks -> still exact
        self.cold: set[int] = set()
        self.owner: dict[int, int] = {}  # ring slot -> tile

    @rule(n=st.integers(1, 40))
    def decode(self, n: int) -> None:
        for _ in range(n):
            self.step(1)

    @rule(n=st.integers(1, 64))
    def step(self, n: int) -> None:
        """n tokens, in as many pieces as that takes; only the last of them is committed."""
        n = min(n, self.cache.n_ctx - self.length)
        if n == 0:
            with pytest.raises(ContextFullError):
                self.cache.step(1)
            return
        before = self.cache.marks
        steps = self.cache.steps(n)
        assert self.cache.marks == before, "nothing changes until commit"
        assert sum(s.n for s in steps) == n and all(s.n <= self.cache.chunk for s in steps)
        for step in steps:
            self.hot = {j: exact for j, exact in self.hot.items() if j >= step.hot_start}
            self.piece(step)
        self.cache.commit(steps[-1])
        self.hot = {j: exact for j, exact in self.hot.items() if j >= self.cache.marks.hot_start}

    def piece(self, step: Step) -> None:
        end = self.length + step.n
        assert step.pos == self.length
        for j in range(max(self.length, self.s), end):
            self.hot[j] = True
            self.own(self.owner, j)
        self.quantize(step.cold_from, step.cold_to, end)
        assert self.cache.peak_tokens(step) == (len(self.hot), len(self.cold))
        if self.n is not None:
            assert len(self.hot) <= self.n + 15 + self.reserve + step.n
            assert len(self.cold) <= max(0, spec_first_hot(max(end, self.longest), self.n, self.s) - self.s)
        for i in range(step.n):
            self.read(step.pos + i, int(step.hot_from[i]))
        self.length, self.longest = end, max(self.longest, end)

    def own(self, owner: dict[int, int], j: int) -> None:
        owner[(j - self.s) // TILE % self.cache.hot_tiles] = (j - self.s) // TILE

    def owns(self, owner: dict[int, int], j: int) -> bool:
        return owner[(j - self.s) // TILE % self.cache.hot_tiles] == (j - self.s) // TILE

    @rule(n=st.integers(1, 300), begun=st.lists(st.sampled_from([0, 0.4, 0.7, 1]), min_size=1, max_size=3))
    def fail(self, n: int, begun: list[float]) -> None:
        """A step is left by an exception; each layer had begun that share of its pieces."""
        n = min(n, self.cache.n_ctx - self.length)
        steps, before, stop = self.cache.steps(n) if n else [], self.cache.marks, self.cache.marks.hot_start
        for ran in filter(None, (steps[: round(share * len(steps))] for share in begun)):
            owner, cold = dict(self.owner), set(self.cold)
            for step in ran:
                for j in range(max(step.pos, self.s), step.pos + step.n):
                    self.own(owner, j)
                if step is not ran[-1]:  # which may have failed before it quantized anything
                    cold |= set(range(step.cold_from, step.cold_to))
            end = ran[-1].pos + ran[-1].n
            lost = {j for j in self.hot if not self.owns(owner, j)}
            assert lost == {j for j in self.hot if j < self.cache.overwritten(end)}
            assert lost <= cold, "an overwritten token has its cold form"
            stop = max(stop, self.cache.overwritten(end))
        assert self.cache.marks == before
        if stop > before.hot_start:
            self.cache.marks = self.cache.restored(stop)
        self.hot = {j: exact and j >= stop for j, exact in self.hot.items()}
        self.cold |= {j for j in self.hot if j < stop and j < self.tiles(self.length)}
        self.longest = max(self.longest, self.length + n)

    def tiles(self, n: int) -> int:
        """Where the last whole tile of n tokens ends."""
        return self.s + max(0, n - self.s) // TILE * TILE

    def quantize(self, start: int, stop: int, end: int) -> None:
        """Whole tiles of tokens that are there, are hot, and have no cold form yet."""
        assert (start - self.s) % TILE == 0 and (stop - self.s) % TILE == 0 and start <= stop
        for j in range(start, stop):
            assert j < end and j in self.hot and j not in self.cold, f"token {j} cannot be quantized"
            self.cold.add(j)

    def read(self, p: int, hot_from: int) -> None:
        """A query at p finds every key in the form that the specification says."""
        assert hot_from == spec_first_hot(p, self.n, self.s)
        for j in range(self.s, p + 1):
            if j < hot_from:
                assert j in self.cold, f"query {p} finds no cold form of {j}"
            else:
                assert j in self.hot, f"query {p} finds no hot form of {j}"
                assert self.owns(self.owner, j), f"the ring lost token {j}"

    @rule(back=st.integers(0, 40))
    def roll_back(self, back: int) -> None:
        """Short steps back, as speculative decoding takes them."""
        self.cut(max(0, self.length - back))

    def cut(self, n: int) -> None:
        broken = self.tiles(n)  # a tile that lost tokens is no tile
        recent = range(min(spec_first_hot(n, self.n, self.s), broken), n)
        exact = all(j in self.hot for j in recent)
        assert self.cache.truncates_exactly(n) == all(self.hot.get(j, False) for j in recent)
        if n >= self.longest - self.reserve:
            assert exact, "within the reserve nothing may be lost"
        start, stop = self.cache.truncate(n)
        assert exact == (start >= stop), "rehydrated although everything was there, or the reverse"
        for j in range(start, stop):
            assert j in self.cold and j not in self.hot, f"token {j} cannot be restored"
            self.hot[j] = False
            self.own(self.owner, j)
        self.hot = {j: e for j, e in self.hot.items() if j < n}
        self.cold = {j for j in self.cold if j < broken}
        self.length = n

    @rule(n=st.integers(0, 172))
    def truncate_or_clear(self, n: int) -> None:
        if n == 0:
            self.cache.clear()
            self.forget()
        else:
            self.cut(min(n, self.length))

    @rule(extra=st.integers(1, 50))
    def overflow(self, extra: int) -> None:
        before = self.cache.marks
        with pytest.raises(ContextFullError, match=str(self.cache.n_ctx)):
            self.cache.check_room(self.cache.n_ctx - self.length + extra)
        assert self.cache.marks == before

    @invariant()
    def counts_are_honest(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        assert cache.n == self.length and cache.sink_tokens == min(self.length, self.s)
        assert set(self.hot) == set(range(cache.marks.hot_start, self.length))
        assert cache.hot_tokens == len(self.hot)
        assert self.cold == set(range(self.s, cache.marks.quant_end))
        assert cache.cold_tokens == len(self.cold)
        assert cache.degraded_tokens == sum(not exact for exact in self.hot.values())
        past_sinks = set(range(self.s, self.length))
        assert set(self.hot) | self.cold == past_sinks, "every token has a form, and no other has"
        if self.n is not None:
            both = len(set(self.hot) & self.cold)
            assert both <= self.reserve + 15 or self.longest > self.length, f"{both} tokens are stored twice"
            assert len(self.hot) <= self.n + 15 + self.reserve + max(0, self.longest - self.length)


TestTokens = Tokens.TestCase
TestTokens.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_without_reserve_no_token_is_stored_twice() -> None:
    cache = policy(n=32)
    for _ in range(300):
        feed(cache, 1)
        assert cache.sink_tokens + cache.hot_tokens + cache.cold_tokens == cache.n


def test_truncation_within_the_reserve_is_exact_and_beyond_it_is_counted() -> None:
    """A rejected draft takes back a few tokens: they must be as exact as before, or be reported."""
    cache = policy(n=32, reserve=20)
    feed(cache, 300)
    assert cache.truncates_exactly(280) and not cache.truncates_exactly(200)
    assert cache.truncate(280) == (cache.marks.hot_start, cache.marks.hot_start)
    assert cache.degraded_tokens == 0
    start, stop = cache.truncate(200)
    assert (start, stop) == (cache.first_hot(200), 16 + 12 * 16)
    assert cache.degraded_tokens == 200 - cache.first_hot(200)
    feed(cache, 15 + 32 + 20)  # the last of them leaves window and reserve, and with it the count goes back to 0
    assert cache.degraded_tokens == 0


def test_the_ring_is_no_larger_than_it_must_be() -> None:
    """Its rows are the memory of the hot part: window, reserve and piece, a partial tile at either end."""
    assert policy(n=32, chunk=64).hot_tiles == 8
    assert policy(n=32, chunk=64, reserve=16).hot_tiles == 9
    assert policy(n=32, chunk=512).hot_tiles == policy(n=32, chunk=PIECE).hot_tiles == 12
    assert policy(n_ctx=100, n=512).hot_tiles == 6  # never more than the context has
    assert policy(n_ctx=100, n=None).hot_tiles == 6
    assert policy(n_ctx=10, s=16).hot_tiles == 1


def test_peak_of_a_long_prompt_is_cold_bytes_and_a_window_of_hot_ones() -> None:
    """Others hold the whole prompt in FP16 while they quantize it."""
    cache, n, most = policy(n_ctx=5000, n=512, chunk=256), 4321, 0
    while cache.n < n:
        steps = cache.steps(min(256, n - cache.n))
        peaks = [cache.peak_tokens(step) for step in steps]
        most = max(most, *(hot for hot, _ in peaks))
        assert peaks[-1][1] <= max(0, cache.first_hot(n) - 16)
        cache.commit(steps[-1])
    assert most <= 512 + PIECE + TILE


@settings(max_examples=300)
@given(
    window=st.integers(0, 70), sinks=st.integers(0, 20), reserve=st.integers(0, 20), chunk=st.integers(1, 150),
    n_ctx=st.integers(40, 600), data=st.data(),
)  # fmt: skip
def test_what_is_left_out_of_a_commit_has_cost_no_exact_token(
    window: int, sinks: int, reserve: int, chunk: int, n_ctx: int, data: st.DataObject
) -> None:
    """A draft that is turned down must not have used the ring slot of a token that is hot without it."""
    cache = CachePolicy(
        n_ctx=n_ctx, sink_tokens=sinks, hot_window=window, rollback_reserve=reserve, chunk=chunk
    )  # fmt: skip
    while cache.n < n_ctx and len(cache.steps(1)):
        n = data.draw(st.integers(1, min(cache.chunk, n_ctx - cache.n)))
        step = cache.step(n)
        rejected = data.draw(st.integers(0, n - 1))
        lost = cache.overwritten(step.pos + n)
        cache.commit(step, n - rejected)
        assert cache.n == step.pos + n - rejected
        assert lost <= max(sinks, cache.cold_end(max(0, cache.n - reserve)))
        assert cache.truncates_exactly(cache.n)
        assert cache.marks.hot_start <= cache.marks.quant_end <= max(sinks, cache.n)
        if data.draw(st.integers(0, 5)) == 0:
            break
