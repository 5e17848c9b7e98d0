"""The cache and attention of the native backend: `KVStore` as the extension has it, and `attend_segment`.

`KVStore` is documented in docs/architecture.md and, method by method, in its NumPy twin (kernels/store.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels._native import KVStore, attend_segment_rows, poison_scratch
from mixkv.kernels.formats import QuantizedRows
from mixkv.kernels.reference_attention import Rows
from mixkv.kernels.state import F32

__all__ = ["KVStore", "attend_segment", "poison_scratch"]


def _as_bytes(rows: Rows) -> tuple[NDArray[np.uint8], str]:
    """Rows as (n_keys, n_kv_heads, row_bytes) uint8 and their cache type; no copy where they are contiguous."""
    if isinstance(rows, QuantizedRows):
        return np.ascontiguousarray(rows.data), rows.kind
    kind = "f16" if rows.dtype == np.float16 else "f32"
    return np.ascontiguousarray(rows, np.float16 if kind == "f16" else np.float32).view(np.uint8), kind


def attend_segment(
    q: F32, k: Rows, v: Rows, mask: F32 | None, m: F32, s: F32, acc: F32, scale: float, slopes: F32 | None = None,
    softcap: float = 0.0,
) -> tuple[F32, F32, F32]:  # fmt: skip
    """The state after one more segment; the arguments are left as they are.

    q (n_queries, n_heads, head_dim); k, v (n_keys, n_kv_heads, .) FP16, float32 or QuantizedRows; mask additive
    (n_queries, n_keys) or None; m, s (n_queries, n_heads); acc (n_queries, n_heads, head_dim_v); slopes (n_heads,)
    multiply the mask (ALiBi). Score: softcap * tanh(scale q.k / softcap) + slope * mask. Arrays float32.
    """
    k_bytes, type_k = _as_bytes(k)
    v_bytes, type_v = _as_bytes(v)
    m, s, acc = attend_segment_rows(
        q, k_bytes, type_k, v_bytes, type_v, acc.shape[2], mask, m, s, acc, scale, slopes, softcap
    )
    return m, s, acc
