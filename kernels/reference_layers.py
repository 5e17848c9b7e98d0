"""What layers are made of, in NumPy: see contract.py for each and parts.py for norms, rotation and activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.numeric import rope
from mixkv.kernels.parts import F32, SILU, Activation, Norm, Rotation, Temperature
from mixkv.kernels.reference_weights import linear


def normalise(x: F32, norm: Norm | None) -> F32:
    """The norm over the last axis of x; x itself where there is none."""
    if norm is None:
        return x
    if norm.centred:
        x = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    mean_square: F32 = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    root: F32 = np.sqrt(mean_square + np.float32(norm.eps))
    y: F32 = x / root
    if norm.gain is not None:
        y = y * norm.gain
    return y if norm.bias is None else y + norm.bias


def normalise_heads(x: F32, norm: Norm | None) -> F32:
    """The norm of queries or keys (n, heads, head_dim), which is one of each head or of the whole row."""
    if norm is None or norm.gain is None or norm.gain.ndim == 2 or norm.gain.size == x.shape[2]:
        return normalise(x, norm)
    return normalise(x.reshape(len(x), -1), norm).reshape(x.shape)


def sigmoid(x: F32) -> F32:
    """1 / (1 + e^-x)."""
    with np.errstate(over="ignore"):  # e^-x of a large -x is infinite, and the result exactly 0
        return (1 / (1 + np.exp(-x))).astype(np.float32)


def activate(activation: Activation, g: F32, u: F32 | np.float32) -> F32:
    """See parts.Activation; u is 1 where a feed-forward has no gate, and g is then up's product."""
    kind, numbers = activation.kind, activation.numbers
    with np.errstate(over="ignore"):
        if kind == "silu":
            return (g * sigmoid(g) * u).astype(np.float32)
        if kind == "gelu":
            inner = np.float32(np.sqrt(2 / np.pi)) * (g + np.float32(0.044715) * g * g * g)
            return (np.float32(0.5) * g * (1 + np.tanh(inner)) * u).astype(np.float32)
        if kind == "relu2":
            return (np.square(np.maximum(g, 0)) * u).astype(np.float32)
        if kind == "swiglu_oai":
            alpha, limit = (np.float32(x) for x in numbers)
            g = np.minimum(g, limit)
            return (g * sigmoid(alpha * g) * (np.clip(u, -limit, limit) + 1)).astype(np.float32)
        a_p, a_n, beta, eps = (np.float32(x) for x in numbers)
        low = a_n * (np.expm1(np.minimum(g, eps)) - g) + beta * g
        return (np.where(g > 0, a_p * g * g + beta * g, low) * u).astype(np.float32)


def add_to(residual: F32 | None, y: F32, out_norm: Norm | None, scale: float) -> F32:
    """residual + scale * out_norm(y)."""
    y = normalise(y, out_norm)
    if scale != 1:
        y = y * np.float32(scale)
    return y if residual is None else residual + y


