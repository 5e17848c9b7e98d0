"""ModelConfig: the hyper-parameters of a decoder, and what reads them from GGUF metadata, checked before anything is
built on them.

Keys are `{architecture}.{key}`; defaults are those of llama.cpp where a file may leave a key out (docs/metadata.md has
the table). What all families have is read here; which layers there are each family reads itself (`read_config` of its
class; registry.py finds that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import GGUFFile
from mixkv.models.layers import Attention, LayerSpec
from mixkv.models.rope import RopeConfig

MAX_LAYERS = 512
MAX_DIM = 1 << 20


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of one model: what its layers have in common, and each layer. Sizes are numbers of elements.

    norm: RMS norm or LayerNorm everywhere, with norm_eps. embedding_scale: factor on embeddings. Logits are multiplied
    by logit_scale, then capped, c tanh(x / c) with c = logit_softcap (0: not). n_unused: blocks behind the layers that
    the file has for other things, such as predicting several tokens at once. n_embd_per_layer: width of what each layer
    is told of a token beside the residual stream (0: nothing).
    """

    architecture: str
    name: str
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    norm: Literal["rms", "layer"] = "rms"
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    n_unused: int = 0
    n_embd_per_layer: int = 0

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def for_context(self, n_ctx: int) -> ModelConfig:
        """The model as it is in a run whose context is n_ctx: some rotate otherwise in a long one."""
        return replace(self, layers=tuple(_layer_for_context(layer, n_ctx) for layer in self.layers))

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The mixers of those layers that attend, in order."""
        return tuple(layer.mixer for layer in self.layers if isinstance(layer.mixer, Attention))


def _layer_for_context(layer: LayerSpec, n_ctx: int) -> LayerSpec:
    if not isinstance(layer.mixer, Attention) or layer.mixer.rope is None:
        return layer
    return replace(layer, mixer=replace(layer.mixer, rope=layer.mixer.rope.for_context(n_ctx)))


class Hyper:
    """Reads and checks the hyper-parameters of an open file. GGUFError names the key that is missing, out of range or
    contradictory.

    The constructor reads what every family has: architecture, name, n_ctx_train, n_layers, n_embd, n_vocab, norm_eps.
    """

    def __init__(self, gguf: GGUFFile, norm: Literal["rms", "layer"] = "rms") -> None:
        self.gguf, self.norm = gguf, norm
        self.architecture = gguf.str("general.architecture")
        self.name = gguf.str("general.name", "") or gguf.path.stem
        self.n_layers = self.size("block_count", most=MAX_LAYERS)
        self.n_unused = self.size("nextn_predict_layers", 0, least=0)
        if self.n_unused >= self.n_layers:
            raise self.fail("nextn_predict_layers", f"is {self.n_unused} of {self.n_layers} blocks")
        self.n_layers -= self.n_unused
        self.n_embd = self.size("embedding_length")
        eps = "attention.layer_norm_rms_epsilon" if norm == "rms" else "attention.layer_norm_epsilon"
        self.norm_eps = self.number(eps)
        if self.norm_eps < 0:
            raise self.fail(eps, f"is {self.norm_eps}, but must be a small positive number")
        if not gguf.bool(self.key("attention.causal"), True):
            raise GGUFError(
                f"{gguf.path}: {self.key('attention.causal')} is false: the model embeds text and cannot continue it; "
                "use one that generates"
            )
        if "token_embd.weight" not in gguf.tensors:
            raise GGUFError(f"{gguf.path}: tensor 'token_embd.weight' is missing; this file holds no whole model")
        self.n_vocab = gguf.tensors["token_embd.weight"].shape[0]
        self.n_ctx_train = self.size("context_length", most=1 << 31)

    def config(self, layers: Sequence[LayerSpec], **scalars: Any) -> ModelConfig:
        """The whole, with these layers; scalars: ModelConfig's fields that have defaults."""
        return ModelConfig(
            self.architecture, self.name, self.n_ctx_train, self.n_embd, self.n_vocab, self.norm_eps, tuple(layers),
            norm=self.norm, n_unused=self.n_unused, **scalars,
        )  # fmt: skip

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self.key(key) in self.gguf.metadata

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        return self.gguf.float(self.key(key), default)

    def key(self, key: str) -> str:
        """The key as it stands in the file."""
        return f"{self.architecture}.{key}"

    def fail(self, key: str, problem: str) -> GGUFError:
        """The error for one of the architecture's keys, to be raised."""
        return self.wrong(self.key(key), problem)

    def wrong(self, key: str, problem: str) -> GGUFError:
        """The error for a key as it stands in the file."""
        return GGUFError(f"{self.gguf.path}: {key} {problem}; the file is damaged or of another kind")

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_DIM) -> int:
        """A whole number in least to most."""
        value = self.gguf.uint(self.key(key), default)
        if not least <= value <= most:
            raise self.fail(key, f"is {value}, but must lie in {least} to {most}")
        return value

    def of_each_layer(self, key: str, default: int | None = None, *, least: int = 1) -> tuple[int, ...]:
        """A size of each layer, which files give as one number or as one for each."""
        length = self.gguf.metadata.length(self.key(key))
        if length is None:
            return (self.size(key, default, least=least),) * self.n_layers
        if length != self.n_layers + self.n_unused:
            raise self.fail(key, f"has {length} numbers for {self.n_layers + self.n_unused} layers")
        values = self.gguf.array(self.key(key), np.uint32, np.int32).astype(np.int64)[: self.n_layers]
        if values.min() < least or values.max() > MAX_DIM:
            wrong = values.min() if values.min() < least else values.max()
            raise self.fail(key, f"is {wrong} in one layer, but must lie in {least} to {MAX_DIM}")
        return tuple(int(v) for v in values)

    def of_every_layer(self, key: str, default: int | None = None) -> int:
        """A size that some files give once for each layer, which is fine as long as they agree."""
        values = sorted(set(self.of_each_layer(key, default)))
        if len(values) != 1:
            raise self.fail(key, f"differs from layer to layer ({values[:4]}), which is not supported")
        return values[0]

    def windows(self, *, period: int, default: int = 0, required: bool = False) -> tuple[int, ...]:
        """The window of each layer, 0 where it sees everything: `attention.sliding_window` in local layers.

        `attention.sliding_window_pattern` says which are local: one flag a layer, or a period n, of which the last of
        every n layers is global. period: that of a file without it. default: the window of a file without the key, 0
        for none at all.
        """
        key, pattern = "attention.sliding_window", "attention.sliding_window_pattern"
        if not required and not self.has(key) and not default:
            return (0,) * self.n_layers
        window = self.size(key, default or None, most=1 << 31)
        length = self.gguf.metadata.length(self.key(pattern))
        if length is not None:
            if length != self.n_layers:
                raise self.fail(pattern, f"has {length} flags for {self.n_layers} layers")
            local = self.gguf.array(self.key(pattern), np.bool_, np.uint8, np.uint32, np.int32) != 0
            return tuple(window if flag else 0 for flag in local)
        every = self.size(pattern, period)
        return tuple(0 if (i + 1) % every == 0 else window for i in range(self.n_layers))

    def rope(self, head_dim: int, *, interleaved: bool) -> RopeConfig:
        """The rotation that `rope.*` says."""
        return RopeConfig.read(self.gguf, self.architecture, head_dim, self.n_ctx_train, interleaved)

    def heads(self, n_kv_heads: int | None = None) -> tuple[int, int, int, int]:
        """(n_heads, n_kv_heads, head_dim_k, head_dim_v); n_kv_heads: None where all layers have as many."""
        n_heads = self.of_every_layer("attention.head_count")
        if n_kv_heads is None:
            n_kv_heads = self.of_every_layer("attention.head_count_kv", n_heads)
        if n_heads % n_kv_heads:
            raise self.fail("attention.head_count", f"{n_heads} is not a multiple of head_count_kv {n_kv_heads}")
        if self.n_embd % n_heads and self.key("attention.key_length") not in self.gguf.metadata:
            raise self.fail("embedding_length", f"{self.n_embd} is not a multiple of head_count {n_heads}")
        head_dim = self.size("attention.key_length", self.n_embd // n_heads, most=1024)
        return n_heads, n_kv_heads, head_dim, self.size("attention.value_length", head_dim, most=1024)
