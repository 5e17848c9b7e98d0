"""Families with experts that are a llama otherwise."""

from __future__ import annotations

from dataclasses import replace

from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder
from mixkv.models.layers import Attention, Dense, Routed

SOFTMAX = {"gating": "softmax", "normalize": True}


class Ernie45(Decoder):
    """ERNIE 4.5, dense."""

    architecture = "ernie4_5"
    models = "ERNIE 4.5 0.3B"
    features = "a llama by another name"
    interleaved_rope = True


class Ernie45Moe(Ernie45):
    """ERNIE 4.5 with experts in every step-th layer."""

    architecture = "ernie4_5-moe"
    models = "ERNIE 4.5 21B-A3B, 300B-A47B"
    features = "experts chosen with a bias, shared ones"
    experts = SOFTMAX

    @classmethod
    def read_ffns(cls, hyper: Hyper) -> tuple[Dense | Routed, ...]:
        step, found = hyper.size("interleave_moe_layer_step", 1), super().read_ffns(hyper)
        if step == 1:
            return found
        dense = cls.read_dense(hyper)
        return tuple(ffn if (i + 1) % step == 0 else dense for i, ffn in enumerate(found))


class HunyuanDense(Decoder):
    """Hunyuan, dense: QK norm behind the rotation."""

    architecture = "hunyuan-dense"
    models = "Hunyuan 0.5B to 7B"
    features = "QK norm after rotation"
    qk_norm = "head"

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return replace(super().read_attention(hyper, n_kv_heads), norms_last=True)


class HunyuanMoe(HunyuanDense):
    """Hunyuan with experts."""

    architecture = "hunyuan-moe"
    models = "Hunyuan A13B"
    features = "QK norm after rotation, experts, a shared one"
    experts = SOFTMAX


class Dots1(Decoder):
    """dots.llm1."""

    architecture = "dots1"
    models = "dots.llm1"
    features = "QK norm, experts chosen with a bias, shared ones"
    qk_norm = "head"
    experts = {"gating": None, "normalize": None}  # noqa: RUF012


class BailingMoe2(Decoder):
    """Ling 2.0, Ring 2.0: experts chosen by groups."""

    architecture = "bailingmoe2"
    models = "Ling 2.0, Ring 2.0"
    features = "QK norm, partial rotation, experts in groups, a shared one"
    qk_norm = "head"
    experts = {"gating": None, "normalize": None}  # noqa: RUF012


class MinimaxM2(Decoder):
    """MiniMax-M2."""

    architecture = "minimax-m2"
    models = "MiniMax-M2"
    features = "QK norm over the row, partial rotation, experts chosen with a bias"
    qk_norm = "row"
    experts = {"gating": None, "normalize": True}  # noqa: RUF012


class Glm4Moe(Decoder):
    """GLM-4.5, 4.6, Air."""

    architecture = "glm4moe"
    models = "GLM-4.5, GLM-4.6, GLM-4.5-Air"
    features = "partial rotation, QK norm where there is one, experts chosen with a bias, a shared one"
    renames = {"ffn_norm": "post_attention_norm"}  # noqa: RUF012
    experts = {"gating": None, "normalize": None, "gating_default": 2}  # noqa: RUF012

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        normed = "blk.0.attn_q_norm.weight" in hyper.gguf.tensors
        return replace(super().read_attention(hyper, n_kv_heads), qk_norm="head" if normed else "")


FAMILIES = (Glm4Moe, Ernie45, Ernie45Moe, HunyuanDense, HunyuanMoe, Dots1, BailingMoe2, MinimaxM2)
