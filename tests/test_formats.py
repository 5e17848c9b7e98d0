"""Rows of the cache are bit for bit those of GGML: the gguf package's quantizer, written by others, is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import mixkv
from mixkv.kernels import CACHE_TYPES, LayerFormat, cache_type
from mixkv.kernels.formats import decode, encode

F32 = NDArray[np.float32]
KINDS = {"q4_0": GGMLQuantizationType.Q4_0, "q8_0": GGMLQuantizationType.Q8_0}
HEAD_DIMS = [8, 32, 48, 64, 80, 96, 112, 128, 256]


def padded(x: F32) -> F32:
    """Rows filled up with zeros to whole blocks of 32."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 32)])


def check(x: F32, kind: str) -> None:
    """Bytes and the way back, both against the gguf package."""
    with np.errstate(all="ignore"):
        wanted = quantize(padded(x), KINDS[kind])
        numbers = dequantize(wanted, KINDS[kind])[..., : x.shape[-1]]
    got = encode(x, kind)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(decode(got, kind, x.shape[-1]), numbers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_random_rows_of_every_head_dim(kind: str, head_dim: int) -> None:
    """Head dims that 32 does not divide are padded with zeros, which must quantize to exact zeros."""
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((50, 3, head_dim)).astype(np.float32)
    check(x, kind)
    check(x * np.float32(1e-3), kind)
    x[..., 1] *= 1000  # an outlier takes the scale of its block
    check(x, kind)
    codes = decode(encode(padded(x), kind), kind, padded(x).shape[-1])
    assert not codes[..., head_dim:].any()


SPECIAL = {
    "zeros": np.zeros(32),
    "minus-zeros": -np.zeros(32),
    "mixed-zeros": np.array([0.0, -0.0] * 16),
    "one-value": np.array([0.0] * 31 + [2.5]),
    "one-negative-value": np.array([-2.5] + [0.0] * 31),
    "subnormal": np.arange(32) * 1e-41,
    "scale-underflows-float16": np.arange(-16, 16) * 1e-9,
    "scale-is-a-subnormal-float16": np.arange(-16, 16) * 1e-6,
    "scale-overflows-float16": np.arange(-16, 16) * 1e5,
    "largest-float32": np.array([np.finfo(np.float32).max] + [1.0] * 31),
    "ties-of-magnitude": np.array([1.0, -1.0] * 16),
    "ties-negative-first": np.array([-1.0, 1.0] * 16),
    "exact-codes": np.arange(-8, 24) / 4,
    "halves-between-codes": (np.arange(32) - 8 + 0.5) / 8,
    "quarters-around-codes": np.linspace(-8, 7, 32),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SPECIAL)
def test_special_blocks(kind: str, case: str) -> None:
    """Signs of zero, ties, and scales at the edges of float16: where two quantizers part ways."""
    x = SPECIAL[case].astype(np.float32)[None]
    check(x, kind)
    check(x[:, ::-1].copy(), kind)
    check(-x, kind)


@settings(max_examples=200)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([8, 32, 48])),
               elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(sorted(KINDS)),
)  # fmt: skip
def test_any_rows(x: F32, kind: str) -> None:
    check(x, kind)


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_nan_and_infinity_are_data(kind: str, bad: float) -> None:
    """A model with broken weights gives broken text, not an exception or a warning from inside NumPy; and the
    neighbours in other blocks are untouched."""
    x = np.ones((2, 64), np.float32)
    x[0, 3] = bad
    out = decode(encode(x, kind), kind, 64)
    assert out.shape == x.shape
    np.testing.assert_allclose(out[1], 1, rtol=1e-2)
    np.testing.assert_allclose(out[0, 32:], 1, rtol=1e-2)


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("head_dim", [8, 64])
def test_no_rows_are_rows_too(kind: str, head_dim: int) -> None:
    """NumPy cannot work out a -1 in the shape of an empty array."""
    empty = np.empty((0, 2, head_dim), np.float32)
    data = encode(empty, kind)
    assert data.shape == (0, 2, cache_type(kind).row_bytes(head_dim))
    assert decode(data, kind, head_dim).shape == empty.shape


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_float_rows_are_stored_as_they_are(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 2, 48)).astype(np.float32)
    data = encode(x, kind)
    assert data.dtype == np.uint8 and data.shape == (4, 2, cache_type(kind).row_bytes(48))
    wanted = x.astype(np.float16).astype(np.float32) if kind == "f16" else x
    np.testing.assert_array_equal(decode(data, kind, 48), wanted)


@pytest.mark.parametrize(
    ("kind", "head_dim", "n_bytes", "scales"),
    [("f32", 48, 192, 0), ("f16", 48, 96, 0), ("q8_0", 64, 68, 4), ("q4_0", 64, 36, 4), ("q4_0", 8, 18, 2),
     ("q4_0", 80, 54, 6), ("q8_0", 112, 136, 8)],
)  # fmt: skip
def test_bytes_of_a_row(kind: str, head_dim: int, n_bytes: int, scales: int) -> None:
    """The statistics and the memory plan are built on these numbers."""
    assert cache_type(kind).row_bytes(head_dim) == n_bytes
    assert cache_type(kind).row_scale_bytes(head_dim) == scales
    assert encode(np.zeros((1, head_dim), np.float32), kind).shape == (1, n_bytes)


def test_bits_of_the_types() -> None:
    assert {name: t.bits for name, t in CACHE_TYPES.items()} == {"f32": 32, "f16": 16, "q8_0": 8.5, "q4_0": 4.5}


def test_quantized_rows_know_their_shape_and_refuse_others() -> None:
    x = np.random.default_rng(0).standard_normal((5, 2, 48)).astype(np.float32)
    rows = mixkv.QuantizedRows.quantize(x, "q8_0")
    assert rows.shape == (5, 2, 48) and len(rows) == 5 and rows.nbytes == 5 * 2 * 68
    np.testing.assert_array_equal(rows[1:3].dequantize(), rows.dequantize()[1:3])
    for wrong in (rows.data[0], rows.data[..., :-1], rows.data.astype(np.int16)):
        with pytest.raises(mixkv.ConfigError, match="rows of head_dim 48 are uint8"):
            mixkv.QuantizedRows(wrong, "q8_0", 48)
    with pytest.raises(mixkv.ConfigError):
        mixkv.QuantizedRows.quantize(x[0])


@pytest.mark.parametrize("name", ["q4_1", "Q4_0", "", "f64", None, 7])
def test_an_unknown_type_is_an_error_that_lists_the_known(name: Any) -> None:
    with pytest.raises(mixkv.ConfigError, match=r"f32, f16, q8_0, q4_0"):
        cache_type(name)


def test_hot_rows_are_never_quantized() -> None:
    with pytest.raises(mixkv.ConfigError, match="hot cache type"):
        LayerFormat(hot_k="q8_0")
