"""Gemma 3n: four residual streams of which one is computed on (AltUp), a shortcut of low rank beside attention
(LAuReL), sparse activations in the first layers, embeddings for each layer.

The source of the formulas is the model's code in Hugging Face's transformers, and the papers it names: AltUp (Baykal et
al. 2023), LAuReL (Menghani et al. 2024). What is small is done in NumPy, row by row: products are the backend's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from mixkv.kernels.parts import F32
from mixkv.models.attention import AttentionMixer
from mixkv.models.batch import Batch, Rows, States
from mixkv.models.config import Hyper
from mixkv.models.decoder import Decoder, Layer, with_windows
from mixkv.models.families.gemma import read_local_base, with_local_base
from mixkv.models.families.gemma4 import GELU, PerLayerInput, TakesInput, share_keys
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Attention, Dense, LayerSpec

N_STREAMS = 4
LAUREL_RANK = 64
SPARSE_LAYERS, SPARSITY = 10, 1.6448533535003662
"""The first layers keep what lies more than so many deviations above the mean: a twentieth of normal numbers."""
SHARED_FROM = 20


def gaussian_top(x: F32, deviations: float) -> F32:
    """max(0, x - mean - deviations * deviation) of each row (n, m)."""
    mean = x.mean(axis=1, keepdims=True, dtype=np.float32)
    spread = np.sqrt(np.square(x - mean).sum(axis=1, keepdims=True, dtype=np.float32) / np.float32(x.shape[1] - 1))
    return np.maximum(x - (mean + spread * np.float32(deviations)), 0).astype(np.float32)


def length(x: F32) -> F32:
    """Euclidean length of rows."""
    return np.sqrt(np.square(x).sum(axis=-1, keepdims=True, dtype=np.float32))


class Gemma3nLayer(Layer):
    """One layer, from streams (N_STREAMS, n, dim) to streams."""

    def __init__(self, lw: LayerWeights, spec: LayerSpec, mixer: AttentionMixer, width: int, sparsity: float) -> None:
        super().__init__(None, None)
        backend, dim, ffn = lw.backend, lw.config.n_embd, spec.ffn
        assert isinstance(ffn, Dense)
        self._backend, self._attend, self._sparsity = backend, mixer, sparsity
        self._attn_norm = lw.norm("attn_norm", dim)
        self._laurel_in = lw.matrix("laurel_l", LAUREL_RANK, dim)
        self._laurel_out = backend.Project(
            w=lw.matrix("laurel_r", dim, LAUREL_RANK), out_norm=lw.norm("laurel_post_norm", dim)
        )
        self._ffn_in = backend.NormLinear(
            norm=lw.norm("ffn_norm", dim),
            weights=[lw.matrix("ffn_gate", ffn.n_ff, dim), lw.matrix("ffn_up", ffn.n_ff, dim)],
        )
        self._ffn_out = backend.Project(w=lw.matrix("ffn_down", dim, ffn.n_ff), out_norm=lw.norm("post_ffw_norm", dim))
        router_norm = lw.norm("altup_router_norm", dim)
        assert router_norm.gain is not None
        router_norm = replace(router_norm, gain=router_norm.gain * np.float32(1 / dim))
        self._router = backend.NormLinear(norm=router_norm, weights=[lw.matrix("altup_router", N_STREAMS, dim)])
        self._predict = lw.array("altup_predict_coef", (N_STREAMS * N_STREAMS, N_STREAMS))
        self._correct = lw.array("altup_correct_coef", (N_STREAMS, N_STREAMS))
        self._correct_scale = lw.vector("altup_correct_scale", dim)
        self._takes = TakesInput(lw, width)

    def streams(self, x: F32, told: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        """x (N_STREAMS, n, dim), told (n, width) -> the same after this layer, of `rows` alone (None: of all)."""
        predicted = self._predictions(x)
        active = np.ascontiguousarray(predicted[0])
        h = self._backend.norm(active, self._attn_norm)
        attended = self._attend(active, batch, states, rows)
        if rows is not None:
            predicted, h, told = predicted[:, rows], np.ascontiguousarray(h[rows]), np.ascontiguousarray(told[rows])
        if not len(attended):
            return predicted
        laurel = self._laurel_out(self._backend.linear(h, self._laurel_in), h)
        mixed = (attended + laurel) * np.float32(1 / math.sqrt(2))
        gate, up = self._ffn_in(mixed)
        if self._sparsity:
            gate = gaussian_top(gate, self._sparsity)
        out = self._ffn_out(self._backend.activate(GELU, gate, up), mixed)
        innovation, modalities = out - predicted[0], self._modalities(out)
        factors = small_product(modalities, self._correct) + np.float32(1)
        corrected = predicted + innovation * factors.T[:, :, None]
        corrected[1:] += self._takes(corrected[0] * self._correct_scale, told, None)
        return corrected

    def _modalities(self, x: F32) -> F32:
        """(n, N_STREAMS)."""
        return np.tanh(self._router(x)[0])

    def _predictions(self, x: F32) -> F32:
        """Each stream as the others let one expect it."""
        coefficients = small_product(self._modalities(np.ascontiguousarray(x[0])), self._predict)
        c = coefficients.reshape(-1, N_STREAMS, N_STREAMS)
        predicted = x.copy()
        for to in range(N_STREAMS):
            for of in range(N_STREAMS):
                predicted[to] += c[:, to, of, None] * x[of]
        return predicted


def small_product(x: F32, matrix: F32) -> F32:
    """x (n, cols) matrix^T, added up column by column: the same for every n, which a BLAS would not promise."""
    y = np.zeros((len(x), len(matrix)), np.float32)
    for i in range(matrix.shape[1]):
        y += x[:, i, None] * matrix[:, i]
    return y


class Gemma3n(Decoder):
    """Gemma 3n, text."""

    architecture = "gemma3n"
    models = "Gemma 3n (text)"
    features = (
        "four streams, embeddings per layer, V normed, sparse activations, shared keys, window in four of five layers"
    )
    norms = "both"
    qk_norm = "head"
    activation = GELU

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        return replace(super().read_attention(hyper, n_kv_heads), scale=1.0, v_norm=True)

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        layers = with_windows(super().read_layers(hyper), hyper.windows(period=5, required=True))
        base = read_local_base(hyper)
        n_shared = hyper.size("attention.shared_kv_layers", max(0, hyper.n_layers - SHARED_FROM), least=0)
        return share_keys(tuple(with_local_base(layer, base) for layer in layers), n_shared, hyper)

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        for key, number in (("altup.num_inputs", N_STREAMS), ("altup.active_idx", 0)):
            if hyper.size(key, number, least=0) != number:
                raise hyper.fail(key, f"is not {number}, as in every Gemma 3n")
        return {
            "embedding_scale": math.sqrt(hyper.n_embd), "logit_softcap": hyper.number("final_logit_softcapping", 30.0),
            "n_embd_per_layer": hyper.size("embedding_length_per_layer_input", 256),
        }  # fmt: skip

    def prepare(self, whole: LayerWeights) -> None:
        c = self.config
        self._told = PerLayerInput(whole, c.n_layers, c.n_embd_per_layer)
        slices = [slice(i * c.n_embd, (i + 1) * c.n_embd) for i in range(N_STREAMS - 1)]
        shape = N_STREAMS - 1, c.n_embd, c.n_embd
        self._spread = whole.weights.parts("altup_proj.weight", slices, c.n_embd, shape)
        self._gather = whole.weights.parts("altup_unembd_proj.weight", slices, c.n_embd, shape)

    def build_layer(self, lw: LayerWeights, i: int, spec: LayerSpec) -> Layer:
        dim = self.config.n_embd
        if isinstance(spec.mixer, Attention) and spec.mixer.kv_from is not None:
            lw.ignore("attn_k", "attn_v", "attn_k_norm")
        mixer = AttentionMixer(
            lw, i, spec, self.rotation, lw.norm("attn_norm", dim), lw.norm("post_attention_norm", dim)
        )
        sparsity = SPARSITY if i < SPARSE_LAYERS else 0.0
        return Gemma3nLayer(lw, spec, mixer, self.config.n_embd_per_layer, sparsity)

    def forward(self, batch: Batch, states: States) -> F32:
        """See Decoder.forward."""
        with np.errstate(all="ignore"):
            x = self.embed(batch)
            told = self._told(batch.ids, x)
            size = length(x)
            made = [self.backend.linear(x, w) for w in self._spread]
            streams = np.stack([x, *(m * size / length(m) for m in made)])
            last = len(self.layers) - 1
            for i, layer in enumerate(self.layers):
                assert isinstance(layer, Gemma3nLayer)
                streams = layer.streams(streams, told[i], batch, states, batch.rows if i == last else None)
            if not streams.shape[1]:
                return np.empty((0, self.config.n_vocab), np.float32)
            size, x = length(streams[0]), streams[0]
            for stream, w in zip(streams[1:], self._gather, strict=True):
                m = self.backend.linear(np.ascontiguousarray(stream), w)
                x = x + m * size / length(m)
            return self.head(x * np.float32(1 / N_STREAMS))


FAMILIES = (Gemma3n,)
