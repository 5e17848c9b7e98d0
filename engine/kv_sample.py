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
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.gguf_types import WEIGHT_TYPES
from mixkv.models.llama import F32
from mixkv.models.registry import family_of

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


def sample_heads(gguf: GGUFFile, config: ModelConfig, layer: int, backend: Backend) -> HeadSample | None:
    """A sample of `layer`, the same each time; None where the file does not have what it takes."""
    prefix, dim, head_dim = f"blk.{layer}.", config.n_embd, config.head_dim_k
    gain = _vector(gguf, f"{prefix}attn_norm.weight", dim)
    bias_q = _bias(gguf, f"{prefix}attn_q.bias", config.n_heads, head_dim)
    bias_k = _bias(gguf, f"{prefix}attn_k.bias", config.n_kv_heads, head_dim)
    if gain is None or bias_q is None or bias_k is None:
        return None
    with np.errstate(all="ignore"):
        heads = _loudest(bias_k)
        group = config.n_heads // config.n_kv_heads
        readers = heads * group + np.linalg.norm(bias_q.reshape(-1, group, head_dim)[heads], axis=2).argmax(axis=1)
        sides = []
        for name, at, n_heads, bias in (
            ("attn_q", readers, config.n_heads, bias_q),
            ("attn_k", heads, config.n_kv_heads, bias_k),
        ):
            rows = (at[:, None] * head_dim + np.arange(head_dim)).ravel()
            norms = _row_norms(gguf, f"{prefix}{name}.weight", (n_heads * head_dim, dim), rows, gain, backend)
            if norms is None:
                return None
            sides.append((bias[at], norms.reshape(len(at), head_dim)))
        rng = np.random.default_rng(layer)
        q, k, other_k = (
            _draw(gguf, config, f"{prefix}{norm}.weight", *side, rng)
            for norm, side in (("attn_q_norm", sides[0]), ("attn_k_norm", sides[1]), ("attn_k_norm", sides[1]))
        )
        if not (np.isfinite(q).all() and np.isfinite(k).all() and np.isfinite(other_k).all()):
            return None
        biases, spreads = (np.linalg.norm(x, axis=1) for x in sides[1])
        return HeadSample(q, k, other_k, float(biases.max()), float(spreads[biases.argmax()]))


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


def _draw(
    gguf: GGUFFile, config: ModelConfig, norm: str, bias: F32, deviation: NDArray[np.floating], rng: np.random.Generator
) -> F32:
    """Queries or keys (TOKENS, heads, head_dim) of this bias and deviation (heads, head_dim), with QK norm and RoPE."""
    x = (bias + deviation * rng.standard_normal((TOKENS, *bias.shape), np.float32)).astype(np.float32)
    gain = _vector(gguf, norm, config.head_dim_k)
    if gain is not None:
        x = rms_norm(x, gain, config.rms_eps)
    factors = _vector(gguf, "rope_freqs.weight", config.rope.n_rot // 2)
    angles = config.rope.inv_freq(factors) * np.float32(max(1, config.n_ctx_train // TOKENS))
    return rope(x, 0, angles, family_of(gguf).interleaved_rope, config.rope.magnitude)
