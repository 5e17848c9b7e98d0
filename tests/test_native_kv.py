"""The native store: its bytes are GGML's, what goes in comes out, and nothing leaks from one row into another.

Every case runs on each instruction set of this machine. The values of cold rows are held to the gguf package, an
independent writer of the formats.
"""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
from native_tools import Run, hadamard_matrix, same_bits
from numpy.typing import NDArray

from mixkv.kernels.formats import LayerFormat, decode

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")
quants = pytest.importorskip("gguf.quants")
GGML = {"q4_0": quants.GGMLQuantizationType.Q4_0, "q8_0": quants.GGMLQuantizationType.Q8_0}
DIMS = [8, 48, 64, 80, 96, 128, 256]


def rows_of_all_kinds(n: int, heads: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Gaussian rows, and between them zeros, negative zeros, outliers, ties for the largest, tiny and huge ones."""
    x = np.random.default_rng(seed).standard_normal((n, heads, dim)).astype(np.float32)
    x[0] = 0.0
    x[1] = -0.0
    x[2, :, 0] = 300.0
    x[3, :, 1], x[3, :, 2] = -7.0, 7.0
    x[4] *= 1e-6
    x[5] *= 5000
    x[6] = np.round(x[6] * 2) / 2
    x[7] = 1.0
    return x


def ggml(x: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Rows (n, heads, dim) as the gguf package quantizes them, zero-padded to whole blocks."""
    n, heads, dim = x.shape
    padded = np.zeros((n * heads, -(-dim // 32) * 32), np.float32)
    padded[:, :dim] = x.reshape(n * heads, dim)
    with np.errstate(all="ignore"):
        return quants.quantize(padded, GGML[kind]).reshape(n, heads, -1)


def store(
    backend: Any, fmt: LayerFormat, dim: int, n_ctx: int = 64, hot_tiles: int = 8, sinks: int = 3, dim_v: int = 0
) -> Any:
    return backend.KVStore(
        [fmt],
        n_kv_heads=3,
        head_dim_k=dim,
        head_dim_v=dim_v or dim,
        n_ctx=n_ctx,
        sink_tokens=sinks,
        hot_tiles=hot_tiles,
    )


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("hot", ["f16", "f32"])
def test_cold_rows_are_ggml_bit_for_bit(backend: Any, kind: str, dim: int, hot: str) -> None:
    s = store(backend, LayerFormat(kind, kind, hot, hot), dim)
    k, v = rows_of_all_kinds(35, 3, dim, 1), rows_of_all_kinds(35, 3, dim, 2)
    s.write(0, k, v, 0)
    s.quantize(0, 3, 35)
    hot_k, hot_v = s.get_hot(0, 3, 35)
    assert hot_k.dtype == np.dtype(np.float16 if hot == "f16" else np.float32)
    for got, rows in zip(s.get_cold(0, 3, 35), (hot_k, hot_v), strict=True):
        np.testing.assert_array_equal(got, ggml(rows.astype(np.float32), kind))
    np.testing.assert_array_equal(hot_k, k[3:35].astype(hot_k.dtype))


@pytest.mark.parametrize("dim", DIMS)
def test_float_cold_types_lose_nothing(backend: Any, dim: int) -> None:
    s = store(backend, LayerFormat("f16", "f32"), dim)
    k, v = rows_of_all_kinds(35, 3, dim, 1), rows_of_all_kinds(35, 3, dim, 2)
    s.write(0, k, v, 0)
    s.quantize(0, 3, 35)
    cold_k, cold_v = s.get_cold(0, 3, 35)
    hot_k, hot_v = s.get_hot(0, 3, 35)
    np.testing.assert_array_equal(cold_k, hot_k.view(np.uint8))
    np.testing.assert_array_equal(cold_v.view(np.float32), hot_v.astype(np.float32))


@pytest.mark.parametrize("kinds", [("q4_0", "q8_0"), ("q8_0", "q4_0"), ("f32", "f16")])
@pytest.mark.parametrize(("dim", "dim_v"), [(64, 64), (80, 8), (8, 96)])
def test_what_is_set_comes_back_and_neighbours_stay(backend: Any, kinds: tuple[str, str], dim: int, dim_v: int) -> None:
    """Bytes into single positions of a tile: nibbles share bytes with other tokens there."""
    s = store(backend, LayerFormat(*kinds, "f32", "f16"), dim, dim_v=dim_v)
    widths = [x.shape[2] for x in s.get_cold(0, 3, 3)]
    rng = np.random.default_rng(3)
    wanted = [rng.integers(0, 256, (48, 3, w), dtype=np.uint8) for w in widths]
    for j in rng.permutation(48):
        s.set_cold(0, 3 + int(j), *(x[j : j + 1] for x in wanted))
    for back, want in zip(s.get_cold(0, 3, 51), wanted, strict=True):
        np.testing.assert_array_equal(back, want)
    hot = [rng.standard_normal((60, 3, d)).astype(t) for d, t in ((dim, np.float32), (dim_v, np.float16))]
    for a, b in ((0, 3), (3, 20), (20, 60)):
        s.set_hot(0, a, *(x[a:b] for x in hot))
    for a, b in ((0, 60), (0, 2), (3, 60), (17, 18)):
        for back, rows in zip(s.get_hot(0, a, b), hot, strict=True):
            np.testing.assert_array_equal(back, rows[a:b])


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16"])
def test_rehydrated_rows_are_the_cold_values(backend: Any, kind: str) -> None:
    s = store(backend, LayerFormat(kind, kind), 80)
    x = rows_of_all_kinds(35, 3, 80)
    s.write(0, x, x, 0)
    s.quantize(0, 3, 35)
    s.rehydrate(0, 3, 35)
    with np.errstate(over="ignore"):
        for cold, hot in zip(s.get_cold(0, 3, 35), s.get_hot(0, 3, 35), strict=True):
            np.testing.assert_array_equal(hot, decode(cold, kind, 80).astype(np.float16))


@pytest.mark.parametrize("dim", [8, 12, 64, 80, 96, 256])
def test_rotation_is_the_walsh_hadamard_matrix(backend: Any, dim: int) -> None:
    s = store(backend, LayerFormat(hot_k="f32", hot_v="f32", rotate_k=True), dim)
    x = np.random.default_rng(5).standard_normal((10, 3, dim)).astype(np.float32)
    s.write(0, x, x, 0)
    k, v = s.get_hot(0, 0, 10)
    np.testing.assert_allclose(k, x @ hadamard_matrix(dim), atol=2e-6)
    np.testing.assert_array_equal(v, x)


def test_half_precision_rounds_like_numpy(backend: Any) -> None:
    """Every kind of float16 there is, and the values between them, infinities and overflow included."""
    bits = np.arange(0, 1 << 16, 7, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = bits[np.isfinite(bits)]
    with np.errstate(over="ignore"):
        x = np.concatenate(
            [bits, np.nextafter(bits, 9e9), bits * np.float32(1.0004883), [7e4, -7e4, np.inf, -np.inf, 1e-9]]
        )
        x = np.resize(x.astype(np.float32), (len(x) // 192 + 1, 3, 64))
        s = store(backend, LayerFormat(), 64, n_ctx=len(x), hot_tiles=len(x) // 16 + 1)
        s.write(0, x, x, 0)
        wanted = x.astype(np.float16)
    for got in s.get_hot(0, 0, len(x)):
        np.testing.assert_array_equal(got.view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16"])
def test_a_broken_token_does_not_reach_those_before_it(backend: Any, bad: float, kind: str) -> None:
    """NaN and infinity are stored without a crash; queries at earlier positions give the same bits as without them."""
    clean, broken = (Run(backend.KVStore, LayerFormat(kind, kind), n=70, window=8) for _ in range(2))
    for x in (broken.k, broken.v):
        x[50] = bad
    wanted, got = clean.outputs(clean.store(), 70), broken.outputs(broken.store(), 70)
    assert same_bits(got[:50], wanted[:50])
    assert not same_bits(got[50:], wanted[50:])


def test_a_hidden_broken_key_is_absent(backend: Any) -> None:
    """A sliding window hides keys of a tile whose neighbours are read, and whose scale may not even be a number."""
    runs = [Run(backend.KVStore, LayerFormat(), n=70, window=8, options={"window": 19}) for _ in range(2)]
    runs[1].v[24], runs[1].k[24] = np.inf, np.nan
    clean, broken = (r.outputs(r.store(), 70) for r in runs)
    assert same_bits(broken[24 + 19 :], clean[24 + 19 :])


def test_a_copy_is_independent(backend: Any) -> None:
    run = Run(backend.KVStore, LayerFormat(rotate_k=True, rotate_v=True))
    a = run.store()
    run.outputs(a, 50)
    b = a.copy()
    before = [x.copy() for x in (*b.get_cold(0, 5, 85), *b.get_hot(0, 101, 150))]
    ones = np.ones((16, 2, 64), np.float32)
    a.write(0, ones, ones, 101)
    a.quantize(0, 101, 117)
    a.set_cold(0, 5, *(np.zeros_like(x) for x in a.get_cold(0, 5, 21)))
    for got, want in zip((*b.get_cold(0, 5, 85), *b.get_hot(0, 101, 150)), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_context_is_reserved_lazily_and_copies_hold_what_is_used(backend: Any) -> None:
    """A million positions cost nothing until they are written, in the original and in its copies."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    s = backend.KVStore(
        [LayerFormat()] * 8, n_kv_heads=8, head_dim_k=64, head_dim_v=64, n_ctx=1 << 20, sink_tokens=16, hot_tiles=40
    )
    x = np.ones((40, 8, 64), np.float32)
    s.write(0, x, x, 0)
    s.quantize(0, 16, 32)
    copies = [s.copy() for _ in range(4)]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    np.testing.assert_array_equal(copies[-1].get_cold(0, 16, 32)[0], s.get_cold(0, 16, 32)[0])
    assert grown < 300 << 10  # kilobytes; fully backed it would be 5 times 4.8 GB
