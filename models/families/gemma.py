"""Gemma 2 and 3: norms before and after, GELU, windows, embeddings times sqrt(n_embd)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mixkv.kernels.parts import Activation
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, with_windows
from mixkv.models.layers import Attention, LayerSpec


class Gemma2(Decoder):
    """Gemma 2."""

    architecture = "gemma2"
    models = "Gemma 2"
    features = "norms before and after, GELU, window in every second layer, scores and logits capped"
    norms = "both"
    activation = Activation("gelu")
    WINDOW_PERIOD = 2
    WINDOW = 4096
    SCALED_BY_WIDTH = 46
    """Layers of the one size whose scores are scaled by n_embd / n_heads instead of the head's size."""

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        attention = super().read_attention(hyper, n_kv_heads)
        cap = hyper.number("attn_logit_softcapping", 50.0)
        return replace(attention, softcap=cap, scale=cls.scale(hyper, attention))

    @classmethod
    def scale(cls, hyper: Hyper, attention: Attention) -> float:
        """Factor on scores."""
        if hyper.n_layers == cls.SCALED_BY_WIDTH:
            return math.sqrt(attention.n_heads / hyper.n_embd)
        return attention.scale

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        return with_windows(super().read_layers(hyper), hyper.windows(period=cls.WINDOW_PERIOD, default=cls.WINDOW))

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        return {
            "embedding_scale": math.sqrt(hyper.n_embd), "logit_softcap": hyper.number("final_logit_softcapping", 30.0)
        }  # fmt: skip


class Gemma3(Gemma2):
    """Gemma 3, text: QK norm instead of caps, and a rotation of their own for layers with a window."""

    architecture = "gemma3"
    models = "Gemma 3 (text)"
    features = "norms before and after, GELU, QK norm, window in five of six layers, two rotations"
    qk_norm = "head"
    WINDOW_PERIOD = 6
    SCALED_BY_WIDTH = 62

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        attention = super(Gemma2, cls).read_attention(hyper, n_kv_heads)
        return replace(attention, scale=cls.scale(hyper, attention))

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        layers = with_windows(super(Gemma2, cls).read_layers(hyper), hyper.windows(period=cls.WINDOW_PERIOD, default=0))
        base = read_local_base(hyper)
        return tuple(with_local_base(layer, base) for layer in layers)

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        return {
            "embedding_scale": math.sqrt(hyper.n_embd), "logit_softcap": hyper.number("final_logit_softcapping", 0.0)
        }  # fmt: skip


def with_local_base(layer: LayerSpec, base: float) -> LayerSpec:
    """The layer; where it has a window, rotating with this base and no scaling."""
    a = layer.mixer
    if not isinstance(a, Attention) or not a.window or a.rope is None:
        return layer
    return replace(layer, mixer=replace(a, rope=replace(a.rope, freq_base=base, scaling="none", factor=1.0)))


def read_local_base(hyper: Hyper) -> float:
    """The base of rotation in layers with a window."""
    base = hyper.number("rope.freq_base_swa", 10000.0)
    if base <= 0:
        raise hyper.fail("rope.freq_base_swa", f"is {base}, but must be a positive number")
    return base


FAMILIES = (Gemma2, Gemma3)
