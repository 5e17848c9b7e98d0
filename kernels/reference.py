"""The NumPy backend, the readable twin of csrc/: linear algebra of a transformer layer, kept to contract.py.

Matrices follow GGUF: a weight is (rows, cols), and `linear` computes x w^T. Quantized weights stay as they are in the
file and are dequantized a block of rows at a time, so memory never holds a second model. NumPy's BLAS keeps threads of
its own, whatever number a backend was opened with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import ConfigError
from mixkv.kernels.ggml import WeightType, dequantize
from mixkv.kernels.numeric import rms_norm, rope
from mixkv.kernels.reference_attention import KEY_BLOCK, attend_segment
from mixkv.kernels.store import KVStore
from mixkv.kernels.store_batch import step_batch
from mixkv.kernels.store_pages import PagePool

F32 = NDArray[np.float32]
ROW_BLOCK_BYTES = 16 << 20
"""Float32 bytes of one block of dequantized rows: large enough for BLAS, small beside any model."""
MAX_THREADS = 1024


class Weight:
    """A matrix of a model file, (rows, cols), dequantized a block of rows at a time; `dense` ones once, at packing."""

    def __init__(self, raw: NDArray[np.uint8], ggml_type: int, cols: int, dense: bool = False) -> None:
        self._raw, self.ggml_type, self.rows, self.cols = raw, WeightType(ggml_type), raw.shape[0], cols
        self._dense: F32 | None = None
        if dense:
            self._dense = self.rows_as_float(slice(None))

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


class NormQKV:
    """The first half of a layer up to attention: RMS norm, Q/K/V projections, biases, per-head QK norm, RoPE."""

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
        self, *, norm: F32, eps: float, gate: Weight, up: Weight, down: Weight, gate_bias: F32 | None = None,
        up_bias: F32 | None = None, down_bias: F32 | None = None,
    ) -> None:  # fmt: skip
        self.norm, self.eps, self.gate, self.up, self.down = norm, eps, gate, up, down
        self.gate_bias, self.up_bias, self.down_bias = gate_bias, up_bias, down_bias

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> (n, dim), the residual included."""
        h = rms_norm(x, self.norm, self.eps)
        g = linear(h, self.gate, self.gate_bias)
        with np.errstate(over="ignore"):  # exp of a large -g overflows to inf, and silu is then exactly 0
            g = g / (1 + np.exp(-g)) * linear(h, self.up, self.up_bias)
        return linear(g, self.down, self.down_bias, residual=x)


class Head:
    """From the last hidden state to logits: w rms_norm(x)."""

    def __init__(self, *, norm: F32, eps: float, w: Weight) -> None:
        self.norm, self.eps, self.w = norm, eps, w

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> logits (n, vocabulary)."""
        return linear(rms_norm(x, self.norm, self.eps), self.w)


class ReferenceBackend:
    """See contract.Backend. What it makes is in the classes above, which need nothing of it."""

    name, isa = "reference", "numpy"
    keeps_dense = True

    def __init__(self, n_threads: int) -> None:
        if not 1 <= n_threads <= MAX_THREADS:
            raise ConfigError(f"threads must be between 1 and {MAX_THREADS}, not {n_threads}")
        self.n_threads = n_threads

    def work_numbers(self, *, n_rows: int, n_ff: int, n_queries: int, n_heads: int, n_keys: int) -> int:
        """See contract.Backend: scores of a piece of queries, and steps of an expression."""
        return 3 * n_heads * n_queries * min(KEY_BLOCK, n_keys) + 2 * n_rows * n_ff

    def cpu_report(self) -> dict[str, Any]:
        """What the kernels know of the CPU: here nothing, NumPy looks at it by itself."""
        return {}

    def read_bandwidth(self, n_bytes: int) -> float:
        """Bytes a second read from memory in one pass over n_bytes, by NumPy and so by one thread."""
        memory = np.ones(n_bytes // 8, np.int64)
        start = time.perf_counter()
        memory.sum()
        return memory.nbytes / (time.perf_counter() - start)

    def pack(
        self, raw: NDArray[np.uint8], ggml_type: int, cols: int, exact: bool = False, dense: bool = False
    ) -> Weight:
        """raw is kept, not copied. exact changes nothing: activations are float32 anyway."""
        return Weight(raw, ggml_type, cols, dense)

    def embed(self, w: Any, ids: NDArray[np.int32]) -> F32:
        """Rows `ids` (n,) of a Weight: (n, cols). The caller has checked the range."""
        rows: F32 = w.rows_as_float(ids)
        return rows

    def linear(self, x: F32, w: Any, bias: F32 | None = None, residual: F32 | None = None) -> F32:
        """The function above, of one of our Weights."""
        return linear(x, w, bias, residual)

    rms_norm = staticmethod(rms_norm)
    attend_segment = staticmethod(attend_segment)

    def NormQKV(self, **parts: Any) -> NormQKV:
        return NormQKV(**parts)

    def NormFFN(self, **parts: Any) -> NormFFN:
        return NormFFN(**parts)

    def Head(self, **parts: Any) -> Head:
        return Head(**parts)

    def KVStore(self, *args: Any, **shape: Any) -> KVStore:
        return KVStore(*args, **shape)

    def page_pool(self, budget: int | None = None) -> PagePool:
        return PagePool(budget)

    step_batch = staticmethod(step_batch)

    def apply_token_mask(self, logits: F32, bitmask: NDArray[np.int32]) -> F32:
        """See contract.Backend."""
        bits = np.unpackbits(bitmask.astype("<i4").view(np.uint8), bitorder="little")[: len(logits)].astype(np.bool_)
        out = np.full(len(logits), -np.inf, np.float32)
        out[: len(bits)][bits] = logits[: len(bits)][bits]
        return out
