"""The linear algebra of a transformer layer in NumPy: the readable twin of csrc/, kept to the kernel contract of
docs/architecture.md.

Matrices follow GGUF: a weight is (rows, cols), and `linear` computes x w^T. Quantized weights stay as they are in the
file and are dequantized a block of rows at a time, so memory never holds a second model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.ggml import WeightType, dequantize
from mixkv.kernels.reference_attention import attend_segment
from mixkv.kernels.store import KVStore, hadamard

__all__ = [
    "Head", "KVStore", "NormFFN", "NormQKV", "Weight", "attend_segment", "available_cores", "cpu_report", "embed",
    "hadamard", "linear", "name", "read_bandwidth", "rms_norm", "rope", "set_threads",
]  # fmt: skip

F32 = NDArray[np.float32]
ROW_BLOCK_BYTES = 16 << 20
"""Float32 bytes of one block of dequantized rows: large enough for BLAS, small beside any model."""

name = "reference"


def available_cores() -> int:
    """Cores that this process may use, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(n: int) -> None:
    """NumPy's BLAS keeps its own threads; `n` is accepted so that both backends are called alike."""


def cpu_report() -> dict[str, Any]:
    """What the kernels know of the CPU: here nothing, NumPy looks at it by itself."""
    return {}


def read_bandwidth(n_bytes: int) -> float:
    """Bytes a second read from memory in one pass over n_bytes, by NumPy and so by one thread."""
    memory = np.ones(n_bytes // 8, np.int64)
    start = time.perf_counter()
    memory.sum()
    return memory.nbytes / (time.perf_counter() - start)


class Weight:
    """A matrix of a model file, (rows, cols), dequantized a block of rows at a time.

    With `exact` nothing changes here: activations are float32 anyway. `dense=True` dequantizes once, at packing.
    """

    def __init__(self, raw: NDArray[np.uint8], ggml_type: int, cols: int, dense: bool = False) -> None:
        self._raw, self.ggml_type, self.rows, self.cols = (
            raw,
            WeightType(ggml_type),
            raw.shape[0],
            cols,
        )
        self._dense: F32 | None = None
        if dense:
            self._dense = self.rows_as_float(slice(None))

    @classmethod
    def pack(
        cls, raw: NDArray[np.uint8], ggml_type: int, cols: int, exact: bool = False, dense: bool = False
    ) -> Weight:
        """raw: (rows, row_bytes) uint8 as in the file; it is kept, not copied."""
        return cls(raw, ggml_type, cols, dense)

    @property
    def nbytes(self) -> int:
        return self._raw.nbytes if self._dense is None else self._dense.nbytes

    def rows_as_float(self, index: slice | NDArray[np.int32]) -> F32:
        """Dequantized rows, (n, cols) float32."""
        if self._dense is not None:
            return self._dense[index]
        return dequantize(np.ascontiguousarray(self._raw[index]), self.ggml_type)

    def blocks(self) -> Iterator[tuple[slice, F32]]:
        """(rows, matrix) pieces of at most ROW_BLOCK_BYTES, in order."""
        step = max(1, ROW_BLOCK_BYTES // (4 * self.cols))
        for start in range(0, self.rows, step):
            rows = slice(start, min(start + step, self.rows))
            yield rows, self.rows_as_float(rows)


def embed(w: Weight, ids: NDArray[np.int32]) -> F32:
    """Rows `ids` (n,) of the embedding: (n, cols). The caller has checked the range."""
    return w.rows_as_float(ids)


def rms_norm(x: F32, gain: F32, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis (Zhang and Sennrich 2019)."""
    mean_square: F32 = np.mean(np.square(x, dtype=np.float32), axis=-1, keepdims=True, dtype=np.float32)
    root: F32 = np.sqrt(mean_square + np.float32(eps))
    return x / root * gain


def linear(x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32:
    """x w^T + bias + residual: x (n, cols), bias (rows,), residual (n, rows) -> (n, rows)."""
    out = np.empty((x.shape[0], w.rows), np.float32)
    for rows, block in w.blocks():
        np.matmul(x, block.T, out=out[:, rows])
    if bias is not None:
        out += bias
    if residual is not None:
        out += residual
    return out


def rope(x: F32, positions: NDArray[np.int64], inv_freq: F32, interleaved: bool, scale: float) -> F32:
    """Rotary position embedding (Su et al. 2021) of x (n, heads, head_dim), whose rows stand at positions (n,).

    inv_freq (rot / 2,): pair i of a row at p turns by p * inv_freq[i]. Pairs are (2i, 2i + 1) when `interleaved`,
    else (i, i + rot / 2); dimensions from rot on stay. `scale` multiplies cos and sin (YaRN's attention factor).
    """
    half = len(inv_freq)
    angle = positions.astype(np.float64)[:, None, None] * inv_freq.astype(np.float64)
    cos, sin = (np.cos(angle) * scale).astype(np.float32), (np.sin(angle) * scale).astype(np.float32)
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    )
    a, b, out = x[..., first], x[..., second], x.copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


class NormQKV:
    """The first half of a layer up to attention: RMS norm, Q/K/V projections, biases, per-head QK norm, RoPE.

    norm (dim,); wq (n_heads * head_dim, dim), wk, wv alike with n_kv_heads; bq, bk, bv their biases; q_norm, k_norm
    (head_dim,) gains of a per-head RMS norm before RoPE (Qwen3). V's head may be wider or narrower than K's.
    """

    def __init__(
        self, *, norm: F32, eps: float, wq: Weight, wk: Weight, wv: Weight, bq: F32 | None = None,
        bk: F32 | None = None, bv: F32 | None = None, q_norm: F32 | None = None, k_norm: F32 | None = None,
        inv_freq: F32, interleaved: bool, rope_scale: float = 1.0, n_heads: int, n_kv_heads: int, head_dim: int,
    ) -> None:  # fmt: skip
        self.norm, self.eps, self.wq, self.wk, self.wv = norm, eps, wq, wk, wv
        self.bq, self.bk, self.bv, self.q_norm, self.k_norm = bq, bk, bv, q_norm, k_norm
        self.inv_freq, self.interleaved, self.rope_scale = inv_freq, interleaved, rope_scale
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim

    def __call__(self, x: F32, positions: NDArray[np.int64]) -> tuple[F32, F32, F32]:
        """x (n, dim), rows at positions (n,) -> q (n, n_heads, head_dim), k, v (n, n_kv_heads, .)."""
        h = rms_norm(x, self.norm, self.eps)
        q = linear(h, self.wq, self.bq).reshape(len(x), self.n_heads, self.head_dim)
        k = linear(h, self.wk, self.bk).reshape(len(x), self.n_kv_heads, self.head_dim)
        v = linear(h, self.wv, self.bv).reshape(len(x), self.n_kv_heads, -1)
        if self.q_norm is not None:
            q = rms_norm(q, self.q_norm, self.eps)
        if self.k_norm is not None:
            k = rms_norm(k, self.k_norm, self.eps)
        q = rope(q, positions, self.inv_freq, self.interleaved, self.rope_scale)
        k = rope(k, positions, self.inv_freq, self.interleaved, self.rope_scale)
        return q, k, v


class NormFFN:
    """The second half of a layer: x + down(silu(gate h) * up h), h = rms_norm(x) (SwiGLU, Shazeer 2020).

    gate_bias, up_bias, down_bias: added to the products where given.
    """

    def __init__(
        self, *, norm: F32, eps: float, gate: Weight, up: Weight, down: Weight,
        gate_bias: F32 | None = None, up_bias: F32 | None = None, down_bias: F32 | None = None,
    ) -> None:  # fmt: skip
        self.norm, self.eps, self.gate, self.up, self.down = norm, eps, gate, up, down
        self.gate_bias, self.up_bias, self.down_bias = gate_bias, up_bias, down_bias

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> (n, dim), the residual included."""
        h = rms_norm(x, self.norm, self.eps)
        g = linear(h, self.gate, self.gate_bias)
        with np.errstate(over="ignore"):  # exp of a large -g overflows to inf, and silu is then exactly 0
            g = g / (1 + np.exp(-g)) * linear(h, self.up, self.up_bias)
        return linear(g, self.down, self.down_bias, x)


class Head:
    """From the last hidden state to logits: w rms_norm(x)."""

    def __init__(self, *, norm: F32, eps: float, w: Weight) -> None:
        self.norm, self.eps, self.w = norm, eps, w

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> logits (n, vocabulary)."""
        return linear(rms_norm(x, self.norm, self.eps), self.w)
