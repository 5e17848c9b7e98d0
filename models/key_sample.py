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
from mixkv.kernels.ggml import BLOCK_SIZES, dequantize
from mixkv.kernels.numeric import rms_norm, rope
from mixkv.models.batch import F32
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.gguf_types import WEIGHT_TYPES
from mixkv.models.layers import Attention, Latent
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
    """Queries or keys of some heads: bias and deviation (heads, head_dim), and the gain of QK norm, (head_dim,) or
    (heads, head_dim)."""

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
        self._factors: dict[RopeConfig, F32 | None] = {}  # on the frequencies, where the file has some

    def read(self) -> None:
        """Read from the file what samples are drawn from; does nothing when called again."""
        if self._gguf is None:
            return
        gguf, config = self._gguf, self.config
        with np.errstate(all="ignore"):  # NaN and infinity among the weights are data
            ropes = {a.rope for a in config.attentions if a.rope is not None}
            self._factors = {rope: _vector(gguf, rope.factors, rope.n_rot // 2) for rope in ropes}
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
            q, k, other_k = (self._draw(side, rng, attention) for side in (sides[0], sides[1], sides[1]))
            if not (np.isfinite(q).all() and np.isfinite(k).all() and np.isfinite(other_k).all()):
                return None
            biases, spreads = (np.linalg.norm(x, axis=1) for x in (sides[1].bias, sides[1].deviation))
        return HeadSample(q, k, other_k, float(biases.max()), float(spreads[biases.argmax()]))

    def _draw(self, side: _Side, rng: np.random.Generator, attention: Attention) -> F32:
        """Queries or keys (TOKENS, heads, head_dim), with QK norm and RoPE."""
        noise = rng.standard_normal((TOKENS, *side.bias.shape), np.float32)
        x = (side.bias + side.deviation * noise).astype(np.float32)
        if not attention.norms_last:
            x = self._normed(x, side.gain)
        turn = attention.rope
        if turn is not None:
            spread = np.float32(max(1, self.config.n_ctx_train // TOKENS))
            angles = turn.inv_freq(self._factors[turn]) * spread
            at = slice(None) if attention.latent is None else slice(attention.latent.rank, None)
            x[..., at] = rope(x[..., at], np.arange(len(x)), angles, turn.interleaved, turn.magnitude)
        return self._normed(x, side.gain) if attention.norms_last else x

    def _normed(self, x: F32, gain: F32 | None) -> F32:
        """QK norm, head by head also where it is one of the whole row, whose length hardly differs."""
        if gain is None:
            return x
        if self.config.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        return rms_norm(x, gain, self.config.norm_eps)


def _read_layer(gguf: GGUFFile, config: ModelConfig, backend: Backend, layer: int) -> tuple[_Side, _Side] | None:
    """Queries and keys of the loudest heads of a layer; None where the file does not have what it takes."""
    attention = config.layers[layer].mixer
    if not isinstance(attention, Attention) or attention.kv_from is not None:
        return None
    if attention.latent is not None:
        return _read_latent(gguf, config, backend, f"blk.{layer}.", attention.latent)
    prefix, dim, head_dim = f"blk.{layer}.", config.n_embd, attention.head_dim_k
    n_heads, n_kv_heads = attention.n_heads, attention.n_kv_heads
    gain = _vector(gguf, f"{prefix}attn_norm.weight", dim)
    if gain is None and attention.qk_norm and config.layers[layer].norms == "after":
        gain = np.ones(dim, np.float32)  # what comes in is not normed; what goes out is, however large it was
    q_at, k_at = _place(gguf, prefix, attention, "attn_q"), _place(gguf, prefix, attention, "attn_k")
    bias_q, bias_k = (_bias(gguf, place, head_dim) for place in (q_at, k_at))
    if gain is None or bias_q is None or bias_k is None:
        return None

    def side(place: _Place, at: NDArray[np.intp], bias: F32, name: str) -> _Side | None:
        norms = _row_norms(gguf, place.name, (place.n_rows, dim), place.rows[at].ravel(), gain, backend)
        if norms is None:
            return None
        return _Side(bias[at], norms.reshape(len(at), head_dim), _qk_gain(gguf, prefix + name, attention, at))

    heads = _loudest(bias_k)
    group = n_heads // n_kv_heads
    readers = heads * group + np.linalg.norm(bias_q.reshape(-1, group, head_dim)[heads], axis=2).argmax(axis=1)
    q = side(q_at, readers, bias_q, "attn_q_norm.weight")
    k = side(k_at, heads, bias_k, "attn_k_norm.weight")
    return None if q is None or k is None else (q, k)


def _read_latent(
    gguf: GGUFFile, config: ModelConfig, backend: Backend, prefix: str, m: Latent
) -> tuple[_Side, _Side] | None:
    """The same where heads read latent rows: of the first head's queries as they reach these, and of the one key. The
    numbers of a query, which a matrix mixes, are taken as independent."""
    (dim,), plain = (config.n_embd,), m.head_dim - m.n_rot
    n_heads = next(a.n_heads for a in config.attentions if a.latent == m)
    gain = _vector(gguf, f"{prefix}attn_norm.weight", dim)
    latent_gain = _vector(gguf, f"{prefix}attn_kv_a_norm.weight", m.rank)
    q_gain, q_name, q_cols = gain, "attn_q", dim
    if m.q_rank:
        q_gain, q_name, q_cols = _vector(gguf, f"{prefix}attn_q_a_norm.weight", m.q_rank), "attn_q_b", m.q_rank
    matrix = _first_matrix(gguf, prefix, n_heads, m)
    if gain is None or latent_gain is None or q_gain is None or matrix is None:
        return None
    shape = n_heads * m.head_dim, q_cols
    q = _row_norms(gguf, f"{prefix}{q_name}.weight", shape, np.arange(m.head_dim), q_gain, backend)
    shape = m.rank + m.n_rot, dim
    k = _row_norms(gguf, f"{prefix}attn_kv_a_mqa.weight", shape, np.arange(shape[0]), gain, backend)
    if q is None or k is None:
        return None
    q = np.concatenate([np.sqrt(np.square(matrix) @ np.square(q[:plain])), q[plain:]])
    k[: m.rank] *= latent_gain / np.sqrt(np.square(k[: m.rank]).mean() + config.norm_eps)
    none = np.zeros((1, m.rank + m.n_rot), np.float32)
    return _Side(none, q[None], None), _Side(none, np.abs(k)[None], None)


def _first_matrix(gguf: GGUFFile, prefix: str, n_heads: int, m: Latent) -> NDArray[np.floating] | None:
    """(rank, numbers of a query that do not turn): what takes the first head's queries to latent rows."""
    plain = m.head_dim - m.n_rot
    rows, cols, n = (plain, m.rank, plain + m.head_dim_v) if m.merged else (m.rank, plain, m.rank)
    name = f"{prefix}{'attn_kv_b' if m.merged else 'attn_k_b'}.weight"
    info = gguf.tensors.get(name)
    shape = (n_heads * n, cols) if m.merged else (n_heads, n, cols)
    if info is None or tuple(info.shape) != shape or info.ggml_type not in WEIGHT_TYPES:
        return None
    raw = gguf.raw(name).reshape(n_heads * n, -1)[:rows]
    found: NDArray[np.floating] = dequantize(np.ascontiguousarray(raw), info.ggml_type)
    return found.T if m.merged else found


@dataclass(frozen=True)
class _Place:
    """Where queries or keys come from: the matrix (without ".weight" in bias), its rows in all, and those (heads,
    head_dim) of each head."""

    name: str
    bias: str
    n_rows: int
    rows: NDArray[np.intp]


def _place(gguf: GGUFFile, prefix: str, a: Attention, name: str) -> _Place:
    n_heads = a.n_heads if name == "attn_q" else a.n_kv_heads
    rows = np.arange(n_heads)[:, None] * a.head_dim_k + np.arange(a.head_dim_k)
    n_rows = rows.size
    if f"{prefix}attn_qkv.weight" in gguf.tensors:
        q_dim, k_dim = a.n_heads * a.head_dim_k, a.n_kv_heads * a.head_dim_k
        rows, n_rows = rows + (0 if name == "attn_q" else q_dim), q_dim + k_dim + a.n_kv_heads * a.head_dim_v
        name = "attn_qkv"
    elif a.gate and name == "attn_q":  # the query's rows of a head, then the gate's
        rows = np.arange(n_heads)[:, None] * (a.head_dim_k + a.head_dim_v) + np.arange(a.head_dim_k)
        n_rows = n_heads * (a.head_dim_k + a.head_dim_v)
    return _Place(f"{prefix}{name}.weight", f"{prefix}{name}.bias", n_rows, rows)


def _qk_gain(gguf: GGUFFile, name: str, a: Attention, at: NDArray[np.intp]) -> F32 | None:
    """The gain of QK norm for the heads `at`; None where there is no such norm."""
    if a.qk_norm == "unit":
        return np.ones(a.head_dim_k, np.float32)
    info = gguf.tensors.get(name)
    if not a.qk_norm or info is None or info.ggml_type not in WEIGHT_TYPES:
        return None
    gain = gguf.array_of(name).reshape(-1, a.head_dim_k)
    return gain[0] if len(gain) == 1 else gain[at]


def _vector(gguf: GGUFFile, name: str, n: int) -> F32 | None:
    """The vector `name` (n,), None if there is no such."""
    info = gguf.tensors.get(name)
    if info is None or tuple(info.shape) != (n,) or info.ggml_type not in WEIGHT_TYPES:
        return None
    return gguf.array_of(name)


def _bias(gguf: GGUFFile, place: _Place, head_dim: int) -> F32 | None:
    """A bias (n_heads, head_dim), zeros where the model has none."""
    if place.bias not in gguf.tensors:
        return np.zeros((len(place.rows), head_dim), np.float32)
    found = _vector(gguf, place.bias, place.n_rows)
    return None if found is None else found[place.rows]


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
