"""KVCache: one sequence's cache, the policy's integers and the store's numbers side by side, and its statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mixkv.engine.cache import CachePolicy, Step
from mixkv.engine.cache_config import CachePlan
from mixkv.kernels import Backend, cache_type
from mixkv.kernels.contract import PagePool
from mixkv.kernels.errors import InputError
from mixkv.models.batch import F32, Run
from mixkv.models.config import ModelConfig


@dataclass(frozen=True)
class CacheStats:
    """Tokens and bytes of a cache, all layers together.

    Bytes are those of stored tokens; `scale_bytes` are part of `cold_bytes`. peak_bytes: the most there ever was, the
    moments inside a prompt's pieces included. fp16_bytes: what as many tokens take in a plain FP16 cache.
    degraded_tokens: tokens read as hot whose values were restored from the cold form.
    """

    n_tokens: int
    n_ctx: int
    sink_tokens: int
    hot_tokens: int
    cold_tokens: int
    degraded_tokens: int
    sink_bytes: int
    hot_bytes: int
    cold_bytes: int
    scale_bytes: int
    peak_bytes: int
    fp16_bytes: int
    bits_per_element: float

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tokens."""
        return self.sink_bytes + self.hot_bytes + self.cold_bytes


class KVCache:
    """The cache of one sequence. `n` tokens are stored; `begin` and `commit` add more; `truncate` takes some back.

    backend: that of the model whose keys it keeps. chunk: tokens to attend to at once (see CachePolicy); more may be
    begun at a time. pool: where its memory is from, with forks and other sequences; None: a pool of its own.
    """

    def __init__(
        self, model: ModelConfig, plan: CachePlan, backend: Backend, *, n_ctx: int, chunk: int,
        pool: PagePool | None = None,
    ) -> None:  # fmt: skip
        plan = plan.within(n_ctx)
        self.plan, self._model = plan, model
        self.pool = backend.page_pool() if pool is None else pool
        self._policy = CachePolicy(
            n_ctx=n_ctx,
            sink_tokens=plan.sink_tokens,
            hot_window=plan.hot_window,
            rollback_reserve=plan.rollback_reserve,
            chunk=chunk,
        )
        self.store = backend.KVStore(
            plan.layers,
            n_kv_heads=model.n_kv_heads,
            head_dim_k=model.head_dim_k,
            head_dim_v=model.head_dim_v,
            n_ctx=n_ctx,
            sink_tokens=plan.sink_tokens,
            hot_tiles=self._policy.hot_tiles,
            pool=self.pool,
        )
        self._row_bytes = RowBytes.of(model, plan)
        self._peak = 0
        self._steps: list[Step] = []  # those begun
        self._written: dict[int, int] = {}  # layer -> where the tokens end that they have written there

    @property
    def n(self) -> int:
        """Tokens stored."""
        return self._policy.n

    @property
    def policy(self) -> CachePolicy:
        """The integers; sessions read and set them."""
        return self._policy

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tokens."""
        return self.stats().nbytes

    @property
    def bits_per_element(self) -> float:
        """Average bits of a stored number."""
        return self.stats().bits_per_element

    @property
    def peak_nbytes(self) -> int:
        """The most bytes of stored tokens there ever were."""
        return self._peak

    def begin(self, n: int) -> int:
        """Prepare for n more tokens and return the first one's position; each layer then calls `attend` once, and
        `commit` ends it, or `abandon`. Nothing has changed after a ContextFullError, if the tokens do not fit, or an
        OutOfMemoryError, if the pool has no memory for them."""
        self.mend()
        steps = self._policy.steps(n)
        self.store.reserve(self.n, self.n + n, steps[0].cold_from, steps[-1].cold_to)
        self._steps = steps
        return self.n

    def attend(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        """Store a layer's k, v (n, n_kv_heads, .) of the tokens begun, and return what their q reads:
        (n, n_heads, head_dim_v)."""
        steps, pos = self._steps, self.n
        if len(steps) == 1:
            return self._attend_piece(layer, steps[0], q, k, v)
        out = np.empty((len(q), q.shape[1], self._model.head_dim_v), np.float32)
        for s in steps:
            at = slice(s.pos - pos, s.pos - pos + s.n)
            out[at] = self._attend_piece(layer, s, q[at], k[at], v[at])
        return out

    def _attend_piece(self, layer: int, s: Step, q: F32, k: F32, v: F32) -> F32:
        self._written[layer] = s.pos + s.n
        scale = self._model.attention_scale
        return self.store.step(layer, q, k, v, s.pos, s.hot_from, s.cold_from, s.cold_to, scale=scale)

    def commit(self, keep: int | None = None) -> None:
        """The tokens begun are stored; or the first `keep` of them, where the rest was a draft that was rejected."""
        policy, total, steps = self._policy, self._row_bytes.total, self._steps
        assert steps and (keep is None or len(steps) == 1), "drafts come in one piece"
        policy.commit(steps[-1], keep)
        self._steps, self._written = [], {}
        self._peak = max(self._peak, *(total(policy.sink_tokens, *policy.peak_tokens(s)) for s in steps))

    def abandon(self) -> None:
        """Give the tokens begun up. Those before stay as they were: but where so many were begun that they overwrote
        hot tokens, these are restored from their cold form, and count as degraded."""
        self.mend()

    def most_drafted(self) -> int:
        """Tokens that may be begun behind the next one and left out of `commit`."""
        policy = self._policy
        return max(0, min(policy.most_taken_back, policy.chunk - 1, policy.n_ctx - policy.n - 1))

    def mend(self) -> None:
        """Make the tokens stored before an unfinished step whole again. May itself be interrupted, and called again.

        For those who read the store itself; the methods here call it. Layers stand at different pieces. Where a hot
        token was overwritten it has its cold form, made by an earlier piece; the other layers get it too, from exact
        values, so that no tile is ever quantized twice.
        """
        policy, written = self._policy, self._written
        stop = max(map(policy.overwritten, written.values()), default=0)
        if stop > policy.marks.hot_start:
            start, cold_from, marks = policy.marks.hot_start, policy.marks.quant_end, policy.restored(stop)
            for layer in range(len(self.plan.layers)):
                lost = policy.overwritten(written[layer]) if layer in written else start
                self.store.quantize(layer, max(cold_from, lost), marks.quant_end)
                self.store.rehydrate(layer, start, lost)
            policy.marks = marks
            self._peak = max(self._peak, self.nbytes)
        self._steps, self._written = [], {}

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens. See CachePolicy.truncate for when that is exact; where it is not, and no
        memory is left to restore tokens in, it is an OutOfMemoryError, and nothing has changed."""
        if not 0 <= n <= self.n:
            raise InputError(f"cannot truncate a cache of {self.n} tokens to {n}")
        self.mend()
        policy = copy.copy(self._policy)
        start, stop = policy.truncate(n)
        self.store.reserve(start, stop, 0, 0)
        self._policy = policy
        if start < stop:
            for layer in range(len(self.plan.layers)):
                self.store.rehydrate(layer, start, stop)
        self.store.trim(n, policy.marks.quant_end)

    def clear(self) -> None:
        """Forget everything, the peak included."""
        self._policy.clear()
        self.store.trim(0, 0)
        self._peak, self._steps, self._written = 0, [], {}

    def fork(self) -> KVCache:
        """The same sequence once more, to go on by itself. Its memory is shared until one of the two writes to it."""
        self.mend()
        twin = copy.copy(self)
        twin._policy, twin.store = copy.copy(self._policy), self.store.copy()
        twin._steps, twin._written = [], {}
        return twin

    def stats(self) -> CacheStats:
        """Tokens and bytes now."""
        p, rows = self._policy, self._row_bytes
        total = rows.total(p.sink_tokens, p.hot_tokens, p.cold_tokens)
        return CacheStats(
            n_tokens=p.n,
            n_ctx=p.n_ctx,
            sink_tokens=p.sink_tokens,
            hot_tokens=p.hot_tokens,
            cold_tokens=p.cold_tokens,
            degraded_tokens=p.degraded_tokens,
            sink_bytes=p.sink_tokens * rows.hot,
            hot_bytes=p.hot_tokens * rows.hot,
            cold_bytes=p.cold_tokens * rows.cold,
            scale_bytes=p.cold_tokens * rows.scales,
            peak_bytes=self._peak,
            fp16_bytes=p.n * rows.elements * 2,
            bits_per_element=8 * total / (p.n * rows.elements) if p.n else 0.0,
        )


