"""The native linear kernels against float64, GGML's dequantization (the gguf package).

Every weight type x every instruction set of this machine x shapes that divide nothing. Where the bound comes from:
activations are rounded to int8 per block of 32, whose relative error is about (2 max/127)^2/12 of the block's power, so
NMSE against unrounded activations stays far below 5e-4; on the rounded activations themselves only float32 sums differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from native_tools import native_backend, poison_freed_arrays
from numpy.typing import NDArray
from weight_tools import dense_of, random_raw

native: Any = pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")

F32 = NDArray[np.float32]
TYPES = [*(T(number) for _, number in native.weight_types()), T.F64]
FLOATS = (T.F32, T.F16, T.BF16, T.F64)
QUANTS = [t for t in TYPES if t not in FLOATS]


def random_x(n: int, cols: int, rng: np.random.Generator) -> F32:
    """Activations; the first row has a block of zeros, the last three have outliers, for which int8 is no match."""
    x = rng.standard_normal((n, cols)).astype(np.float32)
    x[0, :32] = 0
    x[-3:][rng.random((min(n, 3), cols)) < 0.01] *= 60
    return x


def nmse(got: F32, want: NDArray[np.float64]) -> float:
    assert not np.isnan(got).any()
    return float(((got - want) ** 2).sum() / (want**2).sum())


def shapes(kind: T) -> list[tuple[int, int]]:
    """(rows, cols): rows that 16 does not divide; cols as ragged as the type allows, past a chunk of the AMX kernel."""
    if kind in FLOATS:
        return [(1, 7), (17, 129), (70, 300)]
    block = GGML_QUANT_SIZES[kind][0]
    return [(1, block), (17, 3 * block), (70, 1280)]


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_packing_keeps_every_number(kind: T) -> None:
    backend: Any = native_backend()
    rng = np.random.default_rng()
    for rows, cols in shapes(kind):
        raw = random_raw(kind, rows, cols, rng)
        raw.setflags(write=False)
        w = backend.pack(raw, int(kind), cols)
        assert (w.rows, w.cols, w.ggml_type) == (rows, cols, int(kind))
        ids = rng.permutation(rows).astype(np.int32)
        np.testing.assert_array_equal(backend.embed(w, ids), dense_of(raw, kind)[ids])


@pytest.mark.parametrize("kind", QUANTS, ids=lambda t: t.name)
def test_every_pattern_of_bytes_is_data(kind: T) -> None:
    """Bit for bit what GGML reads from random bytes: scales of any size, infinite ones, NaN, signed zeros."""
    block, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng().integers(0, 256, (70, 1280 // block * size), dtype=np.uint8)
    backend: Any = native_backend()
    got = backend.embed(backend.pack(raw, int(kind), 1280), np.arange(70, dtype=np.int32))
    want = dense_of(raw, kind)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    np.testing.assert_array_equal(got[number].view(np.uint32), want[number].view(np.uint32))


@pytest.mark.parametrize("kind", QUANTS, ids=lambda t: t.name)
def test_kernels_read_what_was_packed(kind: T, backend: Any) -> None:
    """Each column by itself, in exact mode and rounded: codes, tables and scales in registers, and all 256 bytes of a
    scale where it is one byte (the two smallest of MXFP4 are denormal, the largest is no infinity)."""
    block, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng()
    raw = random_raw(kind, 256, block, rng)
    if kind == T.MXFP4:
        raw[:, 0] = np.arange(256)
        raw[252:, 1:] = rng.choice([0x11, 0x19, 0x91, 0x99], (4, 16))  # ones: twelve times 2^127 is infinite
    if kind == T.NVFP4:
        raw[:64, :4] = np.arange(256).reshape(64, 4)
    want, eye = dense_of(raw, kind).T, np.eye(block, dtype=np.float32)
    np.testing.assert_array_equal(backend.linear(eye, backend.pack(raw, int(kind), block, exact=True)), want)
    w = backend.pack(raw, int(kind), block)
    np.testing.assert_allclose(backend.linear(eye, w), want, rtol=1e-5, atol=1e-5 * np.abs(want[:, :200]).max())
    assert size == raw.shape[1]


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_linear(kind: T, backend: Any) -> None:
    """Against float64; with and without bias and residual; the same bits for every number of tokens and threads."""
    rng = np.random.default_rng()
    for rows, cols in shapes(kind):
        raw, x = random_raw(kind, rows, cols, rng), random_x(23, cols, rng)
        w, dense = backend.pack(raw, int(kind), cols), dense_of(raw, kind).astype(np.float64)
        want = x.astype(np.float64) @ dense.T
        bias, residual = rng.standard_normal(rows, np.float32), rng.standard_normal((23, rows), np.float32)
        poison_freed_arrays(backend, (23, rows))
        plain, full = backend.linear(x, w), backend.linear(x, w, bias, residual)
        assert nmse(plain, want) < 1e-10 if kind in FLOATS else nmse(plain[:20], want[:20]) < 5e-4
        seen = x if kind in FLOATS else backend.debug_quantize(x)
        np.testing.assert_allclose(plain, seen.astype(np.float64) @ dense.T, rtol=2e-5, atol=1e-5 * np.abs(want).max())
        np.testing.assert_allclose(full, plain + bias + residual, rtol=1e-5, atol=1e-4)
        for m in (*range(1, 10), 16, 17):
            np.testing.assert_array_equal(backend.linear(x[:m], w), plain[:m], err_msg=f"{m} tokens")
        for threads in (1, 3, 8):
            other = native_backend(threads, isa=backend.isa)
            np.testing.assert_array_equal(other.linear(x, w), plain, err_msg=f"{threads} threads")


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_exact_mode(kind: T, backend: Any) -> None:
    """float32 activations on the same packed weights."""
    rng = np.random.default_rng()
    for rows, cols in shapes(kind):
        raw, x = random_raw(kind, rows, cols, rng), random_x(9, cols, rng)
        w = backend.pack(raw, int(kind), cols, exact=True)
        y = backend.linear(x, w)
        assert nmse(y, x.astype(np.float64) @ dense_of(raw, kind).astype(np.float64).T) < 1e-10
        for m in (1, 2, 3):
            np.testing.assert_array_equal(backend.linear(x[:m], w), y[:m])


def fp4_codes(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers of MXFP4 blocks before they are scaled, doubled: (rows, blocks, 32)."""
    bytes_ = raw.reshape(len(raw), -1, 17)[:, :, 1:]
    magnitudes = np.array([0, 1, 2, 3, 4, 6, 8, 12])
    return np.concatenate([np.append(magnitudes, -magnitudes)[b] for b in (bytes_ & 15, bytes_ >> 4)], axis=2)


