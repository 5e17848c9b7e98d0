"""An LLM whose layers see a window: what its cache cannot be cut back to is computed again, and counted so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.state.cache import KVCache
from mixkv.models.layers import Attention, LayerSpec

IDS = list(range(5, 105))


def with_window(layer: LayerSpec, window: int) -> LayerSpec:
    assert isinstance(layer.mixer, Attention)
    return replace(layer, mixer=replace(layer.mixer, window=window))


@pytest.fixture
def llm(tmp_path: Path) -> mixkv.LLM:
    """A llama whose first layer sees 20 tokens: the cache alone decides what is read."""
    llm = mixkv.load(write_gguf(tmp_path / "m.gguf", *tiny_llama(n_layers=2)), n_ctx=128, n_batch=16, n_threads=1)
    config = replace(llm.config, layers=(with_window(llm.config.layers[0], 20), *llm.config.layers[1:]))
    plan = CachePlan.of(KVCacheConfig(), config.layers)
    llm.sequence.cache = KVCache(config, plan, llm.backend, n_ctx=128, chunk=16)
    return llm


def test_truncate_leaves_as_many_tokens_as_were_asked_for(llm: mixkv.LLM) -> None:
    """The ring no longer has what a query at 40 reads: nothing is left, and 40 tokens are computed again."""
    llm.logits(IDS)
    assert llm.cache.kept(95) == 95 and llm.cache.kept(40) == 0
    llm.truncate(40)
    assert llm.tokens == IDS[:40] and llm.cache.n == 40
    got = llm.sequence.feed([7])
    np.testing.assert_allclose(got, llm.logits([*IDS[:40], 7])[-1:], atol=1e-5)


def test_a_checkpoint_is_where_the_rest_is_computed_from(llm: mixkv.LLM) -> None:
    llm.logits(IDS[:30])
    llm.cache.checkpoint()
    llm.sequence.feed(IDS[30:])
    assert llm.generate([*IDS[:50], 9], max_tokens=1).stats.reused_tokens == 30
    llm.truncate(35)
    assert llm.tokens == IDS[:35]


def test_reuse_is_what_is_really_kept(llm: mixkv.LLM) -> None:
    """Short of the ring the whole common prefix, past it nothing; the text is that of a fresh cache."""
    llm.logits(IDS)
    near, far = [*IDS[:95], 9], [*IDS[:50], 9]
    assert llm.generate(near, max_tokens=1).stats.reused_tokens == 95
    reused = llm.generate(far, max_tokens=4, temperature=0)
    assert reused.stats.reused_tokens == 0
    llm.reset()
    assert llm.generate(far, max_tokens=4, temperature=0).tokens == reused.tokens
