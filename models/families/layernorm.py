"""Families with LayerNorm: StarCoder2, StableLM, Command R."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixkv.kernels.parts import Activation
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, with_windows
from mixkv.models.layers import Attention, LayerSpec


class Starcoder2(Decoder):
    """StarCoder2: biases everywhere, GELU without a gate. The window that files name is not used, as in llama.cpp."""

    architecture = "starcoder2"
    models = "StarCoder2"
    features = "LayerNorm, biases, GELU"
    norm = "layer"
    activation = Activation("gelu")
    gated = False


class StableLM(Decoder):
    """StableLM 2 and Zephyr; some have norms of heads, some attention and feed-forward side by side."""

    architecture = "stablelm"
    models = "StableLM 3B, StableLM 2"
    features = "LayerNorm, partial rotation, QK norm of each head's own, parallel blocks"
    norm = "layer"

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return with_found_head_norms(super().read_attention(hyper, n_kv_heads), hyper)

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        parallel = "blk.0.ffn_norm.weight" not in hyper.gguf.tensors
        layers = super().read_layers(hyper)
        return tuple(replace(layer, norms="parallel") for layer in layers) if parallel else layers


class CommandR(Decoder):
    """Command R and R+: attention and feed-forward side by side."""

    architecture = "command-r"
    models = "Command R, Command R+"
    features = "LayerNorm, parallel blocks, scaled logits"
    norm = "layer"
    norms = "parallel"
    interleaved_rope = True

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return with_found_head_norms(super().read_attention(hyper, n_kv_heads), hyper)

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        return {"logit_scale": hyper.number("logit_scale", 0.0) or 1.0}


class Cohere2(CommandR):
    """Command R7B, Command A, Aya: windows, and no rotation in layers that see everything."""

    architecture = "cohere2"
    models = "Command R7B, Command A"
    features = "LayerNorm, parallel blocks, window in three of four layers, rotation in those alone"

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        layers = with_windows(super().read_layers(hyper), hyper.windows(period=4, required=True))
        return tuple(without_global_rope(layer) for layer in layers)


def with_found_head_norms(attention: Attention, hyper: Hyper) -> Attention:
    """With a norm of each head's own where the file has such."""
    return replace(attention, qk_norm="each" if "blk.0.attn_q_norm.weight" in hyper.gguf.tensors else "")


def without_global_rope(layer: LayerSpec) -> LayerSpec:
    """The layer; where it has no window, without rotation."""
    a = layer.mixer
    return replace(layer, mixer=replace(a, rope=None)) if isinstance(a, Attention) and not a.window else layer


FAMILIES = (CommandR, Cohere2, StableLM, Starcoder2)
