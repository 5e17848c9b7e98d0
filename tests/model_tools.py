"""Small models and sequences for the tests of the cache and the engine, without the LLM around them.

`random_llama` writes a complete llama of any shape to a file; `sequence` puts a cache of given settings under a loaded
model. Weights are random but scaled as trained ones are, so that logits and attention have ordinary sizes.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf_tools import spm_vocabulary, write_gguf
from numpy.typing import NDArray

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Sequence
from mixkv.engine.state.cache import KVCache
from mixkv.kernels import default_backend
from mixkv.kernels.contract import PagePool
from mixkv.models.decoder import Decoder
from mixkv.models.gguf import open_gguf
from mixkv.models.registry import load_model

F32 = NDArray[np.float32]


def random_llama(
    path: Path, *, head_dim: int = 64, n_heads: int = 4, n_kv_heads: int = 2, n_layers: int = 2, n_ctx: int = 512,
    n_embd: int = 64, n_ff: int = 96, seed: int = 0,
) -> Path:  # fmt: skip
    """A random llama in F32 with the small SPM vocabulary of gguf_tools; head_dim is free of n_embd."""
    vocabulary = spm_vocabulary()
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": n_layers,
        "llama.context_length": n_ctx,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": n_kv_heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head_dim,
        **vocabulary,
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, n_embd), "output_norm.weight": (n_embd,)}
    for i in range(n_layers):
        for name, shape in {
            "attn_norm": (n_embd,), "ffn_norm": (n_embd,), "attn_q": (n_heads * head_dim, n_embd),
            "attn_k": (n_kv_heads * head_dim, n_embd), "attn_v": (n_kv_heads * head_dim, n_embd),
            "attn_output": (n_embd, n_heads * head_dim), "ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd),
            "ffn_down": (n_embd, n_ff),
        }.items():  # fmt: skip
            shapes[f"blk.{i}.{name}.weight"] = shape
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        # queries and keys twice as large: scores spread enough that attention picks
        gain = 2 if "attn_q" in name or "attn_k" in name else 1
        tensors[name] = 1 + 0.1 * noise if len(shape) == 1 else gain * noise / np.sqrt(np.float32(shape[-1]))
    return write_gguf(path, metadata, tensors)


def load_exact(path: Path) -> Decoder:
    """The model with float32 activations and weights ready, whatever the backend."""
    return load_model(open_gguf(path), default_backend(), exact=True, dense=True)


def sequence(
    model: Decoder, *, n_ctx: int = 512, n_batch: int = 512, piece: int | None = None, pool: PagePool | None = None,
    **settings: Any,
) -> Sequence:  # fmt: skip
    """An empty sequence; settings are those of KVCacheConfig. piece: the cache's, if not by n_batch."""
    plan = CachePlan.of(KVCacheConfig(**settings), model.config.layers)
    cache = KVCache(model.config, plan, model.backend, n_ctx=n_ctx, chunk=piece or n_batch, pool=pool)
    return Sequence(Scheduler(model, n_batch=n_batch), cache)


def logits_of(model: Decoder, ids: Ids[int], cuts: Ids[int] = (), **settings: Any) -> F32:
    """Logits (n, n_vocab) of every token, fed in pieces cut at `cuts` to a fresh sequence."""
    seq = sequence(model, **settings)
    return np.concatenate([seq.feed(ids[a:b], all_rows=True) for a, b in pairwise([0, *cuts, len(ids)])])


def random_ids(model: Decoder, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, model.config.n_vocab, n).tolist()
