"""Gemma 4: two shapes of attention, keys shared by the last layers, embeddings for each layer, experts beside a dense
feed-forward."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from mixkv.kernels.contract import Backend
from mixkv.kernels.contract_parts import FeedForward
from mixkv.kernels.parts import F32, Activation, Norm
from mixkv.models.batch import Batch, Rows
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, Layer, with_windows
from mixkv.models.experts import read_routed
from mixkv.models.families.gemma import read_local_base
from mixkv.models.feed_forward import dense, routed_experts
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Attention, Dense, LayerSpec, Routed

GELU = Activation("gelu")


def share_keys(layers: tuple[LayerSpec, ...], n_shared: int, hyper: Hyper) -> tuple[LayerSpec, ...]:
    """The layers, of which the last n_shared read the keys of the last layer before them that has their window."""
    first = len(layers) - n_shared
    if n_shared and first < 2:
        raise hyper.fail("attention.shared_kv_layers", f"is {n_shared} of {len(layers)} layers")

    def shared(i: int, layer: LayerSpec) -> LayerSpec:
        a = layer.mixer
        assert isinstance(a, Attention)
        if i < first:
            return layer
        source = first - 2 if a.window else first - 1
        read = layers[source].mixer
        if not isinstance(read, Attention) or (read.window, read.kv_shape) != (a.window, a.kv_shape):
            raise hyper.fail(
                "attention.shared_kv_layers", f"lets layer {i} read layer {source}, which is of another kind"
            )
        return replace(layer, mixer=replace(a, kv_from=source))

    return tuple(shared(i, layer) for i, layer in enumerate(layers))


class PerLayerInput:
    """What each layer is told of each token beside the residual stream, and how a layer takes it in.

    x + norm(proj(gelu(gate x) * told)).
    """

    def __init__(self, whole: LayerWeights, n_layers: int, width: int) -> None:
        dim = whole.config.n_embd
        self._backend, self._n_layers, self._width, self._dim = whole.backend, n_layers, width, dim
        self._embedding = whole.matrix("per_layer_token_embd", whole.config.n_vocab, n_layers * width)
        self._proj = whole.matrix("per_layer_model_proj", n_layers * width, dim)
        self._norm = whole.norm("per_layer_proj_norm", width)

    def __call__(self, ids: np.ndarray, x: F32) -> F32:
        """(n_layers, n, width) of tokens `ids`, whose embeddings are x (n, n_embd)."""
        looked_up = self._backend.embed(self._embedding, ids) * np.float32(math.sqrt(self._width))
        made = self._backend.linear(x, self._proj) * np.float32(1 / math.sqrt(self._dim))
        told = self._backend.norm(made.reshape(-1, self._width), self._norm, looked_up.reshape(-1, self._width))
        told *= np.float32(1 / math.sqrt(2))
        return np.ascontiguousarray(told.reshape(len(ids), self._n_layers, self._width).transpose(1, 0, 2))


class TakesInput:
    """One layer's part of PerLayerInput."""

    def __init__(self, lw: LayerWeights, width: int) -> None:
        self._backend, dim = lw.backend, lw.config.n_embd
        self._gate = lw.matrix("inp_gate", width, dim)
        self._out = lw.backend.Project(w=lw.matrix("proj", dim, width), out_norm=lw.norm("post_norm", dim))

    def __call__(self, x: F32, told: F32, residual: F32 | None) -> F32:
        """x (n, n_embd), told (n, width) -> residual with what comes of both (n, n_embd)."""
        return self._out(self._backend.activate(GELU, self._backend.linear(x, self._gate), told), residual)


class DenseAndRouted:
    """x + norm(dense(x) + routed(x)), each with norms of its own."""

    def __init__(self, backend: Backend, dense: FeedForward, routed: FeedForward, norm: Norm) -> None:
        self._backend, self._dense, self._routed, self._norm = backend, dense, routed, norm

    def __call__(self, x: F32, residual: F32 | None) -> F32:
        return self._backend.norm(self._routed(x, self._dense(x, None)), self._norm, residual)


