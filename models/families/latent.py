"""Families whose heads share one latent row a token."""

from __future__ import annotations

import math
from dataclasses import replace

from mixkv.kernels.parts import Norm, Temperature
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, Mixer
from mixkv.models.latent_attention import LatentMixer
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Attention, Latent, LayerSpec

MOST_NUMBERS = 1024
"""Of a key."""


class Deepseek2(Decoder):
    """DeepSeek-V2 and V3, with the matrices of keys and values apart (files of 2025 on) or in one."""

    architecture = "deepseek2"
    models = "DeepSeek-V2, V3, R1, and Lite; Kimi K2"
    features = "latent attention, one row a token for all heads; experts in groups, chosen with a bias, shared ones"
    interleaved_rope = True
    experts = {"gating": None, "normalize": None, "gating_default": 1}  # noqa: RUF012

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        """Keys and values as they are read: one head, whose key is a latent row and what turns."""
        merged = not hyper.has("attention.key_length_mla")
        end = "" if merged else "_mla"
        head_dim = hyper.size(f"attention.key_length{end}", most=MOST_NUMBERS)
        head_dim_v = hyper.size(f"attention.value_length{end}", most=MOST_NUMBERS)
        rank, q_rank = hyper.size("attention.kv_lora_rank"), hyper.size("attention.q_lora_rank", 0, least=0)
        rope = hyper.rope(head_dim, interleaved=cls.interleaved_rope)
        if not 0 < rope.n_rot < head_dim:
            raise hyper.fail("rope.dimension_count", f"is {rope.n_rot}, but must lie in 1 to {head_dim - 1}")
        if rank + rope.n_rot > MOST_NUMBERS:
            raise hyper.fail("attention.kv_lora_rank", f"is {rank}: keys of more than {MOST_NUMBERS} numbers")
        # The file's multiplier is a tenth of mscale_all_dim, which makes scores larger instead of cos and sin.
        multiplier = hyper.number("rope.scaling.yarn_log_multiplier", 0.0)
        stretch = rope.attn_factor * (1 + multiplier * math.log(rope.factor)) if rope.factor > 1 else 1.0
        slope = hyper.number("attention.temperature_scale", 0.0)
        return Attention(
            hyper.of_every_layer("attention.head_count"), 1, rank + rope.n_rot, rank,
            scale=stretch**2 * head_dim**-0.5, rope=replace(rope, log_multiplier=1.0),
            temperature=Temperature(slope, rope.n_ctx_orig) if slope else None,
            latent=Latent(rank, q_rank, rope.n_rot, head_dim, head_dim_v, merged),
        )  # fmt: skip

    def build_mixer(self, lw: LayerWeights, i: int, spec: LayerSpec, norm: Norm | None, out_norm: Norm | None) -> Mixer:
        return LatentMixer(lw, i, spec, self.rotation, norm, out_norm)


FAMILIES = (Deepseek2,)
