"""What holds for every state: the laws of merge, any order of segments, layouts, biases, errors for wrong shapes."""

from __future__ import annotations

import numpy as np
import pytest
from attention_oracle import exact_attention, nmse, slope_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mixkv
from mixkv import AttentionState

F32 = NDArray[np.float32]
N, HEADS, HEAD_DIM = 3, 4, 8


def equal(a: AttentionState, b: AttentionState) -> bool:
    return all(np.array_equal(x, y) for x, y in ((a.m, b.m), (a.s, b.s), (a.acc, b.acc)))


@st.composite
def states(draw: st.DrawFn) -> AttentionState:
    """The state after a few random keys (none, too), with scores of any size and some keys hidden."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_keys = draw(st.integers(0, 6))
    loudness = draw(st.sampled_from([0.01, 1.0, 30.0]))
    q = rng.standard_normal((N, HEADS, HEAD_DIM)).astype(np.float32) * np.float32(loudness)
    k, v = (rng.standard_normal((n_keys, 2, HEAD_DIM)).astype(np.float32) for _ in range(2))
    mask = np.where(rng.random((N, n_keys)) < draw(st.sampled_from([0.0, 0.4, 1.0])), -np.inf, 0)
    return mixkv.attend(q, (k, v), mixkv.empty_state(N, HEADS, HEAD_DIM), mask)


@given(states(), states())
def test_merge_is_commutative(a: AttentionState, b: AttentionState) -> None:
    assert equal(mixkv.merge(a, b), mixkv.merge(b, a))


@given(states())
def test_the_empty_state_is_the_identity_of_merge(a: AttentionState) -> None:
    """-inf minus -inf is NaN where nobody guards it."""
    empty = mixkv.empty_state(N, HEADS, HEAD_DIM)
    assert equal(mixkv.merge(a, empty), a)
    assert equal(mixkv.merge(empty, a), a)
    assert equal(mixkv.merge(empty, empty), empty)


@given(states(), states(), states())
def test_merge_is_associative_up_to_rounding(a: AttentionState, b: AttentionState, c: AttentionState) -> None:
    left, right = mixkv.merge(mixkv.merge(a, b), c), mixkv.merge(a, mixkv.merge(b, c))
    np.testing.assert_array_equal(left.m, right.m)  # a maximum has no rounding
    # three terms, a product and an exponential each: a few float32 roundings (6e-8)
    np.testing.assert_allclose(left.s, right.s, rtol=1e-6)
    np.testing.assert_allclose(left.acc, right.acc, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(st.permutations(range(5)), st.integers(0, 2**32))
def test_segments_may_come_in_any_order(order: list[int], seed: int) -> None:
    """Float and quantized segments of different lengths; attending one after another equals merging their states."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, HEADS, 32)).astype(np.float32)
    parts = []
    for length, kind in ((1, "f16"), (16, "q4_0"), (0, "f16"), (30, "q8_0"), (7, "f16")):
        k, v = (rng.standard_normal((length, 2, 32)).astype(np.float32) for _ in range(2))
        if kind == "f16":
            parts.append((k.astype(np.float16), v.astype(np.float16)))
        else:
            parts.append((mixkv.QuantizedRows.quantize(k, kind), mixkv.QuantizedRows.quantize(v, kind)))
    chained = merged = mixkv.empty_state(2, HEADS, 32)
    straight = mixkv.empty_state(2, HEADS, 32)
    for i in order:
        chained = mixkv.attend(q, parts[i], chained)
        merged = mixkv.merge(mixkv.attend(q, parts[i]), merged)
    for part in parts:
        straight = mixkv.attend(q, part, straight)
    wanted = mixkv.finalize(straight)
    np.testing.assert_allclose(mixkv.finalize(chained), wanted, atol=1e-5)
    np.testing.assert_allclose(mixkv.finalize(merged), wanted, atol=1e-5)


