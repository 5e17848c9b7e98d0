"""Families with recurrent layers: Mamba-2, gated delta nets, short convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mixkv.kernels.parts import Activation
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder
from mixkv.models.families.llama import Granite
from mixkv.models.layers import Attention, DeltaNet, Dense, LayerSpec, Mamba2, Recurrent, Routed, ShortConv

MAX_KERNEL = 64


def read_mamba2(hyper: Hyper) -> Mamba2:
    """From the keys `ssm.*`."""
    n_heads, inner = hyper.size("ssm.time_step_rank"), hyper.size("ssm.inner_size")
    n_groups, d_state = hyper.size("ssm.group_count", 1), hyper.size("ssm.state_size", most=1 << 12)
    if inner % n_heads:
        raise hyper.fail("ssm.inner_size", f"{inner} is not a multiple of ssm.time_step_rank {n_heads}")
    if n_heads % n_groups:
        raise hyper.fail("ssm.group_count", f"{n_groups} does not divide ssm.time_step_rank {n_heads}")
    kernel = hyper.size("ssm.conv_kernel", least=2, most=MAX_KERNEL)
    return Mamba2.of(n_heads, inner // n_heads, n_groups, d_state, kernel)


def kv_heads_of_layers(hyper: Hyper) -> tuple[int, ...]:
    """`attention.head_count_kv` of each layer, 0 where it does not attend."""
    return hyper.of_each_layer("attention.head_count_kv", least=0)


def read_mixed_layers(family: type[Decoder], hyper: Hyper, other: Recurrent) -> tuple[LayerSpec, ...]:
    """Layers that attend where the file gives them KV heads, and else are `other`; each with its feed-forward."""
    scale = family.read_residual_scale(hyper)
    return tuple(
        LayerSpec(family.read_attention(hyper, n) if n else other, ffn, residual_scale=scale)
        for n, ffn in zip(kv_heads_of_layers(hyper), family.read_ffns(hyper), strict=True)
    )


class Mamba2Model(Decoder):
    """Mamba-2 alone: no attention, no feed-forward."""

    architecture = "mamba2"
    models = "Mamba 2, Codestral Mamba"
    features = "Mamba-2 layers alone"

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        return (LayerSpec(read_mamba2(hyper), None),) * hyper.n_layers


class NemotronH(Decoder):
    """Nemotron H and Nemotron Nano 2: each layer is Mamba-2, attention without rotation, or a feed-forward alone."""

    architecture = "nemotron_h"
    models = "Nemotron-H, Nemotron Nano 2"
    features = "one of Mamba-2, attention without rotation, squared ReLU a layer"
    activation = Activation("relu2")
    gated = False

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        kv_heads, widths = kv_heads_of_layers(hyper), hyper.of_each_layer("feed_forward_length", least=0)
        mamba = read_mamba2(hyper)

        def layer(n_kv_heads: int, n_ff: int) -> LayerSpec:
            if n_kv_heads:
                return LayerSpec(replace(cls.read_attention(hyper, n_kv_heads), rope=None), None)
            return LayerSpec(None, cls.read_ffn(hyper, n_ff)) if n_ff else LayerSpec(mamba, None)

        return tuple(map(layer, kv_heads, widths))

    @classmethod
    def read_ffn(cls, hyper: Hyper, n_ff: int) -> Dense | Routed:
        """That of a layer whose `feed_forward_length` is n_ff."""
        return Dense(n_ff, cls.activation, cls.gated)


class NemotronHMoe(NemotronH):
    """Nemotron 3 Nano: with experts."""

    architecture = "nemotron_h_moe"
    models = "Nemotron 3 Nano"
    features = "one of Mamba-2, attention without rotation, experts with squared ReLU a layer"
    experts = {"gating": "sigmoid", "normalize": None}  # noqa: RUF012

    @classmethod
    def read_ffn(cls, hyper: Hyper, n_ff: int) -> Dense | Routed:
        return cls.read_routed(hyper)


class GraniteHybrid(Granite):
    """Granite 4: Mamba-2 in most layers, and experts in some sizes."""

    architecture = "granitehybrid"
    models = "Granite 4.0 (h)"
    features = "multipliers, Mamba-2 in most layers, experts, a shared one"

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        return read_mixed_layers(cls, hyper, read_mamba2(hyper))


class FalconH1(Decoder):
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""

    architecture = "falcon-h1"
    models = "Falcon-H1"
    features = "attention and Mamba-2 side by side"

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        mamba = read_mamba2(hyper)
        return tuple(replace(layer, beside=mamba) for layer in super().read_layers(hyper))


class Lfm2(Decoder):
    """LFM2: short convolutions in most layers. The output's norm is called token_embd_norm there."""

    architecture = "lfm2"
    models = "LFM2, LFM2.5"
    features = "short convolutions in most layers, QK norm"
    qk_norm = "head"
    renames = {"output_norm": "token_embd_norm"}  # noqa: RUF012

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        conv = ShortConv.of(hyper.n_embd, hyper.size("shortconv.l_cache", least=2, most=MAX_KERNEL))
        return read_mixed_layers(cls, hyper, conv)


