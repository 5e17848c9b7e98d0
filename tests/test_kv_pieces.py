"""A step that the cache takes piece by piece: what it holds at most, and what is left when it breaks off between two.

By then layers stand at different pieces, and those that ran have overwritten ring slots of tokens that were there
before. The exceptions come from the real store, at any of its calls.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_tools import load_exact, random_ids, random_llama, sequence

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.memory import cache_bytes
from mixkv.engine.sequence import Sequence
from mixkv.engine.session import restore_session, save_session
from mixkv.engine.state.cache import KVCache
from mixkv.engine.state.mixed_policy import PIECE
from mixkv.kernels import default_backend
from mixkv.kernels.formats import decode
from mixkv.models.decoder import Decoder
from mixkv.models.layers import Attention, LayerSpec

N_LAYERS = 3
CACHES: dict[str, dict[str, Any]] = {
    "mixed": {"mixed_kv_cache": True, "hot_window": 32, "sink_tokens": 16},
    "reserve": {"mixed_kv_cache": True, "hot_window": 17, "sink_tokens": 0, "rollback_reserve": 9},
    "no window": {"type_k": "q4_0", "type_v": "q8_0"},
    "plain": {},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf", n_layers=N_LAYERS)


@pytest.fixture(scope="module")
def model(path: Path) -> Decoder:
    return load_exact(path)


@pytest.fixture(scope="module")
def ids(model: Decoder) -> list[int]:
    return random_ids(model, 500)


class Breaking:
    """The store of `cache`, until its call number `after` of `method` has been made (or is about to be)."""

    def __init__(self, cache: KVCache, method: str, after: int, done: bool, error: type[BaseException]) -> None:
        self.cache, self.store, self.method, self.left, self.done, self.error = (
            cache, cache.states[0].store, method, after, done, error,
        )  # fmt: skip
        cache.states[0].store = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.store, name)
        return self.counted(real) if name == self.method else real

    def counted(self, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            result = real(*args, **options) if self.left >= 0 or self.done else None
            if self.left < 0:
                self.cache.states[0].store = self.store
                raise self.error
            return result

        return call


def break_off(seq: Sequence, ids: list[int], call: int, *, done: bool = True) -> None:
    """Feed `ids` in one step, which fails at the store's step number `call` over all pieces and layers."""
    Breaking(seq.cache, "step", call, done, KeyboardInterrupt)
    tokens = list(seq.tokens)
    with pytest.raises(KeyboardInterrupt):
        seq.feed(ids)
    assert seq.tokens == tokens and seq.cache.n == len(tokens)


def rows_lost(seq: Sequence, control: Sequence, layer: int) -> int:
    """Hot tokens of a layer that are no longer what the undisturbed cache has; they must be the oldest, dequantized."""
    p, plan = seq.cache.states[0].policy, seq.cache.plan
    start = p.marks.hot_start
    hot, wanted = (s.cache.states[0].store.get_hot(layer, start, p.n) for s in (seq, control))
    differ = [(rows != exact).any(axis=(1, 2)) for rows, exact in zip(hot, wanted, strict=True)]
    lost = max(int(differs.sum()) for differs in differ)
    cold = seq.cache.states[0].store.get_cold(layer, start, start + lost)
    for kind, rows, differs, quantized in zip(("type_k", "type_v"), hot, differ, cold, strict=True):
        assert differs[: int(differs.sum())].all(), f"{kind}: an exact token before a restored one"
        restored = decode(quantized, getattr(plan.layers[layer], kind), rows.shape[2]).astype(rows.dtype)
        np.testing.assert_array_equal(rows[:lost], restored)
    return lost


@settings(max_examples=80)
@given(
    st.sampled_from(sorted(CACHES)), st.integers(1, 160), st.integers(1, 60) | st.integers(100, 230),
    st.sampled_from([16, 20, 48]), st.integers(0, 40), st.booleans(),
)  # fmt: skip
def test_a_step_that_breaks_off_leaves_every_token_before_it(
    model: Decoder, ids: list[int], name: str, n: int, more: int, piece: int, call: int, done: bool
) -> None:
    """Before the failed call, or after it: the tokens that were there are whole, and inexact ones are counted."""
    seq, control = (sequence(model, piece=piece, **CACHES[name]) for _ in range(2))
    for s in (seq, control):
        s.feed(ids[:n])
    before = seq.cache.stats()
    call %= N_LAYERS * len(seq.cache.states[0].policy.steps(more))
    break_off(seq, ids[200 : 200 + more], call, done=done)
    lost = [rows_lost(seq, control, layer) for layer in range(N_LAYERS)]
    stats = seq.cache.stats()
    assert stats.degraded_tokens == max(lost)
    if max(lost) == 0:
        assert stats == before
        np.testing.assert_array_equal(seq.feed(ids[n : n + 60]), control.feed(ids[n : n + 60]))
        return
    assert (stats.n_tokens, stats.hot_tokens) == (before.n_tokens, before.hot_tokens)
    assert stats.nbytes <= stats.peak_bytes
    logits = seq.feed(ids[n : n + 90])
    control.feed(ids[n : n + 90])
    assert np.isfinite(logits).all() and seq.cache.stats().degraded_tokens == 0
    sinks, stop = seq.cache.plan.sink_tokens, n - n % 16  # the tile that was not full is filled by other rows
    for layer in range(N_LAYERS):
        mine, theirs = (s.cache.states[0].store.get_cold(layer, sinks, stop) for s in (seq, control))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)  # quantized once, from exact values


