"""The state that attention over some keys leaves behind, and its algebra: merge, finalize (kv-cache.md section 6).

States are never changed in place, and no result aliases an argument. `lse` and all exponentials are natural.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]


def safe_base(m: F32) -> F32:
    """m with -inf (nothing seen yet) replaced by 0, so that `x - base` is never inf - inf."""
    return np.where(np.isneginf(m), np.float32(0), m)


@dataclass(frozen=True)
class AttentionState:
    """What attention over some keys leaves behind.

    m, s: (n_queries, n_heads) float32, the largest score and the sum of e^(score - m); m = -inf, s = 0 where no key
    was seen. acc: (n_queries, n_heads, head_dim) float32, the sum of e^(score - m) v.
    """

    m: F32
    s: F32
    acc: F32

    @property
    def ms(self) -> F32:
        """(2, n_heads * n_queries): column h * n_queries + i is the pair [m, s] of head h and query i."""
        return np.stack([self.m.T.ravel(), self.s.T.ravel()])

    @property
    def lse(self) -> F32:
        """log of the sum of e^score, (n_queries, n_heads); -inf where no key was seen."""
        with np.errstate(divide="ignore"):
            return self.m + np.log(self.s)


def empty_state(n_queries: int, n_heads: int, head_dim: int) -> AttentionState:
    """The state before any key: the identity of `merge`. head_dim is that of the values."""
    return AttentionState(
        np.full((n_queries, n_heads), -np.inf, np.float32),
        np.zeros((n_queries, n_heads), np.float32),
        np.zeros((n_queries, n_heads, head_dim), np.float32),
    )


def sink_state(logit: ArrayLike, n_queries: int, head_dim: int) -> AttentionState:
    """A learned attention sink as a state: m = logit (n_heads,), s = 1, acc = 0, for every query."""
    m = np.tile(np.asarray(logit, np.float32), (n_queries, 1))
    return AttentionState(m, np.ones_like(m), np.zeros((*m.shape, head_dim), np.float32))


def merge(a: AttentionState, b: AttentionState) -> AttentionState:
    """The state of both key sets together: commutative, associative up to rounding, `empty_state` its identity."""
    m = np.maximum(a.m, b.m)
    base = safe_base(m)
    wa, wb = np.exp(a.m - base), np.exp(b.m - base)
    return AttentionState(m, a.s * wa + b.s * wb, a.acc * wa[..., None] + b.acc * wb[..., None])


def finalize(state: AttentionState) -> F32:
    """acc / s, (n_queries, n_heads, head_dim); rows that saw no key are 0."""
    s = state.s[..., None]
    return np.divide(state.acc, s, out=np.zeros_like(state.acc), where=s != 0)


def alibi_slopes(n_heads: int, max_bias: float) -> F32 | None:
    """ALiBi slopes (Press et al. 2022) for any number of heads; None for max_bias = 0.

    With n the largest power of two <= n_heads, head h < n has 2^(-max_bias (h + 1) / n), and the others the odd
    powers of 2^(-max_bias / 2n).
    """
    if max_bias <= 0:
        return None
    n = 1 << (n_heads.bit_length() - 1)
    head = np.arange(n_heads, dtype=np.float64)
    power = np.where(head < n, (head + 1) / n, (2 * (head - n) + 1) / (2 * n))
    return np.exp2(-max_bias * power).astype(np.float32)
