"""The public operator against float64: the cases that broke the first implementation of it, by name.

Everything runs on the backend in use (`MIXKV_KERNELS` forces one). Bounds are those of the specification: NMSE 1e-6
for float segments, 1e-5 for quantized ones (float64 gets the same, dequantized values), 1e-5 absolute for one way of
cutting the keys against another.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from attention_oracle import exact_attention, nmse
from numpy.typing import NDArray

import mixkv
from mixkv.kernels import open_backend

F32 = NDArray[np.float32]
ABSOLUTE = 1e-5


def inputs(
    n: int, n_keys: int, n_heads: int, n_kv_heads: int, head_dim: int, seed: int = 0
) -> tuple[F32, NDArray[np.float16], NDArray[np.float16]]:
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n, n_heads, head_dim)).astype(np.float32)
    k, v = (rng.standard_normal((n_keys, n_kv_heads, head_dim)).astype(np.float16) for _ in range(2))
    return q, k, v


def causal(n: int, n_keys: int) -> F32:
    """Query i stands at the place of key n_keys - n + i."""
    hidden = np.arange(n_keys)[None, :] > np.arange(n_keys - n, n_keys)[:, None]
    return np.where(hidden, -np.inf, 0).astype(np.float32)


SHAPES = [(1, 8), (3, 16), (300, 8), (17, 40), (2, 64), (33, 80), (1, 96), (5, 128), (2, 256)]


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 32, 40])
@pytest.mark.parametrize(("n", "head_dim"), SHAPES)
def test_case_1_every_head_is_right_not_only_the_first_two(n_heads: int, n: int, head_dim: int) -> None:
    """A wrong output stride after a permute left all heads but two wrong."""
    q, k, v = inputs(n, 21, n_heads, n_heads, head_dim)
    state = mixkv.flash_attn_with_state(q, k, v)
    out = mixkv.finalize(state)
    wanted, lse = exact_attention(q, k, v)
    assert out.shape == (n, n_heads, head_dim)
    assert out.flags.c_contiguous and out.dtype == np.float32
    for h in range(n_heads):
        assert nmse(out[:, h], wanted[:, h]) <= 1e-6
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.lse, lse, rtol=1e-5, atol=1e-5)


def test_case_2_two_keys_in_two_segments_both_count() -> None:
    """The accumulator was cleared at every segment, so that only the last one counted."""
    q = np.array([[[1, 0, 0, 0]]], np.float32)
    k = np.array([[[1, 0, 0, 0]], [[0, 1, 0, 0]]], np.float16)
    v = np.array([[[1, 2, 3, 4]], [[5, 6, 7, 8]]], np.float16)
    state = mixkv.attend(q, (k[1:], v[1:]), mixkv.attend(q, (k[:1], v[:1])))
    weight = np.exp(0.5) / (np.exp(0.5) + 1)  # by hand: the scores are 1/2 and 0
    wanted = weight * v[0, 0].astype(np.float64) + (1 - weight) * v[1, 0].astype(np.float64)
    np.testing.assert_allclose(mixkv.finalize(state)[0, 0], wanted, atol=ABSOLUTE)


@pytest.mark.parametrize("n_segments", [1, 2, 3, 7, 64])
def test_case_2_any_number_of_segments_of_any_length_counts(n_segments: int) -> None:
    """The same, at random cuts, empty segments included."""
    rng = np.random.default_rng(n_segments)
    q, k, v = inputs(5, 200, 8, 2, 64)
    mask = causal(5, 200)
    cuts = [0, *sorted(rng.integers(0, 201, n_segments - 1).tolist()), 200]
    state = mixkv.empty_state(5, 8, 64)
    for a, b in pairwise(cuts):
        state = mixkv.attend(q, (k[a:b], v[a:b]), state, mask[:, a:b])
    out = mixkv.finalize(state)
    assert nmse(out, exact_attention(q, k, v, mask)[0]) <= 1e-6
    np.testing.assert_allclose(out, mixkv.finalize(mixkv.attend(q, (k, v), mask=mask)), atol=ABSOLUTE)


def test_case_3_threads_do_not_change_the_result() -> None:
    """Only thread 0 initialised the state; heads of other threads started from whatever was there."""
    q, k, v = inputs(3, 1000, 12, 4, 64)
    results = []
    for n_threads in (1, 2, 3, 8):
        state = mixkv.attend(q, (k, v), backend=open_backend(n_threads))
        results.append((state.m, state.s, state.acc))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)
    assert nmse(results[0][2] / results[0][1][..., None], exact_attention(q, k, v)[0]) <= 1e-6


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 5, 16])
def test_case_3_chunks_do_not_change_the_result(n_chunks: int) -> None:
    """Partial states of separate chunks, merged, are the state of all keys."""
    q, k, v = inputs(2, 333, 6, 2, 80)
    merged = mixkv.empty_state(2, 6, 80)
    for part in np.array_split(np.arange(333), n_chunks):
        merged = mixkv.merge(merged, mixkv.attend(q, (k[part], v[part])))
    whole = mixkv.finalize(mixkv.attend(q, (k, v)))
    np.testing.assert_allclose(mixkv.finalize(merged), whole, atol=ABSOLUTE)


@pytest.mark.parametrize(("n", "n_keys", "head_dim"), [(1, 17, 64), (4, 63, 8), (1, 700, 128)])
def test_case_4_nothing_reads_memory_that_nobody_wrote(n: int, n_keys: int, head_dim: int) -> None:
    """Wrong workspace offsets gave zeros and sporadic values. The heap is poisoned, so that fresh buffers hold NaN."""
    q, k, v = inputs(n, n_keys, 4, 2, head_dim)
    wanted = exact_attention(q, k, v)[0]
    for _ in range(3):
        sizes = [n * 4, n * 4 * head_dim, n_keys * 2 * head_dim, n * 4 * n_keys, 1 << 14]
        poison = [np.full(size, np.nan, np.float32) for size in sizes for _ in range(4)]
        assert all(np.isnan(p).all() for p in poison)
        del poison
        out = mixkv.finalize(mixkv.flash_attn_with_state(q, k, v))
        assert nmse(out, wanted) <= 1e-6


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("with_quant_mask", [False, True])
@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_case_5_each_mask_may_be_left_out_on_its_own(with_mask: bool, with_quant_mask: bool, kind: str) -> None:
    """A quantized segment without its mask was read through a null pointer."""
    q, k, v = inputs(6, 40, 4, 2, 64)
    cold_k, cold_v = (mixkv.QuantizedRows.quantize(x[:32].astype(np.float32), kind) for x in (k, v))
    mask = np.where(np.arange(8)[None, :] > np.arange(6)[:, None], -np.inf, 0.25) if with_mask else None
    mask_quant = np.where(np.arange(32)[None, :] % 5 == np.arange(6)[:, None], -np.inf, 0) if with_quant_mask else None
    state = mixkv.flash_attn_with_state(q, k[32:], v[32:], mask, cold_k, cold_v, mask_quant)
    both = [np.zeros((6, 32)) if mask_quant is None else mask_quant, np.zeros((6, 8)) if mask is None else mask]
    keys, values = (np.concatenate([a.dequantize(), b[32:].astype(np.float32)]) for a, b in ((cold_k, k), (cold_v, v)))
    wanted, lse = exact_attention(q, keys, values, np.concatenate(both, axis=1))
    assert nmse(mixkv.finalize(state), wanted) <= 1e-5
    np.testing.assert_allclose(state.lse, lse, atol=1e-3)


def test_case_6_calls_leave_their_arguments_alone_and_can_be_repeated() -> None:
    """Continuation read the previous result from the output buffer; a second call saw the first one's leavings."""
    q, k, v = inputs(4, 30, 6, 3, 48)
    before = mixkv.attend(q, (k[:10], v[:10]))
    kept = [a.copy() for a in (q, k, v, before.m, before.s, before.acc)]
    first = mixkv.attend(q, (k[10:], v[10:]), before)
    second = mixkv.attend(q, (k[10:], v[10:]), before)
    out = mixkv.finalize(first)
    for a, b in zip((q, k, v, before.m, before.s, before.acc), kept, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip((first.m, first.s, first.acc), (second.m, second.s, second.acc), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, b)
    for a in (first.m, first.s, first.acc, out):
        assert not any(np.shares_memory(a, b) for b in (q, k, v, before.m, before.s, before.acc))
    assert not np.shares_memory(out, first.acc)


def test_case_7_two_segments_without_a_mask_equal_the_whole() -> None:
    """Two queries, four keys, two segments, no mask: the original was off by 0.345."""
    q, k, v = inputs(2, 4, 2, 2, 16)
    whole = mixkv.finalize(mixkv.flash_attn_with_state(q, k, v))
    state = mixkv.flash_attn_with_state(q, k[:2], v[:2])
    parts = mixkv.finalize(mixkv.flash_attn_with_state(q, k[2:], v[2:], state=state))
    np.testing.assert_allclose(parts, whole, atol=ABSOLUTE)
    assert nmse(parts, exact_attention(q, k, v)[0]) <= 1e-6


def test_case_8_sixty_five_thousand_keys_stay_accurate() -> None:
    """Sums over many keys lose digits where a running maximum or a float16 accumulator is wrong."""
    n_keys, hot = 65_536, 1024
    q, k, v = inputs(2, n_keys, 4, 2, 64, seed=8)
    cold_k, cold_v = (mixkv.QuantizedRows.quantize(x[:-hot].astype(np.float32)) for x in (k, v))
    state = mixkv.flash_attn_with_state(q, k[-hot:], v[-hot:], None, cold_k, cold_v)
    keys, values = (
        np.concatenate([a.dequantize(), b[-hot:].astype(np.float32)]) for a, b in ((cold_k, k), (cold_v, v))
    )
    wanted, lse = exact_attention(q, keys, values)
    assert nmse(mixkv.finalize(state), wanted) <= 1e-5
    np.testing.assert_allclose(state.lse, lse, atol=1e-3)


@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
def test_case_9_grouped_queries_read_their_own_key_head(group: int) -> None:
    """Query head h belongs to KV head h // group; a wrong broadcast mixes the groups up."""
    q, k, v = inputs(3, 37, 2 * group, 2, 64)
    cold_k, cold_v = (mixkv.QuantizedRows.quantize(x.astype(np.float32)) for x in (k, v))
    assert nmse(mixkv.finalize(mixkv.attend(q, (k, v))), exact_attention(q, k, v)[0]) <= 1e-6
    wanted = exact_attention(q, cold_k.dequantize(), cold_v.dequantize())[0]
    assert nmse(mixkv.finalize(mixkv.attend(q, (cold_k, cold_v))), wanted) <= 1e-5
