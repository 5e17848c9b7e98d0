"""Recurrent mixers in NumPy, a token at a time as the formulas stand in contract.py."""

from __future__ import annotations

import numpy as np

from mixkv.kernels.contract_parts import Arrays
from mixkv.kernels.parts import F32, Norm
from mixkv.kernels.reference_layers import normalise, sigmoid


def convolve(x: F32, before: F32, weight: F32, bias: F32 | None, after: F32) -> F32:
    """Channels of x (n, channels), each with its weight (channels, kernel); before, after (kernel - 1, channels)."""
    kernel = weight.shape[1]
    rows = np.concatenate([before, x])
    after[:] = rows[len(rows) - kernel + 1 :]
    y = np.zeros_like(x)
    for i in range(kernel):
        y += rows[i : i + len(x)] * weight[:, i]
    return y if bias is None else y + bias


def softplus(x: F32) -> F32:
    """ln(1 + e^x)."""
    return np.logaddexp(np.float32(0), x).astype(np.float32)


def silu(x: F32) -> F32:
    """x sigmoid(x)."""
    return x * sigmoid(x)


class Mamba2:
    """See contract.Backend.Mamba2."""

    def __init__(
        self, *, conv: F32, conv_bias: F32 | None, a: F32, d: F32, dt_bias: F32, gain: F32 | None, eps: float,
        n_heads: int, head_dim: int, n_groups: int, d_state: int,
    ) -> None:  # fmt: skip
        self.conv, self.conv_bias, self.a, self.d, self.dt_bias = conv, conv_bias, a, d, dt_bias
        self.gain, self.eps = gain, eps
        self.n_heads, self.head_dim, self.n_groups, self.d_state = n_heads, head_dim, n_groups, d_state

    def __call__(self, inputs: Arrays, before: Arrays, after: Arrays) -> F32:
        (packed,) = inputs
        n, inner, bc = len(packed), self.n_heads * self.head_dim, self.n_groups * self.d_state
        z, xbc, dt = np.split(packed, [inner, 2 * inner + 2 * bc], axis=1)
        xbc = silu(convolve(xbc, before[0], self.conv, self.conv_bias, after[0]))
        x, b, c = np.split(xbc, [inner, inner + bc], axis=1)
        x = x.reshape(n, self.n_heads, self.head_dim)
        b, c = (
            np.repeat(part.reshape(n, self.n_groups, self.d_state), self.n_heads // self.n_groups, axis=1)
            for part in (b, c)
        )
        step = softplus(dt + self.dt_bias)
        decay = np.exp(step * self.a)
        state, y = before[1].copy(), np.empty_like(x)
        for t in range(n):
            state = state * decay[t][:, None, None] + b[t][:, :, None] * (step[t][:, None] * x[t])[:, None, :]
            y[t] = np.einsum("hsp,hs->hp", state, c[t]) + self.d[:, None] * x[t]
        after[1][:] = state
        y = y.reshape(n, inner) * silu(z)
        if self.gain is None:
            return y
        pieces = normalise(y.reshape(n, self.n_groups, inner // self.n_groups), Norm(None, self.eps))
        return pieces.reshape(n, inner) * self.gain


class DeltaNet:
    """See contract.Backend.DeltaNet."""

    def __init__(
        self, *, conv: F32, a: F32, dt_bias: F32, gain: F32, eps: float, n_heads: int, n_k_heads: int, head_dim: int,
        tiled: bool,
    ) -> None:  # fmt: skip
        self.conv, self.a, self.dt_bias, self.gain, self.eps = conv, a, dt_bias, gain, eps
        self.n_heads, self.n_k_heads, self.head_dim = n_heads, n_k_heads, head_dim
        head = np.arange(n_heads)
        self.key_of = head % n_k_heads if tiled else head // (n_heads // n_k_heads)

    def __call__(self, inputs: Arrays, before: Arrays, after: Arrays) -> F32:
        qkv, z, alpha, beta = inputs
        n, d, keys = len(qkv), self.head_dim, self.n_k_heads * self.head_dim
        qkv = silu(convolve(qkv, before[0], self.conv, None, after[0]))
        q, k, v = np.split(qkv, [keys, 2 * keys], axis=1)
        q, k = (self._unit(x.reshape(n, self.n_k_heads, d))[:, self.key_of] for x in (q, k))
        q, v = q * np.float32(d**-0.5), v.reshape(n, self.n_heads, d)
        decay, beta = np.exp(self.a * softplus(alpha + self.dt_bias)), sigmoid(beta)
        state, y = before[1].copy(), np.empty_like(v)
        for t in range(n):
            state = state * decay[t][:, None, None]
            delta = beta[t][:, None] * (v[t] - np.einsum("hij,hi->hj", state, k[t]))
            state = state + k[t][:, :, None] * delta[:, None, :]
            y[t] = np.einsum("hij,hi->hj", state, q[t])
        after[1][:] = state
        y = normalise(y, Norm(self.gain, self.eps)) * silu(z.reshape(y.shape))
        return y.reshape(n, self.n_heads * d)

    def _unit(self, x: F32) -> F32:
        length = np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True, dtype=np.float32))
        return (x / np.maximum(length, np.float32(self.eps))).astype(np.float32, copy=False)


class ShortConv:
    """See contract.Backend.ShortConv."""

    def __init__(self, *, conv: F32) -> None:
        self.conv = conv

    def __call__(self, inputs: Arrays, before: Arrays, after: Arrays) -> F32:
        b, c, x = np.split(inputs[0], 3, axis=1)
        return c * convolve(b * x, before[0], self.conv, None, after[0])
