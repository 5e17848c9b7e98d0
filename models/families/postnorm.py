"""Families with norms behind mixer and feed-forward: OLMo 2 and 3, EXAONE 4, GLM-4."""

from __future__ import annotations

from dataclasses import replace

from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, with_windows
from mixkv.models.families.layernorm import without_global_rope
from mixkv.models.layers import Attention, LayerSpec


class Olmo2(Decoder):
    """OLMo 2 and 3: norms behind alone, one over the whole row of Q and K; in OLMo 3 windows, whose layers do not
    stretch their rotation."""

    architecture = "olmo2"
    models = "OLMo 2, OLMo 3"
    features = "norms after, QK norm over the row, window in three of four layers (OLMo 3)"
    norms = "after"
    qk_norm = "row"

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        layers = with_windows(super().read_layers(hyper), hyper.windows(period=4))
        return tuple(_unstretched(layer) for layer in layers)


def _unstretched(layer: LayerSpec) -> LayerSpec:
    a = layer.mixer
    if not isinstance(a, Attention) or not a.window or a.rope is None:
        return layer
    return replace(layer, mixer=replace(a, rope=replace(a.rope, scaling="none", factor=1.0, attn_factor=1.0)))


class Olmoe(Decoder):
    """OLMoE: experts, one norm over the whole row of Q and K."""

    architecture = "olmoe"
    models = "OLMoE 1B-7B"
    features = "QK norm over the row, experts"
    qk_norm = "row"
    experts = {"gating": "softmax", "normalize": False}  # noqa: RUF012


class Exaone4(Decoder):
    """EXAONE 4: norms behind; the large one has windows, and no rotation in layers without."""

    architecture = "exaone4"
    models = "EXAONE 4.0"
    features = "norms after, QK norm, window in three of four layers (32B)"
    norms = "after"
    qk_norm = "head"
    WITH_WINDOWS = 64
    """Layers of the size that has windows."""

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        layers = super().read_layers(hyper)
        if hyper.n_layers != cls.WITH_WINDOWS:
            return layers
        return tuple(
            without_global_rope(layer) for layer in with_windows(layers, hyper.windows(period=4, default=4096))
        )


class Glm4(Decoder):
    """GLM-4 (0414), GLM-Z1: norms before and behind, gate and up in one matrix."""

    architecture = "glm4"
    models = "GLM-4-0414, GLM-Z1"
    features = "norms before and after, partial rotation"
    norms = "both"
    interleaved_rope = True


FAMILIES = (Olmo2, Olmoe, Exaone4, Glm4)
