"""Stateful attention over one segment of keys, in NumPy: the readable twin of csrc/attn_* (kv-cache.md section 6).

For each query and head the state is the running maximum m, the running sum s and the accumulator acc. For a score x:

    m' = max(m, x);  s' = s e^(m - m') + e^(x - m');  acc' = acc e^(m - m') + e^(x - m') v

applied here a block of keys at a time (Milakov and Gimelshein 2018; Dao et al. 2022). Natural logarithm throughout.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.formats import QuantizedRows
from mixkv.kernels.state import F32, safe_base

Rows = NDArray[np.float16] | NDArray[np.float32] | QuantizedRows

KEY_BLOCK = 512
"""Keys that are expanded to float32 at a time: scores and dequantized rows never outgrow this."""


def as_float(rows: Rows) -> F32:
    """Rows (n_keys, n_kv_heads, head_dim) as float32, dequantized where they are quantized."""
    return rows.dequantize() if isinstance(rows, QuantizedRows) else np.asarray(rows, np.float32)


def attend_segment(
    q: F32, k: Rows, v: Rows, mask: F32 | None, m: F32, s: F32, acc: F32, scale: float, slopes: F32 | None = None,
    softcap: float = 0.0,
) -> tuple[F32, F32, F32]:  # fmt: skip
    """The state after one more segment; the arguments are left as they are.

    q (n_queries, n_heads, head_dim); k, v (n_keys, n_kv_heads, .), n_heads a multiple of n_kv_heads; mask additive
    (n_queries, n_keys) or None; m, s (n_queries, n_heads); acc (n_queries, n_heads, head_dim_v); slopes (n_heads,)
    multiply the mask (ALiBi). Score: softcap * tanh(scale q.k / softcap) + slope * mask.
    """
    n, n_heads, _ = q.shape
    n_keys, n_kv_heads = k.shape[0], k.shape[1]
    group = n_heads // n_kv_heads
    # (n_kv_heads, group * n, .): all query heads that share a K/V head make one matrix product
    grouped = q.reshape(n, n_kv_heads, group, -1).transpose(1, 2, 0, 3).reshape(n_kv_heads, group * n, -1)
    m, s, acc = m.copy(), s.copy(), acc.copy()
    for start in range(0, n_keys, KEY_BLOCK):
        keys = slice(start, min(start + KEY_BLOCK, n_keys))
        x = grouped @ as_float(k[keys]).transpose(1, 2, 0) * np.float32(scale)
        if softcap > 0:
            x = np.tanh(x / np.float32(softcap)) * np.float32(softcap)
        x = x.reshape(n_kv_heads * group, n, -1)
        if mask is not None:
            bias = mask[None, :, keys]
            x = x + (bias if slopes is None else masked_slopes(slopes, bias))
        m_new = np.maximum(m, x.max(axis=2).T)
        base = safe_base(m_new)
        p = np.exp(x - base.T[..., None])
        old = np.exp(m - base)
        pv = p.reshape(n_kv_heads, group * n, -1) @ as_float(v[keys]).transpose(1, 0, 2)
        m, s = m_new, s * old + p.sum(axis=2).T
        acc = acc * old[..., None] + pv.reshape(n_heads, n, -1).transpose(1, 0, 2)
    return m, s, acc


def masked_slopes(slopes: F32, bias: F32) -> F32:
    """slope * mask, where a masked key stays masked even if a slope is 0 (0 * -inf would be NaN)."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(bias), bias, slopes[:, None, None] * bias)
