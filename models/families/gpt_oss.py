"""gpt-oss: biases everywhere, learned sinks, clamped SwiGLU in experts, a window in every second layer."""

from __future__ import annotations

from dataclasses import replace

from mixkv.kernels.parts import Activation
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, with_windows
from mixkv.models.layers import Attention, LayerSpec


class GptOss(Decoder):
    """gpt-oss-20b, gpt-oss-120b."""

    architecture = "gpt-oss"
    models = "gpt-oss 20B, 120B"
    features = "learned sinks, window in every second layer, biases, clamped SwiGLU, MXFP4 experts, YaRN"
    biases = ("attn_q", "attn_k", "attn_v", "attn_output")
    activation = Activation("swiglu_oai", (1.702, 7.0))
    experts = {"gating": "softmax of chosen", "normalize": False}  # noqa: RUF012
    renames = {"ffn_norm": "post_attention_norm"}  # noqa: RUF012

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return replace(super().read_attention(hyper, n_kv_heads), sinks=True)

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        return with_windows(super().read_layers(hyper), hyper.windows(period=2))


FAMILIES = (GptOss,)
