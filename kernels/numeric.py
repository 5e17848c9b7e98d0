"""Small pieces of a transformer's arithmetic, in NumPy: norm, rotary embedding, Walsh-Hadamard rotation.

The NumPy backend is made of them, and whoever works on samples or rotated rows outside a forward pass calls them; they
belong to no backend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def rms_norm(x: F32, gain: F32, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis (Zhang and Sennrich 2019)."""
    mean_square: F32 = np.mean(np.square(x, dtype=np.float32), axis=-1, keepdims=True, dtype=np.float32)
    root: F32 = np.sqrt(mean_square + np.float32(eps))
    return x / root * gain


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


def hadamard_width(head_dim: int) -> int:
    """The largest power of two that divides head_dim: how many numbers of a row are rotated together."""
    return head_dim & -head_dim


def hadamard(x: F32, width: int = 0) -> F32:
    """Rows x (..., head_dim) times the normalised Walsh-Hadamard matrix of `width` (0: `hadamard_width`), a power of
    two that divides head_dim, block by block. Orthogonal and its own inverse."""
    width = width or hadamard_width(x.shape[-1])
    out = x.reshape(-1, width).astype(np.float32)
    half = 1
    while half < width:
        pair = out.reshape(-1, width // (2 * half), 2, half)
        out = np.stack([pair[:, :, 0] + pair[:, :, 1], pair[:, :, 0] - pair[:, :, 1]], axis=2)
        half *= 2
    return (out.reshape(x.shape) * np.float32(width**-0.5)).astype(np.float32)
