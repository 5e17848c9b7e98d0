"""Llama and its nearest relatives: RMS norm, grouped queries with RoPE, SwiGLU."""

from __future__ import annotations

from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder
from mixkv.models.experts import read_routed
from mixkv.models.layers import Dense, Routed


class Llama(Decoder):
    """Whatever is stored as architecture `llama`; with experts, Mixtral."""

    architecture = "llama"
    models = "Llama 1-3.x, Mistral, Mixtral, TinyLlama, SmolLM, Granite Code"
    features = "grouped queries, tied embeddings, `rope_freqs`, linear and YaRN scaling, biases, experts"
    interleaved_rope = True

    @classmethod
    def read_ffn(cls, hyper: Hyper) -> Dense | Routed:
        if not hyper.has("expert_count") or hyper.size("expert_count", least=0) == 0:
            return super().read_ffn(hyper)
        return read_routed(hyper, gating="softmax", normalize=True)


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

    @classmethod
    def read_ffn(cls, hyper: Hyper) -> Dense | Routed:
        return read_routed(hyper, gating="softmax", normalize=False, shared_gate=True)


class Qwen3Moe(Qwen3):
    """Qwen3 with experts."""

    architecture = "qwen3moe"
    models = "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder"
    features = "QK norm, experts"

    @classmethod
    def read_ffn(cls, hyper: Hyper) -> Dense | Routed:
        return read_routed(hyper, gating="softmax", normalize=True)


FAMILIES = (Llama, Qwen2, Qwen3, Qwen2Moe, Qwen3Moe)
