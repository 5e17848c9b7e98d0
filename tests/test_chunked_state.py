"""The chunked kind by hand: what a chunk's store holds, how far back it goes, what a step over a border costs."""

from __future__ import annotations

import pytest
from attention_oracle import nmse
from fake_model import FakeModel, chunked
from state_tools import CHUNK, IDS, N_CTX, cache_of, feed, run

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.state.cache import KVCache
from mixkv.engine.state.chunked import ChunkedState, ChunkMarks
from mixkv.engine.state.stats import cache_bytes
from mixkv.kernels.errors import OutOfMemoryError

ROW = 2 * 2 * 32
"""Bytes of a token: K and V of 2 heads, 16 numbers each, in FP16."""


@pytest.fixture(scope="module")
def model() -> FakeModel:
    return FakeModel(chunked(40))


def state_of(cache: KVCache) -> ChunkedState:
    state = cache.states[0]
    assert isinstance(state, ChunkedState)
    return state


def test_bytes_by_hand(model: FakeModel) -> None:
    """Of 290 tokens the newest chunk begins at 280. A step of 24 began at 120, where the chunk before was full: it is
    held until the step ends."""
    cache = cache_of(model)
    feed(model, cache, IDS[:290])
    assert state_of(cache).marks == ChunkMarks(290, 280)
    stats = cache.stats()
    assert stats.window_bytes == stats.nbytes == 10 * ROW and stats.bits_per_element == 16
    assert stats.peak_bytes == (40 + 24) * ROW
    plan = CachePlan.of(KVCacheConfig(), model.config.layers)
    assert cache_bytes(model.config, plan, N_CTX, CHUNK) == {"chunked": 64 * ROW}
    assert cache_bytes(model.config, plan, 50, CHUNK) == {"chunked": 50 * ROW}
    cache.checkpoint()
    assert cache.stats().checkpoint_bytes == 0, "it has the chunk's own page"
    feed(model, cache, IDS[290:])
    assert cache.stats().checkpoint_bytes == 64 * ROW, "which is copied when more is written to it"


def test_it_goes_back_to_the_beginning_of_its_chunk(model: FakeModel) -> None:
    """And with a checkpoint into the one before; at a border the chunk that is full is the newest."""
    cache = cache_of(model)
    feed(model, cache, IDS[:50])
    cache.checkpoint()
    feed(model, cache, IDS[50:80])
    assert state_of(cache).marks == ChunkMarks(80, 40)
    assert [cache.kept(n) for n in (80, 79, 40, 39, 0)] == [80, 79, 40, 0, 0]
    feed(model, cache, IDS[80:100])
    assert [cache.kept(n) for n in (100, 80, 79, 50, 49)] == [100, 80, 50, 50, 0]
    assert cache.truncate(80) == 80 and cache.nbytes == 64 * ROW, "nothing but the checkpoint is left"
    wanted = model.oracle(IDS)
    assert nmse(feed(model, cache, IDS[80:110]), wanted[80:110]) < 1e-6
    assert cache.truncate(60) == 50
    assert nmse(feed(model, cache, IDS[50:130]), wanted[50:130]) < 1e-6
    assert cache.truncate(0) == 0 and cache.nbytes == 0
    assert nmse(feed(model, cache, IDS[:60]), wanted[:60]) < 1e-6


@pytest.mark.parametrize("keep", [1, 9, 10, 11, 20])
def test_a_draft_over_a_border_leaves_the_chunk_of_what_is_kept(model: FakeModel, keep: int) -> None:
    cache, wanted = cache_of(model), model.oracle(IDS)
    feed(model, cache, IDS[:30])
    run(model, [(cache, IDS[30:50])])
    cache.commit(keep)
    assert state_of(cache).marks == ChunkMarks(30 + keep, 40 if keep > 10 else 0)
    assert nmse(feed(model, cache, IDS[30 + keep : 100]), wanted[30 + keep : 100]) < 1e-6


def test_a_step_over_a_border_that_is_given_up_costs_nothing(model: FakeModel) -> None:
    """The old chunk was gone with the first token of the new one."""
    cache = cache_of(model)
    feed(model, cache, IDS[:39])
    before = cache.stats()
    for _ in range(2):
        run(model, [(cache, IDS[50:70])])
        cache.abandon()
    assert cache.stats().nbytes == before.nbytes and cache.kept(1) == 1
    assert nmse(feed(model, cache, IDS[39:60]), model.oracle(IDS)[39:60]) < 1e-6


def test_no_memory_for_the_next_chunk_changes_nothing(model: FakeModel) -> None:
    """A budget of one page of 64 positions: there is none for the next chunk beside the one that is held."""
    pool = model.backend.page_pool(64 * ROW)
    plan = CachePlan.of(KVCacheConfig(), model.config.layers)
    cache = KVCache(model.config, plan, model.backend, n_ctx=N_CTX, chunk=CHUNK, pool=pool)
    feed(model, cache, IDS[:39])
    for _ in range(2):
        with pytest.raises(OutOfMemoryError):
            cache.begin(20)
        assert pool.nbytes == 64 * ROW and cache.n == 39
    assert nmse(feed(model, cache, IDS[39:40]), model.oracle(IDS)[39:40]) < 1e-6
    with pytest.raises(OutOfMemoryError):
        cache.begin(1)
    assert cache.truncate(10) == 10
    assert nmse(feed(model, cache, IDS[10:40]), model.oracle(IDS)[10:40]) < 1e-6
