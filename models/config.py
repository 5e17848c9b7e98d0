"""ModelConfig: the hyper-parameters of a decoder, and what reads them from GGUF metadata, checked before anything is
built on them.

Keys are `{architecture}.{key}`; defaults are those of llama.cpp where a file may leave a key out (docs/metadata.md has
the table). What all families have is read here; which layers there are each family reads itself (`read_config` of its
class; registry.py finds that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import GGUFFile
from mixkv.models.layers import Attention, LayerSpec

MAX_LAYERS = 512
MAX_DIM = 1 << 20


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of one model: what its layers have in common, and each layer. Sizes are numbers of elements."""

    architecture: str
    name: str
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    rms_eps: float
    layers: tuple[LayerSpec, ...]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The mixers of those layers that attend, in order."""
        return tuple(layer.mixer for layer in self.layers if isinstance(layer.mixer, Attention))


class Hyper:
    """Reads and checks the hyper-parameters of an open file. GGUFError names the key that is missing, out of range or
    contradictory.

    The constructor reads what every family has: architecture, name, n_ctx_train, n_layers, n_embd, n_vocab, rms_eps.
    """

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        self.architecture = gguf.str("general.architecture")
        self.name = gguf.str("general.name", "") or gguf.path.stem
        self.n_layers = self.size("block_count", most=MAX_LAYERS)
        self.n_embd = self.size("embedding_length")
        eps = "attention.layer_norm_rms_epsilon"
        self.rms_eps = gguf.float(self.key(eps))
        if not (math.isfinite(self.rms_eps) and self.rms_eps >= 0):
            raise self.fail(
                "attention.layer_norm_rms_epsilon", f"is {self.rms_eps}, but must be a small positive number"
            )
        if not gguf.bool(self.key("attention.causal"), True):
            raise GGUFError(
                f"{gguf.path}: {self.key('attention.causal')} is false: the model embeds text and cannot continue it; "
                "use one that generates"
            )
        if "token_embd.weight" not in gguf.tensors:
            raise GGUFError(f"{gguf.path}: tensor 'token_embd.weight' is missing; this file holds no whole model")
        self.n_vocab = gguf.tensors["token_embd.weight"].shape[0]
        self.n_ctx_train = self.size("context_length", most=1 << 31)

    def config(self, layers: tuple[LayerSpec, ...]) -> ModelConfig:
        """The whole, with these layers."""
        return ModelConfig(
            self.architecture, self.name, self.n_ctx_train, self.n_embd, self.n_vocab, self.rms_eps, layers
        )

    def key(self, key: str) -> str:
        """The key as it stands in the file."""
        return f"{self.architecture}.{key}"

    def fail(self, key: str, problem: str) -> GGUFError:
        """The error for a key, to be raised."""
        return GGUFError(f"{self.gguf.path}: {self.key(key)} {problem}; the file is damaged or of another kind")

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_DIM) -> int:
        """A whole number in least to most."""
        value = self.gguf.uint(self.key(key), default)
        if not least <= value <= most:
            raise self.fail(key, f"is {value}, but must lie in {least} to {most}")
        return value

    def of_every_layer(self, key: str, default: int | None = None) -> int:
        """A size that some files give once for each layer, which is fine as long as they agree."""
        length = self.gguf.metadata.length(self.key(key))
        if length is None:
            return self.size(key, default)
        if length != self.n_layers:
            raise self.fail(key, f"has {length} numbers for {self.n_layers} layers")
        values = sorted(set(self.gguf.array(self.key(key), np.uint32, np.int32).tolist()))
        if len(values) != 1:
            raise self.fail(key, f"differs from layer to layer ({values[:4]}), which is not supported")
        if not 1 <= values[0] <= MAX_DIM:
            raise self.fail(key, f"is {values[0]}, but must lie in 1 to {MAX_DIM}")
        return int(values[0])

    def heads(self) -> tuple[int, int, int, int]:
        """(n_heads, n_kv_heads, head_dim_k, head_dim_v), where all layers have the same."""
        n_heads = self.of_every_layer("attention.head_count")
        n_kv_heads = self.of_every_layer("attention.head_count_kv", n_heads)
        if n_heads % n_kv_heads:
            raise self.fail("attention.head_count", f"{n_heads} is not a multiple of head_count_kv {n_kv_heads}")
        if self.n_embd % n_heads and self.key("attention.key_length") not in self.gguf.metadata:
            raise self.fail("embedding_length", f"{self.n_embd} is not a multiple of head_count {n_heads}")
        head_dim = self.size("attention.key_length", self.n_embd // n_heads, most=1024)
        return n_heads, n_kv_heads, head_dim, self.size("attention.value_length", head_dim, most=1024)
