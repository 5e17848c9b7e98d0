"""The dense Qwens and those with experts."""

from __future__ import annotations

from mixkv.models.decoder import Decoder


class Qwen2(Decoder):
    """Qwen2, Qwen2.5 and relatives."""

    architecture = "qwen2"
    models = "Qwen2, Qwen2.5"
    features = "QKV bias"
    biases = ("attn_q", "attn_k", "attn_v")


class Qwen3(Decoder):
    """Dense Qwen3 models."""

    architecture = "qwen3"
    models = "Qwen3 (dense)"
    features = "QK norm"
    qk_norm = "head"


class Qwen2Moe(Qwen2):
    """Qwen1.5-MoE, Qwen2-57B-A14B."""

    architecture = "qwen2moe"
    models = "Qwen1.5-MoE, Qwen2-57B-A14B"
    features = "QKV bias, experts, a shared one with a gate"
    experts = {"gating": "softmax", "normalize": False, "shared_gate": True}  # noqa: RUF012


class Qwen3Moe(Qwen3):
    """Qwen3 with experts."""

    architecture = "qwen3moe"
    models = "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder"
    features = "QK norm, experts"
    experts = {"gating": "softmax", "normalize": True}  # noqa: RUF012


FAMILIES = (Qwen2, Qwen3, Qwen2Moe, Qwen3Moe)