def test_ms_is_two_rows_with_the_queries_of_a_head_side_by_side() -> None:
    """`state.ms` is an interface to other programs: (2, n_heads * n_queries), m above s."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 2, 8)).astype(np.float32)
    k, v = (rng.standard_normal((5, 1, 8)).astype(np.float16) for _ in range(2))
    state = mixkv.attend(q, (k, v))
    assert state.ms.shape == (2, 6)
    for h in range(2):
        for i in range(3):
            score = k[:, 0].astype(np.float64) @ q[i, h] / np.sqrt(8)
            m, s = state.ms[:, h * 3 + i]
            assert m == pytest.approx(score.max(), rel=1e-5)
            assert s == pytest.approx(np.exp(score - score.max()).sum(), rel=1e-5)


def test_rows_that_saw_no_key_are_zero_and_their_lse_is_minus_infinity() -> None:
    state = mixkv.empty_state(2, 3, 8)
    assert np.array_equal(mixkv.finalize(state), np.zeros((2, 3, 8), np.float32))
    assert np.isneginf(state.lse).all()
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 8)), rng.standard_normal((4, 3, 8))
    mask = np.zeros((2, 4))
    mask[0] = -np.inf  # query 0 sees nothing, query 1 everything
    state = mixkv.attend(q, (k.astype(np.float16), k.astype(np.float16)), mask=mask)
    assert np.array_equal(mixkv.finalize(state)[0], np.zeros((3, 8), np.float32))
    assert np.isneginf(state.lse[0]).all() and np.isfinite(state.lse[1]).all()


def test_an_empty_segment_leaves_the_state_alone() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 2, 8)).astype(np.float32)
    k = rng.standard_normal((3, 2, 8)).astype(np.float16)
    state, nothing = mixkv.attend(q, (k, k)), k[:0]
    assert equal(mixkv.attend(q, (nothing, nothing), state), state)
    assert equal(mixkv.attend(q, (nothing, nothing), state, np.empty((2, 0))), state)
    cold = mixkv.QuantizedRows.quantize(nothing.astype(np.float32))
    assert equal(mixkv.flash_attn_with_state(q, None, None, None, cold, cold, state=state), state)


def test_a_learned_sink_takes_its_share_of_the_softmax() -> None:
    """A sink logit is a key with that score and no value: it only adds to the denominator."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 2, 8)).astype(np.float32)
    k, v = (rng.standard_normal((5, 2, 8)).astype(np.float16) for _ in range(2))
    logit = np.array([0.7, -1.2], np.float32)
    got = mixkv.finalize(mixkv.attend(q, (k, v), mixkv.sink_state(logit, 2, 8)))
    plain, lse = exact_attention(q, k, v)
    share = 1 / (1 + np.exp(logit[None, :] - lse))
    np.testing.assert_allclose(got, plain * share[..., None], atol=1e-5)


@pytest.mark.parametrize("n_heads", [1, 4, 6, 12])
def test_alibi_slopes_multiply_the_mask(n_heads: int) -> None:
    """Slopes for head counts that are no power of two come from a second series, easily got wrong."""
    rng = np.random.default_rng(n_heads)
    q = rng.standard_normal((4, n_heads, 16)).astype(np.float32)
    k, v = (rng.standard_normal((20, 1, 16)).astype(np.float16) for _ in range(2))
    distance = np.arange(20)[None, :] - np.arange(16, 20)[:, None]
    mask = np.where(distance > 0, -np.inf, distance)
    out = mixkv.finalize(mixkv.flash_attn_with_state(q, k, v, mask, max_bias=8.0))
    assert nmse(out, exact_attention(q, k, v, mask, max_bias=8.0)[0]) <= 1e-6


