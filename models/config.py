"""ModelConfig: the hyper-parameters of a decoder, read from GGUF metadata and checked before anything is built on them.

Keys are `{architecture}.{key}`; defaults are those of llama.cpp where a file may leave a key out (docs/metadata.md has
the table).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf import GGUFFile
from mixkv.models.rope import RopeConfig

MAX_LAYERS = 512
MAX_DIM = 1 << 20


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of one model. Sizes are numbers of elements; `head_dim_k` is that of queries and keys."""

    architecture: str
    name: str
    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    n_vocab: int
    rms_eps: float
    rope: RopeConfig

    @property
    def attention_scale(self) -> float:
        """Factor on q.k, 1 / sqrt(head_dim)."""
        return self.head_dim_k**-0.5


def read_config(gguf: GGUFFile) -> ModelConfig:
    """Hyper-parameters of `gguf`; GGUFError names the key that is missing, out of range or contradictory."""
    arch = gguf.str("general.architecture")

    def fail(key: str, problem: str) -> GGUFError:
        return GGUFError(f"{gguf.path}: {arch}.{key} {problem}; the file is damaged or of another kind")

    def size(key: str, default: int | None = None, *, least: int = 1, most: int = MAX_DIM) -> int:
        value = gguf.uint(f"{arch}.{key}", default)
        if not least <= value <= most:
            raise fail(key, f"is {value}, but must lie in {least} to {most}")
        return value

    def of_every_layer(key: str, default: int | None = None) -> int:
        """A size that some files give once for each layer, which is fine as long as they agree."""
        length = gguf.metadata.length(f"{arch}.{key}")
        if length is None:
            return size(key, default)
        if length != n_layers:
            raise fail(key, f"has {length} numbers for {n_layers} layers")
        values = sorted(set(gguf.array(f"{arch}.{key}", np.uint32, np.int32).tolist()))
        if len(values) != 1:
            raise fail(key, f"differs from layer to layer ({values[:4]}), which is not supported")
        if not 1 <= values[0] <= MAX_DIM:
            raise fail(key, f"is {values[0]}, but must lie in 1 to {MAX_DIM}")
        return int(values[0])

    n_layers = size("block_count", most=MAX_LAYERS)
    n_embd = size("embedding_length")
    n_heads = of_every_layer("attention.head_count")
    n_kv_heads = of_every_layer("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads:
        raise fail("attention.head_count", f"{n_heads} is not a multiple of head_count_kv {n_kv_heads}")
    if n_embd % n_heads and f"{arch}.attention.key_length" not in gguf.metadata:
        raise fail("embedding_length", f"{n_embd} is not a multiple of head_count {n_heads}")
    head_dim = size("attention.key_length", n_embd // n_heads, most=1024)
    rms_eps = gguf.float(f"{arch}.attention.layer_norm_rms_epsilon")
    if not (math.isfinite(rms_eps) and rms_eps >= 0):
        raise fail("attention.layer_norm_rms_epsilon", f"is {rms_eps}, but must be a small positive number")
    if gguf.uint(f"{arch}.expert_count", 0):
        raise fail("expert_count", "is not 0: mixture-of-experts models are not supported")
    if not gguf.bool(f"{arch}.attention.causal", True):
        raise GGUFError(
            f"{gguf.path}: {arch}.attention.causal is false: the model embeds text and cannot continue it; "
            "use one that generates"
        )
    if "token_embd.weight" not in gguf.tensors:
        raise GGUFError(f"{gguf.path}: tensor 'token_embd.weight' is missing; this file holds no whole model")
    n_ctx_train = size("context_length", most=1 << 31)
    return ModelConfig(
        architecture=arch,
        name=gguf.str("general.name", "") or gguf.path.stem,
        n_ctx_train=n_ctx_train,
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=of_every_layer("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim_k=head_dim,
        head_dim_v=size("attention.value_length", head_dim, most=1024),
        n_vocab=gguf.tensors["token_embd.weight"].shape[0],
        rms_eps=rms_eps,
        rope=RopeConfig.read(gguf, arch, head_dim, n_ctx_train),
    )