class Lfm2Moe(Lfm2):
    """LFM2 with experts."""

    architecture = "lfm2moe"
    models = "LFM2-8B-A1B"
    features = "short convolutions in most layers, QK norm, experts chosen with a bias"
    experts = {"gating": None, "normalize": True}  # noqa: RUF012


class Qwen3Next(Decoder):
    """Qwen3-Next: gated delta nets in three of four layers, attention with an output gate in the fourth."""

    architecture = "qwen3next"
    models = "Qwen3-Next, Qwen3-Coder-Next"
    features = "gated delta nets in three of four layers, output gate, QK norm, partial rotation, experts, a shared one"
    qk_norm = "head"
    renames = {"ffn_norm": "post_attention_norm"}  # noqa: RUF012
    experts: ClassVar[Mapping[str, Any] | None] = {"gating": "softmax", "normalize": True, "shared_gate": True}
    TILED_KEYS = False

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return replace(super().read_attention(hyper, n_kv_heads), gate=True)

    @classmethod
    def read_delta_net(cls, hyper: Hyper) -> DeltaNet:
        """From the keys `ssm.*`."""
        n_heads, n_k_heads = hyper.size("ssm.time_step_rank"), hyper.size("ssm.group_count")
        inner, head_dim = hyper.size("ssm.inner_size"), hyper.size("ssm.state_size", most=1 << 12)
        if n_heads % n_k_heads:
            raise hyper.fail("ssm.group_count", f"{n_k_heads} does not divide ssm.time_step_rank {n_heads}")
        if inner != n_heads * head_dim:
            raise hyper.fail("ssm.inner_size", f"is {inner}, not ssm.time_step_rank * ssm.state_size")
        kernel = hyper.size("ssm.conv_kernel", least=2, most=MAX_KERNEL)
        return DeltaNet.of(n_heads, n_k_heads, head_dim, kernel, cls.TILED_KEYS)

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        every, net, attention = hyper.size("full_attention_interval", 4), cls.read_delta_net(hyper), None
        layers = []
        for i, ffn in enumerate(cls.read_ffns(hyper)):
            attends = (i + 1) % every == 0
            if attends:
                attention = attention or cls.read_attention(hyper)
            layers.append(LayerSpec(attention if attends else net, ffn))
        return tuple(layers)


class Qwen35(Qwen3Next):
    """Qwen 3.5 and later, dense. Its rotation by sections is one by halves where there is only text."""

    architecture = "qwen35"
    models = "Qwen 3.5, 3.6 (dense)"
    features = "gated delta nets in three of four layers, output gate, QK norm, partial rotation"
    TILED_KEYS = True
    experts: ClassVar[Mapping[str, Any] | None] = None


class Qwen35Moe(Qwen35):
    """Qwen 3.5 with experts."""

    architecture = "qwen35moe"
    models = "Qwen 3.5, 3.6 with experts"
    features = "as `qwen35`, with experts and a shared one"
    experts: ClassVar[Mapping[str, Any] | None] = Qwen3Next.experts


FAMILIES = (Qwen35, Qwen35Moe, Qwen3Next, Lfm2, Lfm2Moe, GraniteHybrid, FalconH1, NemotronH, NemotronHMoe, Mamba2Model)