def test_slopes_of_the_paper() -> None:
    """The oracle itself: 8 heads have 1/2, 1/4, ... 1/256, and 12 add every other of 2^-0.5, 2^-1, ..."""
    assert [slope_of(h, 8, 8.0) for h in range(8)] == pytest.approx([2.0**-i for i in range(1, 9)])
    assert [slope_of(h, 12, 8.0) for h in range(8, 12)] == pytest.approx([2.0**-x for x in (0.5, 1.5, 2.5, 3.5)])


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_softcap_and_scale_and_mask_together(kind: str) -> None:
    """The cap goes on the score before the mask: capping -inf would let hidden keys in."""
    rng = np.random.default_rng(0)
    q = 4 * rng.standard_normal((5, 4, 32)).astype(np.float32)
    k, v = (rng.standard_normal((25, 2, 32)).astype(np.float32) for _ in range(2))
    mask = np.where(np.arange(25)[None, :] > np.arange(20, 25)[:, None], -np.inf, 0)
    options = {"scale": 0.31, "max_bias": 4.0}
    if kind == "f16":
        keys, values = k.astype(np.float16), v.astype(np.float16)
        state = mixkv.flash_attn_with_state(q, keys, values, mask, logit_softcap=3.0, **options)
    else:
        cold = [mixkv.QuantizedRows.quantize(x) for x in (k, v)]
        state = mixkv.flash_attn_with_state(q, None, None, None, *cold, mask, logit_softcap=3.0, **options)
        keys, values = (rows.dequantize() for rows in cold)
    wanted, lse = exact_attention(q, keys, values, mask, softcap=3.0, **options)
    assert nmse(mixkv.finalize(state), wanted) <= (1e-6 if kind == "f16" else 1e-5)
    np.testing.assert_allclose(state.lse, lse, atol=1e-3)


def test_values_may_be_wider_than_keys() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 4, 16)).astype(np.float32)
    k, v = rng.standard_normal((9, 2, 16)).astype(np.float16), rng.standard_normal((9, 2, 24)).astype(np.float16)
    out = mixkv.finalize(mixkv.attend(q, (k, v)))
    assert out.shape == (2, 4, 24)
    assert nmse(out, exact_attention(q, k, v)[0]) <= 1e-6


def test_scores_that_overflow_float16_and_exp_are_handled() -> None:
    """Scores of +-1,000 overflow exp unless the running maximum is taken off first."""
    q = np.array([[[100.0, 0, 0, 0]]], np.float32)
    k = np.array([[[20, 0, 0, 0]], [[-20, 0, 0, 0]], [[19.9921875, 0, 0, 0]]], np.float16)
    v = np.eye(4, dtype=np.float16)[:3, None, :]
    for order in ([0, 1, 2], [1, 2, 0], [2, 1, 0]):
        state = mixkv.empty_state(1, 1, 4)
        for i in order:
            state = mixkv.attend(q, (k[i : i + 1], v[i : i + 1]), state)
        np.testing.assert_allclose(mixkv.finalize(state), exact_attention(q, k, v)[0], atol=1e-5)


Q, K = np.zeros((2, 4, 8), np.float32), np.zeros((5, 2, 8), np.float16)
COLD = mixkv.QuantizedRows.quantize(np.zeros((5, 2, 8), np.float32))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mixkv.attend(Q[0], (K, K)),
        lambda: mixkv.attend(Q, (K[0], K[0])),
        lambda: mixkv.attend(Q, (K, K[:3])),
        lambda: mixkv.attend(Q[:, :3], (K, K)),
        lambda: mixkv.attend(Q[..., :4], (K, K)),
        lambda: mixkv.attend(Q, (K[:, :0], K[:, :0])),
        lambda: mixkv.attend(Q, (K, K), mask=np.zeros((2, 4))),
        lambda: mixkv.attend(Q, (K, K), mixkv.empty_state(2, 4, 9)),
        lambda: mixkv.attend(Q, (K, K), mixkv.empty_state(1, 4, 8)),
        lambda: mixkv.flash_attn_with_state(Q, K, None),
        lambda: mixkv.flash_attn_with_state(Q, None, None),
        lambda: mixkv.flash_attn_with_state(Q, K, K, None, COLD),
        lambda: mixkv.flash_attn_with_state(Q, K, K, mask_quant=np.zeros((2, 5))),
        lambda: mixkv.attend(Q, (K, COLD[:4])),
    ],
)
def test_shapes_that_do_not_fit_are_input_errors(call: object) -> None:
    """A caller's mistake is one typed line, never a NumPy traceback or a silent broadcast."""
    assert callable(call)
    with pytest.raises(mixkv.InputError) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"logit_softcap": -1.0}, {"max_bias": -8.0}])
def test_negative_settings_are_config_errors(options: dict[str, float]) -> None:
    with pytest.raises(mixkv.ConfigError):
        mixkv.attend(Q, (K, K), **options)