class NormQKV:
    """See contract.Backend.NormQKV."""

    def __init__(
        self, *, norm: Norm | None, wq: Any, wk: Any, wv: Any, gate: Any = None, bq: F32 | None = None,
        bk: F32 | None = None, bv: F32 | None = None, q_norm: Norm | None = None, k_norm: Norm | None = None,
        v_norm: Norm | None = None, norms_last: bool = False, rotation: Rotation | None = None,
        temperature: Temperature | None = None, n_heads: int, n_kv_heads: int, head_dim: int,
    ) -> None:  # fmt: skip
        self.norm, self.wq, self.wk, self.wv, self.gate, self.bq, self.bk, self.bv = norm, wq, wk, wv, gate, bq, bk, bv
        self.q_norm, self.k_norm, self.v_norm, self.norms_last = q_norm, k_norm, v_norm, norms_last
        self.rotation, self.temperature = rotation, temperature
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim

    def __call__(self, x: F32, positions: NDArray[np.int64]) -> tuple[F32, F32 | None, F32 | None, F32 | None]:
        h = normalise(x, self.norm)
        q = self._finish(linear(h, self.wq, self.bq).reshape(len(x), self.n_heads, -1), self.q_norm, positions)
        if self.temperature is not None:
            t = self.temperature
            grown = 1 + t.slope * np.log1p((positions + t.offset) // t.length)
            q = q * grown.astype(np.float32)[:, None, None]
        gate = None if self.gate is None else linear(h, self.gate)
        if self.wk is None:
            return q, None, None, gate
        k = linear(h, self.wk, self.bk).reshape(len(x), self.n_kv_heads, -1)
        v = k if self.wv is None else linear(h, self.wv, self.bv).reshape(len(x), self.n_kv_heads, -1)
        return q, self._finish(k, self.k_norm, positions), normalise(v, self.v_norm), gate

    def _finish(self, heads: F32, norm: Norm | None, positions: NDArray[np.int64]) -> F32:
        """Norm and rotation of queries or keys (n, heads, head_dim), in their order."""
        if not self.norms_last:
            heads = normalise_heads(heads, norm)
        if self.rotation is not None:
            r = self.rotation
            heads = rope(heads, positions, r.inv_freq, r.interleaved, r.scale)
        return normalise_heads(heads, norm) if self.norms_last else heads


class HeadLinear:
    """See contract.Backend.HeadLinear."""

    def __init__(self, *, w: Any) -> None:
        self.w = w

    def __call__(self, x: F32) -> F32:
        return np.stack([linear(x[:, head], self.w.of(head)) for head in range(self.w.n)], axis=1)


class NormLinear:
    """See contract.Backend.NormLinear."""

    def __init__(self, norm: Norm | None, weights: Sequence[Any], biases: Sequence[F32 | None]) -> None:
        self.norm, self.weights, self.biases = norm, tuple(weights), tuple(biases) or (None,) * len(weights)

    def __call__(self, x: F32) -> tuple[F32, ...]:
        h = normalise(x, self.norm)
        return tuple(linear(h, w, bias) for w, bias in zip(self.weights, self.biases, strict=True))


class Project:
    """See contract.Backend.Project."""

    def __init__(self, *, w: Any, bias: F32 | None = None, out_norm: Norm | None = None, scale: float = 1.0) -> None:
        self.w, self.bias, self.out_norm, self.scale = w, bias, out_norm, scale

    def __call__(self, h: F32, residual: F32 | None, gate: F32 | None = None) -> F32:
        h = h if gate is None else h * sigmoid(gate)
        return add_to(residual, linear(h, self.w, self.bias), self.out_norm, self.scale)


class NormFFN:
    """See contract.Backend.NormFFN."""

    def __init__(
        self, *, norm: Norm | None, gate: Any, up: Any, down: Any, gate_bias: F32 | None = None,
        up_bias: F32 | None = None, down_bias: F32 | None = None, activation: Activation = SILU,
        token_gate: F32 | None = None, out_norm: Norm | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        self.norm, self.gate, self.up, self.down, self.activation = norm, gate, up, down, activation
        self.gate_bias, self.up_bias, self.down_bias = gate_bias, up_bias, down_bias
        self.token_gate, self.out_norm, self.scale = token_gate, out_norm, scale

    def __call__(self, x: F32, residual: F32 | None) -> F32:
        h = normalise(x, self.norm)
        up = linear(h, self.up, self.up_bias)
        g, u = (up, np.float32(1)) if self.gate is None else (linear(h, self.gate, self.gate_bias), up)
        y = linear(activate(self.activation, g, u), self.down, self.down_bias)
        if self.token_gate is not None:
            y = y * sigmoid(h @ self.token_gate)[:, None]
        return add_to(residual, y, self.out_norm, self.scale)


class Head:
    """See contract.Backend.Head."""

    def __init__(
        self, *, norm: Norm | None, w: Any, bias: F32 | None = None, scale: float = 1.0, softcap: float = 0.0
    ) -> None:
        self.norm, self.w, self.bias, self.scale, self.softcap = norm, w, bias, scale, softcap

    def __call__(self, x: F32) -> F32:
        y = linear(normalise(x, self.norm), self.w, self.bias)
        if self.scale != 1:
            y = y * np.float32(self.scale)
        if self.softcap:
            y = np.float32(self.softcap) * np.tanh(y / np.float32(self.softcap))
        return y.astype(np.float32, copy=False)