def test_degraded_tokens_are_those_whose_slots_are_gone(model: Decoder, ids: list[int]) -> None:
    """By hand: 160 tokens are 16 sinks and tiles 0 to 8, of which 7 and 8 are hot. A window of 32, a piece of 16 and
    two partial tiles make a ring of 5: tile 12, the step's fourth, takes the slot of tile 7, and tile 13 that of 8."""
    for call, lost in ((0, 0), (2, 0), (3, 16), (4, 32), (6, 32)):
        seq, control = (sequence(model, piece=16, **CACHES["mixed"]) for _ in range(2))
        for s in (seq, control):
            s.feed(ids[:160])
        assert (seq.cache.states[0].policy.marks.hot_start, seq.cache.states[0].policy.hot_tiles) == (128, 5)
        break_off(seq, ids[:112], call)
        assert rows_lost(seq, control, 0) == seq.cache.stats().degraded_tokens == lost, call
        assert rows_lost(seq, control, 1) == rows_lost(seq, control, 2) == 0, "layers that did not run are exact"


def test_an_interrupt_while_the_cache_is_mended(model: Decoder, ids: list[int], tmp_path: Path) -> None:
    """Ctrl-C twice: whoever uses the cache next finishes the work, be it a fork or a session."""

    def filled() -> Sequence:
        seq = sequence(model, piece=16, **CACHES["mixed"])
        seq.feed(ids[:160])
        return seq

    def interrupted() -> Sequence:
        seq = filled()
        Breaking(seq.cache, "rehydrate", 1, False, KeyboardInterrupt)
        Breaking(seq.cache, "step", 12, True, MemoryError)
        with pytest.raises(KeyboardInterrupt):
            seq.feed(ids[:112])
        return seq

    wanted = filled()
    break_off(wanted, ids[:112], 12)
    twice = interrupted()
    fork = twice.cache.fork()
    assert fork.stats() == twice.cache.stats() == wanted.cache.stats()
    save_session(tmp_path / "s", interrupted())
    restored = restore_session(tmp_path / "s", twice)
    logits = wanted.feed(ids[160:200])
    np.testing.assert_array_equal(twice.feed(ids[160:200]), logits)
    found = restored.feed(ids[160:200])
    if default_backend().name == "native":
        np.testing.assert_array_equal(found, logits)
    else:  # the restored cache has larger pieces, and NumPy's products round by their shape
        np.testing.assert_allclose(found, logits, atol=1e-3)


def test_exact_prefixes_do_not_keep_restored_tokens(model: Decoder, ids: list[int]) -> None:
    seq = sequence(model, piece=16, **CACHES["mixed"])
    seq.feed(ids[:160])
    assert seq.keep_prefix(ids[:200], exact=True) == 160
    break_off(seq, ids[160:300], 20)
    assert seq.cache.stats().degraded_tokens > 0
    assert seq.keep_prefix(ids[:200], exact=True) == 0


def test_attention_by_pieces_is_that_of_the_whole(model: Decoder, ids: list[int]) -> None:
    """One layer's attend, 120 rows in one piece and in pieces of 7 and 16; float sums may round otherwise."""
    rng, outs = np.random.default_rng(0), []
    q, k, v = (rng.standard_normal((120, heads, 64), np.float32) for heads in (4, 2, 2))
    for piece in (120, 16, 7):
        cache = sequence(model, piece=piece, **CACHES["mixed"]).cache
        pos = cache.begin(120)
        outs.append(cache.attend(0, q, k, v))
        assert pos == 0 and outs[-1].shape == (120, 4, 64) and outs[-1].flags.c_contiguous
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], atol=1e-5)


def test_the_promise_of_memory(model: Decoder) -> None:
    """16,384 tokens of a Decoder 3.2 1B, the default window, 512 tokens at a time: 0.32 of FP16, at the peak too."""
    layer = LayerSpec(Attention(32, 8, 64, 64, scale=0.125, rope=None), None)
    shape = replace(model.config, layers=(layer,) * 16)
    plan = CachePlan.of(KVCacheConfig(mixed_kv_cache=True), shape.layers)
    cache = KVCache(shape, plan, model.backend, n_ctx=16_384, chunk=512)
    while cache.n < 16_384:
        cache.begin(512)
        cache.commit()
    stats = cache.stats()
    fp16 = 16_384 * 32_768
    assert stats.fp16_bytes == fp16 and PIECE == 128
    assert 0.300 * fp16 < stats.nbytes < stats.peak_bytes <= 0.313 * fp16
    assert stats.peak_bytes <= cache_bytes(shape, plan, 16_384, 512)["mixed"] <= 0.32 * fp16, (
        "what is reserved is that, too"
    )