@pytest.mark.parametrize("kind", QUANTS, ids=lambda t: t.name)
def test_integer_sums_are_the_same_everywhere(kind: T) -> None:
    """The int32 dot product of every block, bit for bit on all instruction sets; against NumPy for Q8_0 and MXFP4."""
    rng = np.random.default_rng()
    rows, cols = 19, 512
    raw, x = random_raw(kind, rows, cols, rng), random_x(3, cols, rng)
    sums = {}
    w = native_backend(2).pack(raw, int(kind), cols)
    for name in native.supported_isas():
        backend: Any = native_backend(2, isa=name)
        sums[name] = backend.debug_idots(x, w)
    first = next(iter(sums.values()))
    assert np.abs(first).max() > 300
    for name, values in sums.items():
        np.testing.assert_array_equal(values, first, err_msg=name)
    if kind in (T.Q8_0, T.MXFP4):
        codes = raw.reshape(rows, -1, 34)[:, :, 2:].view(np.int8).astype(np.int64) if kind == T.Q8_0 else fp4_codes(raw)
        blocks = x.reshape(3, -1, 32)
        d = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
        xq = np.rint(blocks * inverse).astype(np.int64)
        want = np.einsum("tbk,rbk->tbr", xq, codes)
        got = first[:, :, :, 0].transpose(1, 2, 0, 3).reshape(3, cols // 32, -1)[:, :, :rows]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", [T.Q4_0, T.Q8_0, T.Q4_K, T.Q6_K, T.MXFP4, T.IQ2_S, T.F16], ids=lambda t: t.name)
def test_long_prompts_and_chunks(kind: T, backend: Any) -> None:
    """512 tokens at once, in chunks of 1, 7 and 32, and one by one: the same bits. Enough columns to cut tokens."""
    rng = np.random.default_rng()
    rows, cols, n = (48, 4096, 512) if backend.isa in ("avx512", "amx") else (32, 1024, 100)
    raw, x = random_raw(kind, rows, cols, rng), random_x(n, cols, rng)
    w = backend.pack(raw, int(kind), cols)
    whole = backend.linear(x, w)
    want = x.astype(np.float64) @ dense_of(raw, kind).astype(np.float64).T
    assert nmse(whole[:-3], want[:-3]) < (1e-9 if kind == T.F16 else 5e-4)
    for chunk in (1, 7, 32):
        last = min(n, 70 * chunk)
        pieces = [backend.linear(x[i : i + chunk], w) for i in range(0, last, chunk)]
        joined = np.concatenate(pieces)
        np.testing.assert_array_equal(joined, whole[: len(joined)], err_msg=f"chunks of {chunk}")