class Gemma4(Decoder):
    """Gemma 4, text."""

    architecture = "gemma4"
    models = "Gemma 4 (text)"
    features = (
        "two head sizes, window in most layers, shared keys, V normed, embeddings per layer, experts beside an MLP"
    )
    norms = "both"
    qk_norm = "head"
    activation = GELU

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        if not hyper.gguf.metadata.length(hyper.key("attention.sliding_window_pattern")):
            raise hyper.fail("attention.sliding_window_pattern", "is not there as one flag for each layer")
        kv_heads = hyper.of_each_layer("attention.head_count_kv", hyper.of_every_layer("attention.head_count"))
        layers = tuple(
            LayerSpec(cls.read_attention(hyper, n), ffn, cls.norms)
            for n, ffn in zip(kv_heads, cls.read_ffns(hyper), strict=True)
        )
        windows = hyper.windows(period=1, required=True)
        layers = with_windows(layers, windows)
        local = cls.local_attention(hyper)
        shaped = []
        for i, layer in enumerate(layers):
            a = layer.mixer
            assert isinstance(a, Attention)
            if a.window:
                a = replace(a, **local)
            if f"blk.{i}.attn_v.weight" not in hyper.gguf.tensors:
                a = replace(a, v_from_k=True)
            shaped.append(replace(layer, mixer=a))
        return share_keys(tuple(shaped), hyper.size("attention.shared_kv_layers", 0, least=0), hyper)

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return replace(super().read_attention(hyper, n_kv_heads), scale=1.0, v_norm=True)

    @classmethod
    def local_attention(cls, hyper: Hyper) -> dict[str, Any]:
        """What layers with a window have otherwise."""
        head_dim = hyper.size("attention.key_length_swa", most=1024)
        n_rot = hyper.size("rope.dimension_count_swa", head_dim, most=head_dim)
        rope = replace(
            hyper.rope(hyper.heads(1)[2], interleaved=False), n_rot=n_rot, freq_base=read_local_base(hyper),
            scaling="none", factor=1.0, factors="",
        )  # fmt: skip
        value_dim = hyper.size("attention.value_length_swa", head_dim, most=1024)
        return {"head_dim_k": head_dim, "head_dim_v": value_dim, "rope": rope}

    @classmethod
    def read_ffns(cls, hyper: Hyper) -> tuple[Dense | Routed, ...]:
        """The dense feed-forward of each layer, or where there are experts, these: n_shared is the dense one beside."""
        widths = hyper.of_each_layer("feed_forward_length")
        if not hyper.size("expert_count", 0, least=0):
            return tuple(Dense(n, GELU) for n in widths)
        routed = read_routed(hyper, gating="softmax", normalize=True, activation=GELU)
        return tuple(replace(routed, n_shared=n) for n in widths)

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        return {
            "embedding_scale": math.sqrt(hyper.n_embd), "logit_softcap": hyper.number("final_logit_softcapping", 0.0),
            "n_embd_per_layer": hyper.size("embedding_length_per_layer_input", 0, least=0),
        }  # fmt: skip

    def build_layer(self, lw: LayerWeights, i: int, spec: LayerSpec) -> Layer:
        self._takes.append(TakesInput(lw, self._width) if self._width else None)
        scale = "layer_output_scale"
        self._scales.append(np.float32(lw.vector(scale, 1)[0]) if scale in lw else None)
        return super().build_layer(lw, i, spec)

    def build_ffn(self, lw: LayerWeights, spec: LayerSpec, norm: Norm | None, out_norm: Norm | None) -> FeedForward:
        ffn, dim = spec.ffn, self.config.n_embd
        if not isinstance(ffn, Routed):
            return super().build_ffn(lw, spec, norm, out_norm)
        assert out_norm is not None
        gain = lw.vector("ffn_gate_inp", dim, ".scale") * np.float32(1 / math.sqrt(dim))
        beside = dense(lw, Dense(ffn.n_shared, GELU), norm, lw.norm("post_ffw_norm_1", dim))
        n_experts, scales = ffn.routing.n_experts, lw.name("ffn_down_exps", ".scale")
        routed = routed_experts(
            lw, ffn, lw.norm("pre_ffw_norm_2", dim), lw.norm("post_ffw_norm_2", dim),
            router_norm=Norm(gain, self.config.norm_eps), down_scale=lw.weights.vector_if_there(scales, n_experts),
        )  # fmt: skip
        return DenseAndRouted(self.backend, beside, routed, out_norm)

    def prepare(self, whole: LayerWeights) -> None:
        self._width = self.config.n_embd_per_layer
        self._takes: list[TakesInput | None] = []
        self._scales: list[np.float32 | None] = []
        self._told = PerLayerInput(whole, self.config.n_layers, self._width) if self._width else None

    def beside_tokens(self, batch: Batch, x: F32) -> F32 | None:
        return None if self._told is None else self._told(batch.ids, x)

    def after_layer(self, i: int, x: F32, beside: F32 | None, rows: Rows | None) -> F32:
        takes, scale = self._takes[i], self._scales[i]
        if takes is not None and beside is not None and len(x):
            x = takes(x, beside[i] if rows is None else np.ascontiguousarray(beside[i][rows]), x)
        return x if scale is None else x * scale


FAMILIES = (Gemma4,)
