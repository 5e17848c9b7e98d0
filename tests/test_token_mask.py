"""apply_token_mask, by both twins: which tokens of a vocabulary may be drawn, a bit each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_tools import NATIVE_IS_BUILT

from mixkv.kernels import open_backend

needs_native = pytest.mark.skipif(not NATIVE_IS_BUILT, reason="built without the native extension")


def plain(logits: np.ndarray, bitmask: np.ndarray) -> list[float]:
    """Bit by bit, as the contract says it."""
    words = [int(word) & 0xFFFF_FFFF for word in bitmask]
    return [
        float(value) if i // 32 < len(words) and words[i // 32] >> (i % 32) & 1 else -np.inf
        for i, value in enumerate(logits)
    ]


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)], scope="module")
def twin(request: pytest.FixtureRequest) -> Any:
    return open_backend(1, kind=request.param)


@given(n=st.integers(1, 200), n_words=st.integers(0, 8), seed=st.integers(0, 2**32 - 1), full=st.booleans())
@settings(max_examples=150)
def test_what_a_bit_does_not_allow_is_banned(twin: Any, n: int, n_words: int, seed: int, full: bool) -> None:
    """A vocabulary's last word is rarely full, the mask of a padded tokenizer is longer than the logits, and that of a
    model with more rows than tokens shorter: reading past either end draws tokens that nobody allowed. Words with all
    or no bits go ways of their own."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(n).astype(np.float32)
    logits[rng.random(n) < 0.1] = -np.inf
    bitmask = rng.integers(-(2**31), 2**31, n_words).astype(np.int32)
    bitmask[rng.random(n_words) < 0.5] = -1 if full else 0
    before = logits.copy()
    out = twin.apply_token_mask(logits, bitmask)
    assert out.dtype == np.float32 and out.tolist() == plain(logits, bitmask)
    assert np.array_equal(logits, before) and not np.shares_memory(out, logits)


def test_a_large_vocabulary(twin: Any) -> None:
    """Word boundaries far into an array, where an index of the wrong width would have wrapped."""
    logits = np.arange(151_937, dtype=np.float32)
    bitmask = np.zeros(4_749, np.int32)
    bitmask[4_748], bitmask[31] = 1, -(2**31)
    out = twin.apply_token_mask(logits, bitmask)
    assert np.flatnonzero(out > -np.inf).tolist() == [31 * 32 + 31, 4_748 * 32]


@needs_native
@pytest.mark.parametrize(
    "logits, bitmask",
    [
        (np.zeros((2, 8), np.float32), np.zeros(1, np.int32)),
        (np.zeros(8, np.float64), np.zeros(1, np.int32)),
        (np.zeros(8, np.float32), np.zeros(1, np.int64)),
        (np.zeros(16, np.float32)[::2], np.zeros(1, np.int32)),
    ],
    ids=["two rows", "double", "long words", "strided"],
)
def test_other_arrays_are_refused(logits: np.ndarray, bitmask: np.ndarray) -> None:
    """A strided or wider array read as if it were plain gives numbers from beside it."""
    with pytest.raises(TypeError):
        open_backend(1, kind="native").apply_token_mask(logits, bitmask)
