"""What sharing pages is for: forks that hold a common prefix once, and one budget for all sequences of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_tools import load_exact, logits_of, random_ids, random_llama, sequence
from native_tools import NATIVE_IS_BUILT

import mixkv
from mixkv.kernels import LayerFormat, open_backend
from mixkv.kernels.errors import ConfigError, InputError, OutOfMemoryError
from mixkv.kernels.formats import cache_type

KINDS = ["reference", *["native"] * NATIVE_IS_BUILT]
HEADS, DIM, S = 2, 32, 3
PAGE = 64 * HEADS * 2 * DIM * 2
"""Bytes of a page of sinks or ring in FP16."""


def make(backend: Any, f: LayerFormat, pool: Any) -> Any:
    return backend.KVStore(
        [f], n_kv_heads=HEADS, head_dim_k=DIM, head_dim_v=DIM, n_ctx=400, sink_tokens=S, hot_tiles=6, pool=pool
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_says_what_it_is(kind: str) -> None:
    backend = open_backend(1, kind=kind)
    pool = backend.page_pool()
    assert (pool.budget, pool.nbytes, pool.peak_nbytes) == (None, 0, 0)
    assert backend.page_pool(0).budget == 0
    with pytest.raises(ConfigError, match="budget"):
        backend.page_pool(-1)
    with pytest.raises(TypeError):
        make(backend, LayerFormat(), "a pool")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_the_budget_refuses_leaves_everybody_as_they_were(kind: str) -> None:
    """Its tiles would have been written, and those that turn cold not: now the step is whole or refused."""
    backend = open_backend(2, kind=kind)
    pool = backend.page_pool(9 * PAGE)
    k = np.random.default_rng(1).standard_normal((80, HEADS, DIM), np.float32)
    one, other = (make(backend, LayerFormat("f16", "f16"), pool) for _ in range(2))
    hot_from = np.full(80, S, np.int64)
    stores = [one, other, one.copy()]
    for store in stores:
        store.step(0, k, k, k, 0, hot_from, 0, 0, scale=0.1)

    def contents() -> list[bytes]:
        return [x.tobytes() for store in stores for x in store.get_hot(0, 0, 80)]

    before, used = contents(), pool.nbytes
    with pytest.raises(OutOfMemoryError):
        one.step(0, k[:16], k[:16], k[:16], 80, np.full(16, S + 64, np.int64), S, S + 64, scale=0.1)
    assert (contents(), pool.nbytes) == (before, used)
    with pytest.raises(InputError):
        one.get_hot(0, 80, 81)
    del other, stores[1]
    one.step(0, k[:16], k[:16], k[:16], 80, np.full(16, S + 64, np.int64), S, S + 64, scale=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "f16")])
def test_forks_hold_their_common_prefix_once(kind: str, types: tuple[str, str]) -> None:
    """Twenty forks were twenty caches. A fork costs nothing, and the pages that it writes to when it goes on."""
    backend = open_backend(2, kind=kind)
    pool = backend.page_pool()
    store = backend.KVStore(
        [LayerFormat(*types)] * 2, n_kv_heads=HEADS, head_dim_k=DIM, head_dim_v=DIM, n_ctx=2600, sink_tokens=0,
        hot_tiles=163 if types == ("f16", "f16") else 4, pool=pool,
    )  # fmt: skip
    k = np.random.default_rng(2).standard_normal((32, HEADS, DIM), np.float32)
    for layer in range(2):
        for pos in range(0, 2080, 32):
            store.write(layer, k, k, pos)
            store.quantize(layer, pos, pos + 32)
    prefix = pool.nbytes
    cold_page = 512 * HEADS * sum(cache_type(t).row_bytes(DIM) for t in types)
    forks = [store.copy() for _ in range(20)]
    assert pool.nbytes == prefix
    for i, fork in enumerate(forks):
        for layer in range(2):
            fork.step(layer, k[:1] + i, k[:1], k[:1], 2080, np.array([2048]), 2048, 2048, scale=0.1)
    assert pool.nbytes == prefix + 20 * 2 * (cold_page if types == ("f16", "f16") else PAGE)
    del forks, fork
    assert pool.nbytes == prefix


@pytest.mark.parametrize("kind", KINDS)
def test_a_uniform_cache_is_held_once(kind: str) -> None:
    """There was a cold area as large as the ring in which nothing ever turned cold: twice the address space."""
    backend = open_backend(1, kind=kind)
    pool = backend.page_pool()
    store = backend.KVStore(
        [LayerFormat(*["f16"] * 4)], n_kv_heads=2, head_dim_k=64, head_dim_v=64, n_ctx=4096, sink_tokens=0,
        hot_tiles=256, pool=pool,
    )  # fmt: skip
    k = np.ones((1024, 2, 64), np.float32)
    store.write(0, k, k, 0)
    store.quantize(0, 0, 1024)
    assert pool.nbytes == 1024 * 2 * 128 * 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("sharing") / "model.gguf", n_ctx=2048)


UNIFORM: list[dict[str, Any]] = [{}, {"type_k": "q8_0", "type_v": "q8_0"}, {"type_k": "q4_0", "type_v": "q4_0"}]


@pytest.mark.parametrize("settings", [*UNIFORM, {"mixed_kv_cache": True, "hot_window": 64}], ids=str)
def test_forks_of_a_sequence_share_and_go_on_alone(path: Path, settings: dict[str, Any]) -> None:
    """Uniform caches, too: forks add a few pages each, and their logits are those of one that never forked."""
    model = load_exact(path)
    ids = random_ids(model, 700)
    seq = sequence(model, n_ctx=2048, **settings)
    seq.feed(ids)
    pool = seq.cache.pool
    alone = pool.nbytes
    forks = [seq.fork() for _ in range(4)]
    assert pool.nbytes == alone
    got = [fork.feed([5 + i, 6, 7], all_rows=True) for i, fork in enumerate(forks)]
    assert pool.nbytes < alone * 3.5  # a page of 512, two at most, of each; copies would be five times as much
    for i, rows in enumerate(got):
        wanted = logits_of(model, [*ids, 5 + i, 6, 7], [len(ids)], n_ctx=2048, **settings)[len(ids) :]
        np.testing.assert_allclose(rows, wanted, atol=1e-4)
    forks.clear()
    assert pool.nbytes == alone
    seq.truncate(0)
    assert pool.nbytes == 0


def test_the_budget_ends_one_sequence_and_no_other(path: Path) -> None:
    """`kv_memory` was planned with, and then nobody was held to it."""
    ids = [3 + i % 50 for i in range(600)]
    with mixkv.load(path, n_ctx=2048, mixed_kv_cache=True, hot_window=64) as llm:
        wanted = llm.generate(ids[:300], max_tokens=8, temperature=0).tokens
        llm.generate(ids, max_tokens=1)
        taken = llm.cache.pool.nbytes
    with mixkv.load(path, n_ctx=2048, mixed_kv_cache=True, hot_window=64, kv_memory=int(1.2 * taken)) as llm:
        pool = llm.cache.pool
        assert pool.budget == int(1.2 * taken)
        llm.generate(ids[:300], max_tokens=1)
        other, tokens = llm.fork(), llm.tokens
        held = pool.nbytes
        with pytest.raises(OutOfMemoryError, match="kv_memory"):
            other.generate([*ids, *ids, *ids], max_tokens=1)
        assert held <= pool.nbytes <= pool.peak_nbytes <= pool.budget
        assert llm.tokens == tokens
        assert llm.generate(ids[:300], max_tokens=8, temperature=0).tokens == wanted
        llm.reset()
        other.reset()
        assert other.generate(ids[:300], max_tokens=8, temperature=0).tokens == wanted


def test_a_truncation_that_the_budget_refuses_changes_nothing(path: Path) -> None:
    """Past the window it restores tokens in the ring, which a fork may hold, too: that takes pages."""
    model = load_exact(path)
    ids = random_ids(model, 300)
    seq = sequence(model, n_ctx=2048, mixed_kv_cache=True, hot_window=64)
    seq.feed(ids)
    budget = seq.cache.pool.nbytes
    seq = sequence(model, n_ctx=2048, mixed_kv_cache=True, hot_window=64, pool=model.backend.page_pool(budget))
    seq.feed(ids)
    twin = seq.fork()
    before = seq.cache.stats()
    with pytest.raises(OutOfMemoryError):
        twin.truncate(100)
    assert twin.cache.stats() == seq.cache.stats() == before
    assert len(twin.tokens) == 300
    seq.truncate(0)
    twin.truncate(100)
    assert twin.cache.stats().degraded_tokens > 0
