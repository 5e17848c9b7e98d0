"""Llama 4: attention by chunks, layers that see everything in between, experts whose weight is on their input."""

from __future__ import annotations

from dataclasses import replace

from mixkv.kernels.parts import Temperature
from mixkv.models.config import Hyper
from mixkv.models.families.llama import Llama
from mixkv.models.layers import Attention, Dense, LayerSpec, Routed


class Llama4(Llama):
    """Scout and Maverick, the text part.

    Where the file has keys for them, or none at all, llama.cpp has constants: chunks, and what the temperature of
    queries counts in, are of 8192 tokens; every fourth layer does not rotate; queries and keys are normed unless there
    are 128 experts (Maverick).
    """

    architecture = "llama4"
    models = "Llama 4 Scout, Maverick"
    features = "attention by chunks, every fourth layer without rotation, temperature, QK norm without a gain, experts"
    experts = {"gating": "sigmoid", "normalize": False, "on_input": True}  # noqa: RUF012
    CHUNK, NO_ROPE_EVERY, EXPERTS_WITHOUT_NORM = 8192, 4, 128
    TEMPERATURE = Temperature(0.1, 8192, 1)

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        everything = hyper.has("attention.sliding_window") and hyper.size("attention.sliding_window", least=0) == 0
        local = (0,) * hyper.n_layers if everything else hyper.windows(period=4, default=cls.CHUNK)
        layers = []
        for i, layer in enumerate(super().read_layers(hyper)):
            assert isinstance(layer.mixer, Attention)
            turns = everything or (i + 1) % cls.NO_ROPE_EVERY > 0
            mixer = cls._turning(hyper, layer.mixer, local[i] > 0) if turns else cls._still(layer.mixer)
            layers.append(replace(layer, mixer=replace(mixer, chunk=cls.CHUNK if local[i] else 0)))
        return tuple(layers)

    @classmethod
    def _turning(cls, hyper: Hyper, a: Attention, local: bool) -> Attention:
        """Attention of a layer that rotates."""
        assert a.rope is not None
        base = hyper.number("rope.freq_base_swa", a.rope.freq_base) if local else a.rope.freq_base
        if base <= 0:
            raise hyper.fail("rope.freq_base_swa", f"is {base}, but must be a positive number")
        normed = hyper.size("expert_count", 0, least=0) != cls.EXPERTS_WITHOUT_NORM
        rope = replace(a.rope, freq_base=base)
        return replace(a, rope=rope, qk_norm="unit" if normed else "", norms_last=normed)

    @classmethod
    def _still(cls, a: Attention) -> Attention:
        """Attention of a layer that does not."""
        return replace(a, rope=None, temperature=cls.TEMPERATURE)

    @classmethod
    def read_ffns(cls, hyper: Hyper) -> tuple[Dense | Routed, ...]:
        """Experts in every step-th layer, each time with a shared one of their own size."""
        step, dense = hyper.size("interleave_moe_layer_step", least=0), cls.read_dense(hyper)
        if step == 0 or not hyper.size("expert_count", 0, least=0):
            return (dense,) * hyper.n_layers
        routed = cls.read_routed(hyper)
        routed = replace(routed, n_shared=routed.n_ff)
        return tuple(dense if (i + 1) % step else routed for i in range(hyper.n_layers))


FAMILIES = (Llama4,)
