"""A small model whose layers keep different things, and caches for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_model import N_IDS, FakeModel, chunked, full, latent, recurrent, sliding

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Sequence
from mixkv.engine.state.batch import BatchStates
from mixkv.engine.state.cache import KVCache
from mixkv.models.batch import F32, Batch

N_CTX, CHUNK = 300, 24
ALL = (
    full(),
    sliding(20),
    recurrent(),
    full(kv_from=0),
    sliding(20),
    sliding(33, head_dim=32, n_kv_heads=4),
    full(1, 8),
)
MODELS = {
    "all": ALL,
    "windows": (sliding(20), full(), sliding(1, softcap=3.0), sliding(20, kv_from=0)),
    "recurrent": (recurrent(4), recurrent(4), full()),
    "chunks": (chunked(20), full(), chunked(50, softcap=3.0), chunked(20, kv_from=0), recurrent(4)),
    "latent": (latent(), latent(20, 12), sliding(20), chunked(7)),
    "one state": (recurrent(),),
}
IDS = np.random.default_rng(2).integers(0, N_IDS, N_CTX).tolist()
MIXED = {"mixed_kv_cache": True, "hot_window": 16, "sink_tokens": 4}


def cache_of(model: FakeModel, *, chunk: int = CHUNK, checkpoint_bytes: int = 1 << 20, **options: Any) -> KVCache:
    plan = CachePlan.of(KVCacheConfig(**options), model.config.layers)
    return KVCache(model.config, plan, model.backend, n_ctx=N_CTX, chunk=chunk, checkpoint_bytes=checkpoint_bytes)


def sequence_of(model: FakeModel, cache: KVCache) -> Sequence:
    return Sequence(Scheduler(model, n_batch=CHUNK), cache)


def run(model: FakeModel, parts: list[tuple[KVCache, list[int]]]) -> list[F32]:
    """All rows of tokens that the caches begin together; the caller commits."""
    batch = Batch.of([(ids, cache.begin(len(ids)), len(ids)) for cache, ids in parts])
    rows = model.forward(batch, BatchStates([cache for cache, _ in parts], batch.runs))
    return [rows[r.start : r.stop] for r in batch.runs]


def feed(model: FakeModel, cache: KVCache, ids: list[int], cut: int = CHUNK) -> F32:
    rows = []
    for i in range(0, len(ids), cut):
        rows += run(model, [(cache, ids[i : i + cut])])
        cache.commit()
    return np.concatenate(rows)
