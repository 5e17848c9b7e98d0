"""Native logits are bit-identical for any number of threads, any cut of the prompt and any pieces in which the cache
takes it, one by one or in a batch, and after save and restore, for every instruction set that this machine runs
(NumPy's matrix products are not)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mixkv
from mixkv.engine.llm import LLM
from mixkv.engine.state.cache import KVCache
from mixkv.kernels import default_backend
from mixkv.kernels.state import F32

pytestmark = pytest.mark.skipif(default_backend().name != "native", reason="the native kernels are not in use")

N = 150
CACHES = {
    "mixed": {"mixed_kv_cache": True, "hot_window": 32, "sink_tokens": 4},
    "mixed_q8": {"mixed_kv_cache": True, "hot_window": 16, "sink_tokens": 0, "type_k": "q8_0", "type_v": "q4_0"},
    "reserve": {"mixed_kv_cache": True, "hot_window": 17, "sink_tokens": 0, "rollback_reserve": 9},
    "no_window": {"mixed_kv_cache": True, "hot_window": 0, "sink_tokens": 3},
    "f16": {},
    "q8_0": {"type_k": "q8_0", "type_v": "q8_0"},
}


def run(cache: str, *, n_batch: int, n_threads: int = 2, piece: int = 0) -> tuple[LLM, F32]:
    """A fresh demo model and its logits for a fixed random prompt of N tokens."""
    llm = mixkv.load(n_ctx=256, n_batch=n_batch, n_threads=n_threads, **CACHES[cache])
    if piece:
        llm.sequence.cache = KVCache(llm.config, llm.cache.plan, llm.backend, n_ctx=256, chunk=piece)
    return llm, llm.logits(np.random.default_rng(1).integers(3, llm.config.n_vocab, N))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.filterwarnings("ignore::mixkv.MixkvWarning")
def test_logits_do_not_depend_on_threads_or_chunks(isa: str, cache: str) -> None:
    """A float sum whose order followed the batch or the thread would show in the last bit."""
    _, expected = run(cache, n_batch=256)
    for n_batch, n_threads in ((1, 1), (7, 2), (32, 3), (100, 8), (256, 1)):
        _, logits = run(cache, n_batch=n_batch, n_threads=n_threads)
        different = int((logits != expected).sum())
        assert different == 0, f"{different} logits differ for chunks of {n_batch} on {n_threads} threads"


@pytest.mark.parametrize("cache", [name for name, settings in CACHES.items() if settings])
@pytest.mark.filterwarnings("ignore::mixkv.MixkvWarning")
def test_logits_do_not_depend_on_pieces(isa: str, cache: str) -> None:
    """Chunks of 100 tokens for the matrix products, cut again for attention, at tiles and elsewhere."""
    _, expected = run(cache, n_batch=100)
    for piece in (1, 16, 33, 48):
        _, logits = run(cache, n_batch=100, piece=piece)
        different = int((logits != expected).sum())
        assert different == 0, f"{different} logits differ for pieces of {piece}"


def test_a_restored_session_continues_bit_for_bit(isa: str, tmp_path: Path) -> None:
    """Cold tiles written out in GGML's order and read back are the tiles that were there."""
    llm, expected = run("mixed", n_batch=64)
    llm.truncate(N - 1)
    llm.save_session(tmp_path / "s")
    twin = mixkv.load(n_ctx=256, **CACHES["mixed"])
    twin.load_session(tmp_path / "s")
    last = int(np.random.default_rng(1).integers(3, llm.config.n_vocab, N)[-1])
    assert np.array_equal(twin.sequence.feed([last])[0], expected[-1])


def test_a_fork_continues_bit_for_bit(isa: str) -> None:
    """A fork shares nothing with its origin, which may go elsewhere in the meantime."""
    llm, _ = run("mixed", n_batch=64)
    fork = llm.cache.fork()
    expected = llm.sequence.feed([5, 6, 7])
    llm.sequence.cache = fork
    assert np.array_equal(llm.sequence.feed([5, 6, 7]), expected)
