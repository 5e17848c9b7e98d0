"""Qwen2 and Qwen2.5: llama with biases on Q, K and V, and RoPE on halves."""

from __future__ import annotations

from typing import ClassVar

from mixkv.models.llama import Llama


class Qwen2(Llama):
    """Qwen2, Qwen2.5 and relatives stored as architecture `qwen2`."""

    architecture: ClassVar[str] = "qwen2"
    models: ClassVar[str] = "Qwen2, Qwen2.5"
    features: ClassVar[str] = "QKV bias"
    interleaved_rope: ClassVar[bool] = False
    has_experts: ClassVar[bool] = False
    biases: ClassVar[tuple[str, ...]] = ("attn_q", "attn_k", "attn_v")
