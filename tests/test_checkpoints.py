"""Checkpoints of a cache: coming back is exact, and what they hold is counted and kept to the budget."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from fake_model import N_IDS, FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from state_tools import CHUNK, IDS, MIXED, MODELS, N_CTX, cache_of, feed, run

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.state.cache import KVCache
from mixkv.engine.state.recurrent import RecurrentState
from mixkv.kernels import default_backend

NEED_THEM = ["all", "windows", "recurrent", "one state", "chunks", "latent"]
OTHERS = [(t + 1) % N_IDS for t in IDS]


@pytest.fixture(scope="module")
def models() -> dict[str, FakeModel]:
    return {name: FakeModel(*layers) for name, layers in MODELS.items()}


def cache_in(model: FakeModel, budget: int | None, checkpoint_bytes: int, chunk: int = CHUNK) -> KVCache:
    """A mixed cache with a pool of its own."""
    plan = CachePlan.of(KVCacheConfig(**MIXED), model.config.layers)
    pool = model.backend.page_pool(budget)
    return KVCache(
        model.config, plan, model.backend, n_ctx=N_CTX, chunk=chunk, pool=pool, checkpoint_bytes=checkpoint_bytes
    )


def same_rows(got: Any, wanted: Any) -> None:
    if default_backend().name == "native":
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NEED_THEM)
@pytest.mark.parametrize("n", [3, 24, 61, 130])
@pytest.mark.parametrize("more", [1, 20, 90])
def test_coming_back_is_exact(models: dict[str, FakeModel], name: str, n: int, more: int) -> None:
    """Recent tokens of layers that keep everything came back as their cold form says: once a mixed cache had gone on
    for longer than its window, every one of them was degraded."""
    model = models[name]
    cache = cache_of(model, **MIXED)
    feed(model, cache, IDS[:n])
    before = cache.stats()
    cache.checkpoint()
    wanted = feed(model, cache.fork(), IDS[n : n + 60])
    for _ in range(2):
        feed(model, cache, OTHERS[cache.n : cache.n + more])
        assert cache.kept(n) == cache.kept(n, exact=True) == n and cache.truncates_exactly(n)
        assert cache.truncate(n) == n
        after = cache.stats()
        assert (after.degraded_tokens, after.hot_tokens, after.cold_tokens, after.state_bytes) == (
            0, before.hot_tokens, before.cold_tokens, before.state_bytes,
        )  # fmt: skip
        same_rows(feed(model, cache, IDS[n : n + 60]), wanted)


def test_exact_is_the_last_length_that_is(models: dict[str, FakeModel]) -> None:
    """A window reaches back, the mixed layers beside it do not exactly: reuse that must be exact began from nothing."""
    model = models["windows"]
    cache = cache_of(model, **MIXED)
    feed(model, cache, IDS[:100])
    cache.checkpoint()
    feed(model, cache, IDS[100:120])
    assert cache.kept(103) == 103 and not cache.truncates_exactly(103)
    assert cache.kept(103, exact=True) == 100 and cache.kept(119, exact=True) == 119


def test_what_a_broken_off_step_overwrote_comes_from_the_checkpoint(models: dict[str, FakeModel]) -> None:
    """Hot tokens whose place a step had used count as degraded ever after, although a checkpoint had them."""
    model = models["recurrent"]
    plain, cache = cache_of(model, **MIXED), cache_of(model, **MIXED)
    for each in (plain, cache):
        feed(model, each, IDS[:40])
    wanted = feed(model, plain.fork(), IDS[40:100])
    cache.checkpoint()
    for each in (plain, cache):
        run(model, [(each, IDS[40:140])])
        each.abandon()
    assert plain.stats().degraded_tokens > 0 == cache.stats().degraded_tokens
    same_rows(feed(model, cache, IDS[40:100]), wanted)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["feed", "feed", "feed", "break off", "back", "checkpoint", "fork"]), st.integers(1, CHUNK),
        st.integers(0, 1000),
    ),
    min_size=3, max_size=40,
)  # fmt: skip


@pytest.mark.parametrize("name", NEED_THEM)
@settings(max_examples=40)
@given(budget=st.integers(0, 400_000), steps=STEPS)
def test_budget_and_peak_are_of_what_is_really_held(
    models: dict[str, FakeModel], name: str, budget: int, steps: list[tuple[str, int, int]]
) -> None:
    """A window's snapshot counted the tokens in it, although it shares their pages: nothing at first, and whole pages
    once they were written to. What checkpoints are said to take is what the pool has back when they go."""
    model = models[name]
    cache = cache_in(model, None, budget)
    for what, n, number in steps:
        n = min(n, N_CTX - cache.n)
        if what == "feed" and n:
            feed(model, cache, IDS[cache.n : cache.n + n])
        elif what == "break off" and n:
            run(model, [(cache, OTHERS[cache.n : cache.n + n])])
            cache.abandon()
        elif what == "back":
            cache.truncate(number % (cache.n + 1))
        elif what == "checkpoint":
            cache.checkpoint()
        elif what == "fork":
            cache = cache.fork()
        stats = cache.stats()
        assert stats.checkpoint_bytes <= budget
        assert cache.nbytes <= cache.peak_nbytes
    own = sum(a.nbytes for s in cache.states if isinstance(s, RecurrentState) for layer in s._now for a in layer)
    own *= sum(1 for _ in cache.checkpoints)
    gc.collect()
    said, before = cache.stats().checkpoint_bytes, cache.pool.nbytes
    cache.checkpoints.cut(0)
    gc.collect()
    assert before - cache.pool.nbytes == said - own


@pytest.mark.parametrize("name", ["all", "windows"])
def test_checkpoints_go_before_the_pool_is_short(models: dict[str, FakeModel], name: str) -> None:
    """Pages that only checkpoints had were missing to the sequence itself, which ended for lack of memory."""
    model = models[name]
    cache = cache_in(model, None, 1 << 30)
    wanted = feed(model, cache, IDS)
    tight = cache_in(model, cache.pool.peak_nbytes, 1 << 30)
    rows = []
    for start in range(0, N_CTX, 20):
        rows.append(feed(model, tight, IDS[start : start + 20]))
        tight.checkpoint()
        assert tight.pool.nbytes <= cache.pool.peak_nbytes
    same_rows(np.concatenate(rows), wanted)


def test_no_memory_for_a_checkpoint_is_no_checkpoint(
    models: dict[str, FakeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation ended with an error for the sake of one that might come after it."""
    model = models["all"]
    cache = cache_of(model)
    feed(model, cache, IDS[:40])

    def refused(self: RecurrentState) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(RecurrentState, "snapshot", refused)
        cache.checkpoint()
    assert cache.stats().checkpoint_bytes == 0 and cache.n == 40
    cache.checkpoint()
    assert cache.stats().checkpoint_bytes > 0


def test_an_interrupted_truncation_leaves_no_checkpoint_behind(
    models: dict[str, FakeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the tokens cut off stayed, and other tokens could be brought back to them later."""
    model = models["recurrent"]
    cache = cache_of(model)
    for n in (24, 48):
        feed(model, cache, IDS[n - 24 : n])
        cache.checkpoint()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.states[0], "restore", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.truncate(30)
    feed(model, cache, OTHERS[24:90])
    assert cache.kept(60) == 24
