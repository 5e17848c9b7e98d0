"""The model under test: loaded once, with a fresh sequence for each cache that is measured on it."""

from __future__ import annotations

from pathlib import Path

from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.kv import KVCache
from mixkv.engine.kv_plan import plan_cache
from mixkv.engine.llm import LLM, demo_model, load
from mixkv.engine.sequence import Sequence
from mixkv.kernels import ops

DENSE_UP_TO = 64 << 20
"""Bytes of a model file whose weights the reference kernels hold as float32: minutes instead of hours."""


def load_subject(path: Path | None, *, n_ctx: int, n_batch: int, n_threads: int, exact: bool) -> LLM:
    """`load` as an evaluation wants it; None is the demo model. Raises what `load` raises."""
    file = demo_model() if path is None else path
    small = file.is_file() and file.stat().st_size <= DENSE_UP_TO
    return load(
        file, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, exact=exact, dense=small and ops.name == "reference"
    )


def fresh_sequence(llm: LLM, config: KVCacheConfig, n_ctx: int) -> Sequence:
    """An empty sequence of `llm`'s model whose cache is `config`; weights are shared, `llm`'s own sequence stays."""
    own = llm._sequence
    n_batch = min(own.n_batch, n_ctx)
    cache = KVCache(llm.config, plan_cache(llm._gguf, config), n_ctx=n_ctx, chunk=n_batch)
    return Sequence(own.model, cache, n_batch=n_batch, n_threads=own.n_threads)


def restart(sequence: Sequence) -> None:
    """Forget every token, the record of the peak included."""
    sequence.truncate(0)
    sequence.cache.clear()
