"""Attention in float64, written the slow and obvious way: what every kernel and every way of segmenting is held to.

One query and one head at a time, no blocks, no running maximum. Shapes as everywhere: (tokens, heads, head_dim).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def slope_of(head: int, n_heads: int, max_bias: float) -> float:
    """ALiBi's slope (Press et al. 2022), from the text of the paper: a geometric series over the largest power of two
    of heads, and every other term of the twice as fine series for those that remain."""
    if max_bias <= 0:
        return 1.0
    whole = 2 ** int(np.floor(np.log2(n_heads)))
    if head < whole:
        return float((2.0 ** (-max_bias / whole)) ** (head + 1))
    return float((2.0 ** (-max_bias / 2 / whole)) ** (2 * (head - whole) + 1))


def exact_attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, mask: ArrayLike | None = None, *, scale: float | None = None,
    max_bias: float = 0.0, softcap: float = 0.0,
) -> tuple[F64, F64]:  # fmt: skip
    """Output (n_queries, n_heads, head_dim_v) and log-sum-exp (n_queries, n_heads) over all keys; 0 and -inf where a
    mask hides every key."""
    query, keys, values = (np.asarray(a, np.float64) for a in (q, k, v))
    n, n_heads, head_dim = query.shape
    group = n_heads // keys.shape[1]
    bias = np.zeros((n, len(keys))) if mask is None else np.asarray(mask, np.float64)
    out, lse = np.zeros((n, n_heads, values.shape[2])), np.full((n, n_heads), -np.inf)
    for i in range(n):
        seen = np.isfinite(bias[i])
        if not seen.any():
            continue
        for h in range(n_heads):
            score = keys[seen, h // group] @ query[i, h] * (head_dim**-0.5 if scale is None else scale)
            if softcap:
                score = softcap * np.tanh(score / softcap)
            score = score + slope_of(h, n_heads, max_bias) * bias[i, seen]
            top = score.max()
            weight = np.exp(score - top)
            out[i, h] = weight @ values[seen, h // group] / weight.sum()
            lse[i, h] = top + np.log(weight.sum())
    return out, lse


def nmse(got: ArrayLike, wanted: ArrayLike) -> float:
    """Normalised mean square error: |got - wanted|^2 / |wanted|^2. NaN anywhere gives NaN, which no bound accepts."""
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(((a - b) ** 2).sum() / (b**2).sum())
