"""Queries and keys that are typical of a layer, drawn from its weights alone: no text, no forward pass.

What enters a layer's projections is taken as Gaussian, independent, with variance 1 in each dimension, times the gains
of the norm before it: RMS norm leaves that on average. A number of a query or key is then Gaussian around its bias,
and its deviation is the norm of its row of weights times those gains. What this cannot see are directions that real
text prefers, and what keys have in common without a bias: real losses on the demo model are 1 to 2.5 times those
predicted from such samples. To be quick, norms are estimated from a few columns, and models of many KV heads from some
of them; only these pieces of the (mapped) weights are dequantized. Weights that are not there, or not finite, are
nobody's error here: there is no sample then, and loading the model says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels import Backend
from mixkv.kernels.ggml import BLOCK_SIZES
from mixkv.kernels.numeric import rms_norm, rope
from mixkv.models.batch import F32
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.gguf_types import WEIGHT_TYPES
from mixkv.models.layers import Attention
from mixkv.models.registry import read_config
from mixkv.models.rope import RopeConfig

HEADS = 8
COLUMNS = 256
TOKENS = 48


@dataclass(frozen=True)
class HeadSample:
    """q, k (TOKENS, heads, head_dim) float32 after RoPE, at positions spread over the model's context: for each of some
    KV heads one query head that reads it. other_k: keys of other tokens at the same positions. bias, spread: of the
    keys of the head with the largest bias, its norm, and the norm that the rest has on average."""

    q: F32
    k: F32
    other_k: F32
    bias: float
    spread: float


@dataclass(frozen=True)
class _Side:
    """Queries or keys of some heads: bias and deviation (heads, head_dim), and the gain (head_dim,) of QK norm."""

    bias: F32
    deviation: NDArray[np.floating]
    gain: F32 | None


class HeadStatistics:
    """What the weights of a model say of its queries and keys, some kilobytes a layer, and samples drawn from it.

    The file is read once, by the first sample or by `read`: who wants samples after it was closed calls that before.
    Raises GGUFError for a file that is no model.
    """

    def __init__(self, gguf: GGUFFile, backend: Backend) -> None:
        """backend: dequantizes."""
        self.config = read_config(gguf)
        self._backend = backend
        self._gguf: GGUFFile | None = gguf
        self._layers: list[tuple[_Side, _Side] | None] = []  # q and k; None where the file does not have what it takes
        self._factors: dict[int, F32 | None] = {}  # n_rot / 2 -> factors on the frequencies, where the file has some

    def read(self) -> None:
        """Read from the file what samples are drawn from; does nothing when called again."""
        if self._gguf is None:
            return
        gguf, config = self._gguf, self.config
        with np.errstate(all="ignore"):  # NaN and infinity among the weights are data
            halves = {a.rope.n_rot // 2 for a in config.attentions if a.rope is not None}
            self._factors = {n: _vector(gguf, "rope_freqs.weight", n) for n in halves}
            self._layers = [_read_layer(gguf, config, self._backend, i) for i in range(config.n_layers)]
        self._gguf = None

    def sample(self, layer: int) -> HeadSample | None:
        """A sample of `layer`, the same each time; None where the weights do not tell."""
        self.read()
        sides, attention = self._layers[layer], self.config.layers[layer].mixer
        if sides is None:
            return None
        assert isinstance(attention, Attention)
        rng = np.random.default_rng(layer)
        with np.errstate(all="ignore"):
            q, k, other_k = (self._draw(side, rng, attention.rope) for side in (sides[0], sides[1], sides[1]))
            if not (np.isfinite(q).all() and np.isfinite(k).all() and np.isfinite(other_k).all()):
                return None
            biases, spreads = (np.linalg.norm(x, axis=1) for x in (sides[1].bias, sides[1].deviation))
        return HeadSample(q, k, other_k, float(biases.max()), float(spreads[biases.argmax()]))

    def _draw(self, side: _Side, rng: np.random.Generator, turn: RopeConfig | None) -> F32:
        """Queries or keys (TOKENS, heads, head_dim), with QK norm and RoPE."""
        noise = rng.standard_normal((TOKENS, *side.bias.shape), np.float32)
        x = (side.bias + side.deviation * noise).astype(np.float32)
        if side.gain is not None:
            x = rms_norm(x, side.gain, self.config.norm_eps)
        if turn is None:
            return x
        angles = turn.inv_freq(self._factors[turn.n_rot // 2]) * np.float32(max(1, self.config.n_ctx_train // TOKENS))
        return rope(x, np.arange(len(x)), angles, turn.interleaved, turn.magnitude)


def _read_layer(gguf: GGUFFile, config: ModelConfig, backend: Backend, layer: int) -> tuple[_Side, _Side] | None:
    """Queries and keys of the loudest heads of a layer; None where the file does not have what it takes."""
    attention = config.layers[layer].mixer
    if not isinstance(attention, Attention) or attention.kv_from is not None:
        return None
    prefix, dim, head_dim = f"blk.{layer}.", config.n_embd, attention.head_dim_k
    n_heads, n_kv_heads = attention.n_heads, attention.n_kv_heads
    gain = _vector(gguf, f"{prefix}attn_norm.weight", dim)
    bias_q = _bias(gguf, f"{prefix}attn_q.bias", n_heads, head_dim)
    bias_k = _bias(gguf, f"{prefix}attn_k.bias", n_kv_heads, head_dim)
    if gain is None or bias_q is None or bias_k is None:
        return None

    def side(name: str, at: NDArray[np.intp], n_heads: int, bias: F32) -> _Side | None:
        rows = (at[:, None] * head_dim + np.arange(head_dim)).ravel()
        norms = _row_norms(gguf, f"{prefix}{name}.weight", (n_heads * head_dim, dim), rows, gain, backend)
        if norms is None:
            return None
        return _Side(bias[at], norms.reshape(len(at), head_dim), _vector(gguf, f"{prefix}{name}_norm.weight", head_dim))

    heads = _loudest(bias_k)
    group = n_heads // n_kv_heads
    readers = heads * group + np.linalg.norm(bias_q.reshape(-1, group, head_dim)[heads], axis=2).argmax(axis=1)
    q = side("attn_q", readers, n_heads, bias_q)
    k = side("attn_k", heads, n_kv_heads, bias_k)
    return None if q is None or k is None else (q, k)


def _vector(gguf: GGUFFile, name: str, n: int) -> F32 | None:
    """The vector `name` (n,), None if there is no such."""
    info = gguf.tensors.get(name)
    if info is None or tuple(info.shape) != (n,) or info.ggml_type not in WEIGHT_TYPES:
        return None
    return gguf.array_of(name)


def _bias(gguf: GGUFFile, name: str, n_heads: int, head_dim: int) -> F32 | None:
    """A bias (n_heads, head_dim), zeros where the model has none."""
    if name not in gguf.tensors:
        return np.zeros((n_heads, head_dim), np.float32)
    found = _vector(gguf, name, n_heads * head_dim)
    return None if found is None else found.reshape(n_heads, head_dim)


def _loudest(bias: F32) -> NDArray[np.intp]:
    """At most HEADS heads: those of the largest biases (n_heads, head_dim); without biases, evenly spread."""
    if len(bias) <= HEADS:
        return np.arange(len(bias))
    if not bias.any():
        return np.linspace(0, len(bias) - 1, HEADS).astype(np.intp)
    return np.sort(np.argsort(-np.linalg.norm(bias, axis=1), kind="stable")[:HEADS])


def _row_norms(
    gguf: GGUFFile, name: str, shape: tuple[int, int], rows: NDArray[np.intp], gain: F32, backend: Backend
) -> NDArray[np.floating] | None:
    """Norms (n_rows,) of `rows` of matrix `name` times gain (cols,), from about COLUMNS of its columns."""
    info = gguf.tensors.get(name)
    if info is None or tuple(info.shape) != shape or info.ggml_type not in WEIGHT_TYPES:
        return None
    block, block_bytes = BLOCK_SIZES[info.ggml_type]
    n_blocks = shape[1] // block
    chosen = np.unique(np.linspace(0, n_blocks - 1, max(2, COLUMNS // block)).astype(np.intp))
    packed = gguf.raw(name).reshape(shape[0], n_blocks, block_bytes)[rows[:, None], chosen]
    columns = len(chosen) * block
    weight = backend.pack(packed.reshape(len(rows), -1), int(info.ggml_type), columns)
    part = backend.embed(weight, np.arange(len(rows), dtype=np.int32))
    gains = gain.reshape(n_blocks, block)
    share = np.square(gains[chosen]).sum() / np.square(gains).sum()
    part *= gains[chosen].ravel()
    return np.sqrt(np.einsum("ij,ij->i", part, part) / share)
