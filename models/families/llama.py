"""Llama and what differs from it in names and flags alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from mixkv.kernels.parts import Activation, Temperature
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder
from mixkv.models.layers import Attention, Dense, LayerSpec


class Llama(Decoder):
    """Whatever is stored as architecture `llama`; with experts, Mixtral."""

    architecture = "llama"
    models = "Llama 1-3.x, Mistral, Mixtral, TinyLlama, SmolLM, Granite Code"
    features = "grouped queries, tied embeddings, `rope_freqs`, linear and YaRN scaling, biases, experts"
    interleaved_rope = True
    experts = {"gating": "softmax", "normalize": True}  # noqa: RUF012


class Mistral3(Llama):
    """Ministral 3, Mistral Small: YaRN with parameters of its own, queries that grow with their position."""

    architecture = "mistral3"
    models = "Ministral 3, Mistral Small 3.x"
    features = "temperature of queries by position"

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        attention = super().read_attention(hyper, n_kv_heads)
        assert attention.rope is not None
        rope = replace(attention.rope, log_multiplier=hyper.number("rope.scaling.yarn_log_multiplier", 0.0))
        slope = hyper.number("attention.temperature_scale", 0.0)
        temperature = Temperature(slope, rope.n_ctx_orig) if slope else None
        return replace(attention, rope=rope, temperature=temperature)


class Smollm3(Decoder):
    """SmolLM3: every fourth layer does not rotate."""

    architecture = "smollm3"
    models = "SmolLM3"
    features = "every fourth layer without rotation"
    interleaved_rope = True
    NO_ROPE_EVERY = 4

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        layers = super().read_layers(hyper)
        return tuple(
            replace(layer, mixer=replace(layer.mixer, rope=None))
            if (i + 1) % cls.NO_ROPE_EVERY == 0 and isinstance(layer.mixer, Attention)
            else layer
            for i, layer in enumerate(layers)
        )


class Arcee(Decoder):
    """Arcee's AFM: squared ReLU without a gate."""

    architecture = "arcee"
    models = "AFM-4.5B"
    features = "squared ReLU"
    interleaved_rope = True
    activation = Activation("relu2")
    gated = False


class Apertus(Decoder):
    """Apertus: xIELU without a gate, with numbers of each layer's own."""

    architecture = "apertus"
    models = "Apertus 8B, 70B"
    features = "QK norm, xIELU"
    qk_norm = "head"
    gated = False

    @classmethod
    def read_ffns(cls, hyper: Hyper) -> tuple[Dense, ...]:
        n_ff = hyper.of_every_layer("feed_forward_length")
        numbers = np.stack([_of_layers(hyper, f"xielu.{name}") for name in ("alpha_p", "alpha_n", "beta", "eps")])
        return tuple(Dense(n_ff, _xielu(*column), gated=False) for column in numbers.T.tolist())


def _of_layers(hyper: Hyper, key: str) -> np.ndarray:
    """Float numbers (n_layers,), one for all or one each; the key has no architecture in front."""
    length = hyper.gguf.metadata.length(key)
    if length is None:
        return np.full(hyper.n_layers, hyper.gguf.float(key))
    if length != hyper.n_layers:
        raise hyper.wrong(key, f"has {length} numbers for {hyper.n_layers} layers")
    values = hyper.gguf.array(key, np.float32, np.float64).astype(np.float64)
    if not np.isfinite(values).all():
        raise hyper.wrong(key, "holds a number that is not finite")
    return values


def _xielu(alpha_p: float, alpha_n: float, beta: float, eps: float) -> Activation:
    """The file holds what softplus makes positive."""
    return Activation("xielu", (_softplus(alpha_p), beta + _softplus(alpha_n), beta, eps))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


class SeedOss(Decoder):
    """Seed-OSS: biases, and another name for the feed-forward's norm."""

    architecture = "seed_oss"
    models = "Seed-OSS 36B"
    features = "QKV bias"
    biases = ("attn_q", "attn_k", "attn_v")
    renames = {"ffn_norm": "post_attention_norm"}  # noqa: RUF012


class InternLM2(Decoder):
    """InternLM2, 2.5, 3."""

    architecture = "internlm2"
    models = "InternLM2, InternLM2.5"
    features = "a llama by another name"
    interleaved_rope = True


def read_divisor(hyper: Hyper, default: float) -> float:
    """`logit_scale`, which logits are divided by."""
    scale = hyper.number("logit_scale", default)
    if scale == 0:
        raise hyper.fail("logit_scale", "is 0, and logits are divided by it")
    return scale


class Granite(Decoder):
    """Granite 3: multipliers on embeddings, residuals, scores and logits. With experts, granitemoe."""

    architecture = "granite"
    models = "Granite 3.x"
    features = "multipliers on embeddings, residuals, scores, logits"
    interleaved_rope = True
    experts = {"gating": "softmax", "normalize": True}  # noqa: RUF012

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        attention = super().read_attention(hyper, n_kv_heads)
        scale = hyper.number("attention.scale", 0.0) or attention.scale
        turns = hyper.gguf.bool(hyper.key("rope.scaling.finetuned"), True)
        return replace(attention, scale=scale, rope=attention.rope if turns else None)

    @classmethod
    def read_residual_scale(cls, hyper: Hyper) -> float:
        return hyper.number("residual_scale", 0.0) or 1.0

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        return {
            "embedding_scale": hyper.number("embedding_scale", 0.0) or 1.0, "logit_scale": 1 / read_divisor(hyper, 1.0)
        }  # fmt: skip


class GraniteMoe(Granite):
    """Granite 3 with experts."""

    architecture = "granitemoe"
    models = "Granite 3.x MoE"
    features = "multipliers, experts, a shared one"


class MiniCPM(Granite):
    """MiniCPM: Granite's multipliers with defaults of its own."""

    architecture = "minicpm"
    models = "MiniCPM 1B, 2B"
    features = "multipliers on embeddings, residuals, logits"

    @classmethod
    def read_residual_scale(cls, hyper: Hyper) -> float:
        return hyper.number("residual_scale", 1.4 / math.sqrt(hyper.n_layers))

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        divisor = read_divisor(hyper, 256 / hyper.n_embd)
        return {"embedding_scale": hyper.number("embedding_scale", 12.0), "logit_scale": 1 / divisor}


FAMILIES = (
    Llama, Mistral3, Smollm3, Granite, GraniteMoe, SeedOss, Arcee, Apertus, MiniCPM, InternLM2
)  # fmt: skip
