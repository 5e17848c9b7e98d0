"""Forward passes in float64 on weights dequantized by the gguf package: an oracle without mixkv in it.

`spec_of` reads a file (by gguf.GGUFReader) into an `OracleSpec`: a model as plain numbers, each layer described by what
it does, whatever family it comes from. `forward` puts tokens through it, from the formulas: attention in full, nothing
cached, slow, short and obvious. A family is a line in FAMILIES for what its files leave unsaid; what a file says by
having a tensor (a bias, a norm of heads) or a key (a scaling of RoPE) counts for every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

F64 = NDArray[np.float64]

FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {"interleaved": True},
    "qwen2": {"interleaved": False},
    "qwen3": {"interleaved": False},
}
"""interleaved: RoPE turns dimensions (2i, 2i + 1), else (i, i + n_rot / 2)."""


@dataclass(frozen=True)
class Affine:
    """x -> x matrix^T + bias. matrix (rows, cols), bias (rows,) or 0."""

    matrix: F64
    bias: F64 | float = 0.0

    def __call__(self, x: F64) -> F64:
        return x @ self.matrix.T + self.bias


@dataclass(frozen=True)
class Rotation:
    """RoPE: pair i of a row at position p turns by p freq[i] and is stretched by `magnitude`; the rest stays."""

    freq: F64
    magnitude: float
    interleaved: bool

    def __call__(self, x: F64) -> F64:
        """x (n, heads, head_dim), rows at positions 0, 1, ...; a pair is one complex number."""
        half = len(self.freq)
        pairs = np.arange(2 * half).reshape(half, 2) if self.interleaved else np.arange(2 * half).reshape(2, half).T
        turn = self.magnitude * np.exp(1j * np.outer(np.arange(len(x)), self.freq))
        z = (x[..., pairs[:, 0]] + 1j * x[..., pairs[:, 1]]) * turn[:, None, :]
        out = x.copy()
        out[..., pairs[:, 0]], out[..., pairs[:, 1]] = z.real, z.imag
        return out


@dataclass(frozen=True)
class OracleLayer:
    """One layer, as what it does: gains of the norms (None: no such norm), projections, rotation."""

    n_heads: int
    n_kv_heads: int
    attn_norm: F64
    q: Affine
    k: Affine
    v: Affine
    q_norm: F64 | None
    k_norm: F64 | None
    rotation: Rotation
    scale: float
    attn_output: Affine
    ffn_norm: F64
    gate: Affine
    up: Affine
    down: Affine


@dataclass(frozen=True)
class OracleSpec:
    """A whole model. embedding (n_vocab, n_embd); eps is that of every norm."""

    eps: float
    embedding: F64
    layers: tuple[OracleLayer, ...]
    output_norm: F64
    output: Affine


def logits(path: Path, ids: list[int]) -> F64:
    """Logits (n, n_vocab) after each of the tokens `ids`, which stand at positions 0, 1, ..."""
    return forward(spec_of(path), ids)


def forward(model: OracleSpec, ids: list[int]) -> F64:
    """Logits (n, n_vocab) after each token."""
    x = model.embedding[ids]
    for layer in model.layers:
        x = x + _attention(layer, rms_norm(x, layer.attn_norm, model.eps), model.eps)
        h = rms_norm(x, layer.ffn_norm, model.eps)
        gate = layer.gate(h)
        x = x + layer.down(gate / (1 + np.exp(-gate)) * layer.up(h))
    return model.output(rms_norm(x, model.output_norm, model.eps))


def rms_norm(x: F64, gain: F64 | None, eps: float) -> F64:
    """Over the last axis; x as it is where there is no gain."""
    return x if gain is None else x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain


def _attention(layer: OracleLayer, h: F64, eps: float) -> F64:
    n, group = len(h), layer.n_heads // layer.n_kv_heads
    q = layer.rotation(rms_norm(layer.q(h).reshape(n, layer.n_heads, -1), layer.q_norm, eps))
    k = layer.rotation(rms_norm(layer.k(h).reshape(n, layer.n_kv_heads, -1), layer.k_norm, eps))
    v = layer.v(h).reshape(n, layer.n_kv_heads, -1)
    out = []
    for head in range(layer.n_heads):
        score = q[:, head] @ k[:, head // group].T * layer.scale
        score[np.triu_indices(n, 1)] = -np.inf  # what comes later is not seen
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        out.append(weight / weight.sum(axis=1, keepdims=True) @ v[:, head // group])
    return layer.attn_output(np.concatenate(out, axis=1))


def read(path: Path) -> tuple[dict[str, object], dict[str, F64]]:
    """Metadata and tensors; matrices as (rows, cols)."""
    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        t.name: dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)]).astype(np.float64)
        for t in reader.tensors
    }
    return metadata, tensors


def spec_of(path: Path) -> OracleSpec:
    """The model that a file of one of FAMILIES holds."""
    meta, tensors = read(path)
    arch = str(meta["general.architecture"])
    keys = {key[len(arch) + 1 :]: value for key, value in meta.items() if key.startswith(arch + ".")}

    def affine(name: str) -> Affine:
        return Affine(tensors[name + ".weight"], tensors.get(name + ".bias", 0.0))

    n_heads = int(number(keys, "attention.head_count"))
    n_kv_heads = int(number(keys, "attention.head_count_kv", n_heads))
    head_dim = int(number(keys, "attention.key_length", len(tensors["output_norm.weight"]) // n_heads))
    rotation = rotation_of(keys, head_dim, tensors.get("rope_freqs.weight", 1.0), FAMILIES[arch]["interleaved"])
    layers = tuple(
        OracleLayer(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            attn_norm=tensors[f"blk.{i}.attn_norm.weight"],
            q=affine(f"blk.{i}.attn_q"),
            k=affine(f"blk.{i}.attn_k"),
            v=affine(f"blk.{i}.attn_v"),
            q_norm=tensors.get(f"blk.{i}.attn_q_norm.weight"),
            k_norm=tensors.get(f"blk.{i}.attn_k_norm.weight"),
            rotation=rotation,
            scale=1 / np.sqrt(head_dim),
            attn_output=affine(f"blk.{i}.attn_output"),
            ffn_norm=tensors[f"blk.{i}.ffn_norm.weight"],
            gate=affine(f"blk.{i}.ffn_gate"),
            up=affine(f"blk.{i}.ffn_up"),
            down=affine(f"blk.{i}.ffn_down"),
        )
        for i in range(int(number(keys, "block_count")))
    )
    embedding = tensors["token_embd.weight"]
    output = Affine(tensors.get("output.weight", embedding), tensors.get("output.bias", 0.0))
    eps = number(keys, "attention.layer_norm_rms_epsilon")
    return OracleSpec(eps, embedding, layers, tensors["output_norm.weight"], output)


def number(keys: Mapping[str, object], key: str, default: float | None = None) -> float:
    """A number of the metadata (`keys` without the architecture in front), which must be there if nothing stands in."""
    value = keys.get(key, default)
    assert isinstance(value, int | float), key
    return float(value)


def rotation_of(keys: Mapping[str, object], head_dim: int, factors: F64 | float, interleaved: bool) -> Rotation:
    """RoPE as the keys `rope.*` say. A file with a factor and no type of scaling means the linear one.

    Linear (Chen et al. 2023): positions, and so all frequencies, divided by the factor. YaRN (Peng et al. 2023, and the
    authors' code): only the slow pairs are; see `yarn_share`. `factors` (Llama 3.1) divide frequencies before that.
    """
    n_rot = int(number(keys, "rope.dimension_count", head_dim))
    theta = number(keys, "rope.freq_base", 10000.0) ** -(np.arange(n_rot // 2) / (n_rot / 2)) / factors
    kind = keys.get("rope.scaling.type", "linear")
    factor = number(keys, "rope.scaling.factor", number(keys, "rope.scale_linear", 1.0))
    magnitude = number(keys, "rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        theta = theta / factor
    elif kind == "yarn":
        share = yarn_share(keys, n_rot)
        theta = share * theta / factor + (1 - share) * theta
        magnitude *= 0.1 * np.log(factor) + 1
    return Rotation(theta, magnitude, interleaved)


def yarn_share(keys: Mapping[str, object], n_rot: int) -> F64:
    """How far each pair's frequency is interpolated: 0 for fast pairs, 1 for slow ones, a straight line between.

    The line starts at the last pair that turns at least beta_fast times in the original context and ends at the first
    that turns at most beta_slow times; so pairs are counted here, also beyond those there are.
    """
    context = number(keys, "rope.scaling.original_context_length", number(keys, "context_length"))
    base = number(keys, "rope.freq_base", 10000.0)
    i = np.arange(100_000)
    turns = context / (2 * np.pi) * np.exp(-2 * i / n_rot * np.log(base))
    fast = np.count_nonzero(turns >= number(keys, "rope.scaling.yarn_beta_fast", 32.0)) - 1
    slow = np.count_nonzero(turns > number(keys, "rope.scaling.yarn_beta_slow", 1.0))
    start, end = max(fast, 0), min(slow, n_rot - 1)
    line = np.clip((i[: n_rot // 2] - start) / max(end - start, 0.001), 0, 1)
    return 1 - (1 - line) * number(keys, "rope.scaling.yarn_ext_factor", 1.0)
