"""Tiny random models of every family and option, written byte by byte without the code under test.

`Tiny` describes one; `write` makes the file. A tensor's numbers depend on its name and shape alone, so two models that
differ in one option have all other weights in common, and what their logits differ by is that option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from gguf_tools import Packed, write_gguf
from weight_tools import random_raw

QKV = ("attn_q", "attn_k", "attn_v")
FFN = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Tiny:
    """A model. rope: keys `rope.*`; biases: names of the projections that have one; freq_factors: `rope_freqs.weight`.

    said: whether the file gives head sizes and rotated dimensions; else readers must find them.
    """

    arch: str = "llama"
    n_layers: int = 2
    n_embd: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    head_dim_v: int = 32
    n_ff: int = 96
    n_vocab: int = 97
    n_ctx: int = 512
    eps: float = 1e-5
    rope: Mapping[str, object] = field(default_factory=dict)
    freq_factors: bool = False
    qk_norm: bool = False
    biases: tuple[str, ...] = ()
    tied: bool = True
    kind: str = "F32"
    said: bool = True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        dim, q, k = self.n_embd, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        v, out = self.n_kv_heads * self.head_dim_v, self.n_heads * self.head_dim_v
        blk: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (dim,), "attn_q.weight": (q, dim), "attn_k.weight": (k, dim), "attn_v.weight": (v, dim),
            "attn_output.weight": (dim, out), "ffn_norm.weight": (dim,), "ffn_gate.weight": (self.n_ff, dim),
            "ffn_up.weight": (self.n_ff, dim), "ffn_down.weight": (dim, self.n_ff),
        }  # fmt: skip
        if self.qk_norm:
            blk |= {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        blk |= {f"{name}.bias": blk[f"{name}.weight"][:1] for name in self.biases if name != "output"}
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.n_vocab, dim), "output_norm.weight": (dim,)}
        shapes |= {f"blk.{i}.{name}": shape for i in range(self.n_layers) for name, shape in blk.items()}
        if not self.tied:
            shapes["output.weight"] = (self.n_vocab, dim)
        if "output" in self.biases:
            shapes["output.bias"] = (self.n_vocab,)
        return shapes

    def metadata(self) -> dict[str, object]:
        sizes: dict[str, object] = {
            "block_count": self.n_layers, "context_length": self.n_ctx, "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff, "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads, "attention.layer_norm_rms_epsilon": self.eps,
        }  # fmt: skip
        if self.said:
            sizes |= {"attention.key_length": self.head_dim, "attention.value_length": self.head_dim_v}
        sizes |= {f"rope.{key}": value for key, value in self.rope.items()}
        return {"general.architecture": self.arch} | {f"{self.arch}.{key}": value for key, value in sizes.items()}

    def tensors(self) -> dict[str, np.ndarray | Packed]:
        made: dict[str, np.ndarray | Packed] = {}
        for name, shape in self.shapes().items():
            noise = np.random.default_rng(crc32(name.encode())).standard_normal(shape).astype(np.float32)
            if name.endswith(".bias"):
                made[name] = noise / 2
            elif len(shape) == 1:
                made[name] = 1 + noise / 4
            else:  # queries and keys twice as large: scores spread enough that attention picks
                gain = 2 if "attn_q" in name or "attn_k" in name else 1
                made[name] = _stored(gain * noise / np.sqrt(np.float32(shape[1])), self.kind)
        if self.freq_factors:
            n_rot = self.rope.get("dimension_count", self.head_dim)
            assert isinstance(n_rot, int)
            made["rope_freqs.weight"] = np.linspace(1, 8, n_rot // 2, dtype=np.float32)
        return made

    def write(self, path: Path) -> Path:
        """The file; returns path."""
        return write_gguf(path, self.metadata(), self.tensors())


def _stored(matrix: np.ndarray, kind: str) -> Packed:
    """Types that gguf cannot quantize to get other numbers, of the same size."""
    ggml_type = GGMLQuantizationType[kind]
    try:
        data = quantize(matrix, ggml_type)
    except NotImplementedError:
        rng = np.random.default_rng(crc32(matrix.tobytes()))
        data = random_raw(ggml_type, *matrix.shape, rng, std=float(matrix.std()))
    return Packed(matrix.shape[::-1], ggml_type, data.tobytes())
