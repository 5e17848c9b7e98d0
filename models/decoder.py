"""Decoder: what all families have in common. A family is a subclass that says what differs (families/).

Know before you change this room: a family's class is mostly names and flags, which `read_config` turns into layers, and
these are all that building and computing look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from mixkv.kernels.contract_parts import FeedForward
from mixkv.kernels.parts import F32, SILU, Activation, Norm, Rotation
from mixkv.models.attention import AttentionMixer
from mixkv.models.batch import Batch, Rows, States
from mixkv.models.config import Hyper, ModelConfig
from mixkv.models.experts import read_routed
from mixkv.models.feed_forward import feed_forward
from mixkv.models.gguf import GGUFFile
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Attention, Dense, LayerSpec, NormPlaces, Recurrent, Routed
from mixkv.models.recurrent import RecurrentMixer, recurrent_mixer
from mixkv.models.rope import RopeConfig
from mixkv.models.weights import Weights


class Mixer(Protocol):
    """What looks at a layer's past: attention, or one of the recurrent kinds."""

    def __call__(self, x: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        """x (n, dim), the residual stream -> with what the mixer adds, of `rows` alone (None: of all)."""


class Layer:
    """One layer. parallel: feed-forward and mixer read the same, and both are added."""

    def __init__(self, mixer: Mixer | None, ffn: FeedForward | None, parallel: bool = False) -> None:
        self._mixer, self._ffn, self._parallel = mixer, ffn, parallel

    def __call__(self, x: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        """x (n, dim) -> the same after this layer, of `rows` alone (None: of all)."""
        mine = x if rows is None else x[rows]
        h = mine if self._mixer is None else self._mixer(x, batch, states, rows)
        if self._ffn is None or not len(h):
            return h
        return self._ffn(mine if self._parallel else h, h)


class Beside:
    """Two mixers that read the same; what both give is added."""

    def __init__(self, first: Mixer, second: RecurrentMixer) -> None:
        self._first, self._second = first, second

    def __call__(self, x: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        return self._second.add(x, states, self._first(x, batch, states, rows), rows)


class Decoder:
    """See above. `backend` is what it computes with, and what its cache must be made of.

    What a family says of itself: architecture, models, features (for the table of families); how pairs rotate; which
    norm and where; QK norm; biases that every file must have (others are used where they are found); the activation;
    experts: how it routes where a file has experts (arguments of read_routed), None where it cannot have any; renames:
    its own names for some tensors (see LayerWeights).
    """

    architecture: ClassVar[str]
    models: ClassVar[str]
    features: ClassVar[str]
    interleaved_rope: ClassVar[bool] = False
    norm: ClassVar[Literal["rms", "layer"]] = "rms"
    norms: ClassVar[NormPlaces] = "before"
    qk_norm: ClassVar[Literal["", "head", "each", "row", "unit"]] = ""
    biases: ClassVar[tuple[str, ...]] = ()
    activation: ClassVar[Activation] = SILU
    gated: ClassVar[bool] = True
    experts: ClassVar[Mapping[str, Any] | None] = None
    renames: ClassVar[Mapping[str, str]] = {}
    fingerprint: str
    """Of everything that changes logits or token ids (fingerprint.py); set by `load_model`."""

    # What a file says

    @classmethod
    def read_config(cls, gguf: GGUFFile) -> ModelConfig:
        """The hyper-parameters of `gguf`. Raises GGUFError, which names what is missing or wrong."""
        hyper = Hyper(gguf, cls.norm)
        return hyper.config(cls.read_layers(hyper), **cls.read_scalars(hyper))

    @classmethod
    def read_layers(cls, hyper: Hyper) -> tuple[LayerSpec, ...]:
        """Every layer."""
        attention = cls.read_attention(hyper)
        scale = cls.read_residual_scale(hyper)
        return tuple(LayerSpec(attention, ffn, cls.norms, scale) for ffn in cls.read_ffns(hyper))

    @classmethod
    def read_attention(cls, hyper: Hyper, n_kv_heads: int | None = None) -> Attention:
        """Attention as the keys that all families have describe it. n_kv_heads: of layers that have a number of their
        own; None: as the file says of all."""
        n_heads, n_kv_heads, head_dim_k, head_dim_v = hyper.heads(n_kv_heads)
        return Attention(
            n_heads, n_kv_heads, head_dim_k, head_dim_v, scale=head_dim_k**-0.5, biases=cls.biases,
            rope=hyper.rope(head_dim_k, interleaved=cls.interleaved_rope), qk_norm=cls.qk_norm,
        )  # fmt: skip

    @classmethod
    def read_ffns(cls, hyper: Hyper) -> tuple[Dense | Routed, ...]:
        """The feed-forward of each layer: experts where the file has some, behind first layers that may be dense."""
        n = hyper.n_layers
        if cls.experts is None or not hyper.size("expert_count", 0, least=0):
            return (cls.read_dense(hyper),) * n
        routed = cls.read_routed(hyper)
        n_dense = min(n, hyper.size("leading_dense_block_count", 0, least=0))
        return (cls.read_dense(hyper),) * n_dense + (routed,) * (n - n_dense) if n_dense else (routed,) * n

    @classmethod
    def read_routed(cls, hyper: Hyper) -> Routed:
        """The feed-forward of layers with experts."""
        assert cls.experts is not None
        return read_routed(hyper, activation=cls.activation, gated=cls.gated, **cls.experts)

    @classmethod
    def read_dense(cls, hyper: Hyper) -> Dense:
        """The feed-forward of layers without experts."""
        return Dense(hyper.of_every_layer("feed_forward_length"), cls.activation, cls.gated)

    @classmethod
    def read_residual_scale(cls, hyper: Hyper) -> float:
        """Factor on what mixer and feed-forward add."""
        return 1.0

    @classmethod
    def read_scalars(cls, hyper: Hyper) -> dict[str, Any]:
        """Fields of ModelConfig that are not those of every family."""
        return {}

    # What is built from it

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.backend = config, weights.backend
        dim = config.n_embd
        whole = LayerWeights(weights, config, renames=self.renames)
        self.embedding = weights.matrix("token_embd.weight", config.n_vocab, dim)
        self._weights, self._rotations = weights, dict[RopeConfig, Rotation]()
        self.prepare(whole)
        self.layers = [self.build_layer(self.layer_weights(i), i, spec) for i, spec in enumerate(config.layers)]
        tied = "output.weight" not in weights
        output = self.embedding if tied else weights.matrix("output.weight", config.n_vocab, dim)
        self.head = self.backend.Head(
            norm=whole.norm("output_norm", dim), w=output, bias=weights.vector_if_there("output.bias", config.n_vocab),
            scale=config.logit_scale, softcap=config.logit_softcap,
        )  # fmt: skip
        unused = tuple(f"blk.{i}." for i in range(config.n_layers, config.n_layers + config.n_unused))
        weights.ignore(*(name for name in weights.gguf.tensors if unused and name.startswith(unused)))
        weights.ignore("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
        weights.check_all_taken()
        del self._weights

    def layer_weights(self, layer: int) -> LayerWeights:
        """The tensors of a layer; while the model is built."""
        return LayerWeights(self._weights, self.config, f"blk.{layer}.", self.renames)

    def prepare(self, whole: LayerWeights) -> None:
        """For tensors of the whole model that only some families have; called before layers are built."""

    def build_layer(self, lw: LayerWeights, i: int, spec: LayerSpec) -> Layer:
        """Layer i."""
        before, after = spec.norms in ("before", "both", "parallel"), spec.norms in ("after", "both")
        dim = self.config.n_embd
        attn_norm = lw.norm("attn_norm", dim) if before else None
        ffn: FeedForward | None = None
        if spec.ffn is not None:
            alone = spec.norms == "parallel" or spec.mixer is None  # then there is one norm for both
            ffn_norm = attn_norm if alone else lw.norm("ffn_norm", dim) if before else None
            out_norm = lw.norm("post_ffw_norm", dim) if after else None
            ffn = self.build_ffn(lw, spec, ffn_norm, out_norm)
        if spec.mixer is None:
            return Layer(None, ffn)
        out_norm = lw.norm("post_attention_norm", dim) if after else None
        return Layer(self.build_mixer(lw, i, spec, attn_norm, out_norm), ffn, spec.norms == "parallel")

    def build_mixer(self, lw: LayerWeights, i: int, spec: LayerSpec, norm: Norm | None, out_norm: Norm | None) -> Mixer:
        """The mixer of layer i."""
        if isinstance(spec.mixer, Recurrent):
            return recurrent_mixer(lw, i, spec, spec.mixer, norm)
        attention = AttentionMixer(lw, i, spec, self.rotation, norm, out_norm)
        return attention if spec.beside is None else Beside(attention, recurrent_mixer(lw, i, spec, spec.beside, norm))

    def build_ffn(self, lw: LayerWeights, spec: LayerSpec, norm: Norm | None, out_norm: Norm | None) -> FeedForward:
        """The feed-forward of a layer."""
        return feed_forward(lw, spec, norm, out_norm)

    def rotation(self, rope: RopeConfig | None) -> Rotation | None:
        """The frequencies of a rotation, the same object for layers that rotate alike."""
        if rope is None or rope.n_rot == 0:
            return None
        if rope not in self._rotations:
            factors = self._weights.vector(rope.factors, rope.n_rot // 2) if rope.factors else None
            self._rotations[rope] = Rotation(rope.inv_freq(factors), rope.interleaved, rope.magnitude)
        return self._rotations[rope]

    # Computing

    def embed(self, batch: Batch) -> F32:
        """The residual stream (n, n_embd) as it enters the first layer."""
        x = self.backend.embed(self.embedding, batch.ids)
        if self.config.embedding_scale != 1:
            x *= np.float32(self.config.embedding_scale)
        return x

    def beside_tokens(self, batch: Batch, x: F32) -> F32 | None:
        """What `after_layer` needs of each token, from its embedding x; families that have such say more."""
        return None

    def after_layer(self, i: int, x: F32, beside: F32 | None, rows: Rows | None) -> F32:
        """The residual stream (of `rows` alone) as it leaves layer i."""
        return x

    def forward(self, batch: Batch, states: States) -> F32:
        """Logits (n_rows, n_vocab) of the batch's rows.

        Past the last layer's mixer nothing but the asked rows is computed. NaN, infinity and overflow in a file's
        weights are data: they show in the logits, not as warnings.
        """
        with np.errstate(all="ignore"):
            x = self.embed(batch)
            beside = self.beside_tokens(batch, x)
            last = len(self.layers) - 1
            for i, layer in enumerate(self.layers):
                rows = batch.rows if i == last else None
                x = self.after_layer(i, layer(x, batch, states, rows), beside, rows)
            return self.head(x) if len(x) else np.empty((0, self.config.n_vocab), np.float32)


def with_windows(layers: tuple[LayerSpec, ...], windows: tuple[int, ...]) -> tuple[LayerSpec, ...]:
    """The layers, those that attend with these windows."""
    return tuple(
        replace(layer, mixer=replace(layer.mixer, window=window)) if isinstance(layer.mixer, Attention) else layer
        for layer, window in zip(layers, windows, strict=True)
    )