class BatchStates:
    """The caches of a batch's sequences, each of which has begun as many tokens as its run has (models/batch.py)."""

    def __init__(self, caches: Iterable[KVCache], runs: Iterable[Run]) -> None:
        self._parts = list(zip(caches, runs, strict=True))

    def attend(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        """See models/batch.py."""
        if len(self._parts) == 1:
            return self._parts[0][0].attend(layer, q, k, v)
        outs = [
            cache.attend(layer, q[r.start : r.stop], k[r.start : r.stop], v[r.start : r.stop])
            for cache, r in self._parts
        ]
        return np.concatenate(outs)


@dataclass(frozen=True)
class RowBytes:
    """Bytes of one token over all layers and heads, K and V: hot, cold, the scales among them; and its numbers."""

    hot: int
    cold: int
    scales: int
    elements: int

    @classmethod
    def of(cls, model: ModelConfig, plan: CachePlan) -> RowBytes:
        hot = cold = scales = 0
        for f in plan.layers:
            for hot_kind, kind, head_dim in (
                (f.hot_k, f.type_k, model.head_dim_k),
                (f.hot_v, f.type_v, model.head_dim_v),
            ):
                hot += model.n_kv_heads * cache_type(hot_kind).row_bytes(head_dim)
                cold += model.n_kv_heads * cache_type(kind).row_bytes(head_dim)
                scales += model.n_kv_heads * cache_type(kind).row_scale_bytes(head_dim)
        return cls(hot, cold, scales, len(plan.layers) * model.n_kv_heads * (model.head_dim_k + model.head_dim_v))

    def total(self, sinks: int, hot: int, cold: int) -> int:
        return (sinks + hot) * self.hot + cold * self.cold
