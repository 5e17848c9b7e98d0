"""Qwen3 (dense): llama with an RMS norm on each head of Q and K, and RoPE on halves."""

from __future__ import annotations

from typing import ClassVar

from mixkv.models.llama import Llama


class Qwen3(Llama):
    """Dense Qwen3 models, architecture `qwen3`."""

    architecture: ClassVar[str] = "qwen3"
    models: ClassVar[str] = "Qwen3 (dense)"
    features: ClassVar[str] = "QK norm"
    interleaved_rope: ClassVar[bool] = False
    has_experts: ClassVar[bool] = False
    has_qk_norm: ClassVar[bool] = True
