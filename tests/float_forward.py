"""A llama's forward pass in float64 on weights dequantized by the gguf package: an oracle without mixkv in it.

The file is read by gguf.GGUFReader, attention is computed in full, and nothing is cached: slow, short and obvious.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def read(path: Path) -> tuple[dict[str, object], dict[str, F64]]:
    """Metadata and tensors; matrices as (rows, cols)."""
    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        t.name: dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)]).astype(np.float64)
        for t in reader.tensors
    }
    return metadata, tensors


def rms_norm(x: F64, gain: F64, eps: float) -> F64:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain


def rotate(x: F64, freq_base: float) -> F64:
    """RoPE of x (n, heads, head_dim) as complex numbers: neighbours are real and imaginary part, row p turns by p."""
    n, _, head_dim = x.shape
    angle = np.outer(np.arange(n), freq_base ** (-np.arange(0, head_dim, 2) / head_dim))
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None, :]
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def llama_logits(path: Path, ids: list[int]) -> F64:
    """Logits (n, n_vocab) of a file of architecture llama without scaling of RoPE."""
    meta, w = read(path)

    def number(key: str) -> float:
        value = meta[f"llama.{key}"]
        assert isinstance(value, int | float)
        return float(value)

    eps, base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")
    n, heads, kv_heads = len(ids), int(number("attention.head_count")), int(number("attention.head_count_kv"))
    x = w["token_embd.weight"][ids]
    hidden = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(int(number("block_count"))):
        prefix = f"blk.{i}."
        blk = {name[len(prefix) : -len(".weight")]: matrix for name, matrix in w.items() if name.startswith(prefix)}
        h = rms_norm(x, blk["attn_norm"], eps)
        q = rotate((h @ blk["attn_q"].T).reshape(n, heads, -1), base)
        k = rotate((h @ blk["attn_k"].T).reshape(n, kv_heads, -1), base)
        v = (h @ blk["attn_v"].T).reshape(n, kv_heads, -1)
        k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v))
        score = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1]) + hidden
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", weight, v).reshape(n, -1) @ blk["attn_output"].T
        h = rms_norm(x, blk["ffn_norm"], eps)
        gate = h @ blk["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ blk["ffn_up"].T)) @ blk["ffn_down"].T
    return rms_norm(x, w["output_norm.weight"], eps) @ w.get("output.weight", w["token_embd.weight"]).T
