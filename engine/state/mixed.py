"""The mixed kind: recent tokens exact, old ones cold (mixed_policy.py's integers and a store's numbers side by side).

Uniform caches are this kind with other settings (cache_config.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from mixkv.engine.cache_config import CachePlan
from mixkv.engine.state.group import KindStats, LayerGroup, Order
from mixkv.engine.state.mixed_policy import PIECE, CachePolicy, Marks, Step
from mixkv.kernels import Backend, LayerFormat, cache_type
from mixkv.kernels.contract import KVStore, PagePool
from mixkv.models.batch import F32
from mixkv.models.layers import Attention


def policy_of(group: LayerGroup, plan: CachePlan, n_ctx: int, chunk: int) -> CachePolicy:
    """The policy of an empty sequence. A group that other layers read, too, takes a chunk in one piece: its hot tiles
    must all be there when those layers' turn comes."""
    return CachePolicy(
        n_ctx=n_ctx, sink_tokens=plan.sink_tokens, hot_window=plan.hot_window,
        rollback_reserve=plan.rollback_reserve, chunk=chunk, piece=chunk if group.shared else PIECE,
    )  # fmt: skip


def full_bytes(group: LayerGroup, plan: CachePlan, n_ctx: int, chunk: int) -> int:
    """Bytes of n_ctx tokens, at the fullest moment."""
    policy = policy_of(group, plan, n_ctx, chunk)
    cold = 0 if plan.hot_window is None else max(0, policy.cold_end(n_ctx) - plan.sink_tokens)
    rows = RowBytes.of(group.shape, (plan.format(i) for i in group.layers))
    return rows.total(min(n_ctx, plan.sink_tokens), min(n_ctx, policy.hot_tiles * 16), cold)


@dataclass(frozen=True)
class HotSnapshot:
    """The recent tokens as they were, exactly; the others do not change. Nobody writes to `store`, whose pages the ring
    shared then."""

    store: KVStore
    marks: Marks
    pages: dict[int, int]
    exact: bool
    nbytes: ClassVar[int] = 0


class MixedState:
    """See group.State. chunk: tokens to attend to at once (see CachePolicy); more may be begun at a time."""

    def __init__(
        self, group: LayerGroup, plan: CachePlan, backend: Backend, *, n_ctx: int, chunk: int,
        pool: PagePool | None = None,
    ) -> None:  # fmt: skip
        self.group, self.plan = group, plan
        self.formats = tuple(plan.format(i) for i in group.layers)
        self.policy = policy_of(group, plan, n_ctx, chunk)
        self.store = backend.KVStore(
            self.formats, **group.store_shape, n_ctx=n_ctx, sink_tokens=plan.sink_tokens,
            hot_tiles=self.policy.hot_tiles, pool=pool,
        )  # fmt: skip
        self._row_bytes = RowBytes.of(group.shape, self.formats)
        self._next: list[Step] = []  # those that there is memory for
        self._steps: list[Step] = []  # those begun
        self._written: dict[int, int] = {}  # layer -> where the tokens end that they have written there

    @property
    def n(self) -> int:
        return self.policy.n

    def reserve(self, n: int) -> None:
        steps = self.policy.steps(n)
        self.store.reserve(self.n, self.n + n, steps[0].cold_from, steps[-1].cold_to)
        self._next = steps

    def begin(self, n: int) -> None:
        self._steps, self._next = self._next, []
        assert len(self._steps) == 1 or not self.group.shared, "layers that others read take one piece at a time"

    def scores(self, spec: Attention, sinks: F32 | None) -> dict[str, Any]:
        """How scores are made, as the store is told."""
        return {"scale": spec.scale, "softcap": spec.softcap, "sinks": sinks}

    def attend(
        self, layer: int, q: F32, k: F32 | None, v: F32 | None, spec: Attention, sinks: F32 | None = None
    ) -> F32:
        steps, pos = self._steps, self.policy.n
        if k is None or v is None:
            hot_from = steps[0].hot_from
            return self.store.attend(layer, q, pos, hot_from, **self.scores(spec, sinks))
        if len(steps) == 1:
            return self._attend_piece(layer, steps[0], q, k, v, self.scores(spec, sinks))
        out = np.empty((len(q), q.shape[1], spec.head_dim_v), np.float32)
        for s in steps:
            at = slice(s.pos - pos, s.pos - pos + s.n)
            out[at] = self._attend_piece(layer, s, q[at], k[at], v[at], self.scores(spec, sinks))
        return out

    @property
    def in_one_piece(self) -> bool:
        """Whether the tokens begun are one piece, which `order` describes."""
        return len(self._steps) == 1

    def order(self, layer: int) -> Order:
        (step,) = self._steps
        self._written[layer] = step.pos + step.n
        return step.pos, step.hot_from, step.cold_from, step.cold_to

    def _attend_piece(self, layer: int, s: Step, q: F32, k: F32, v: F32, scores: dict[str, Any]) -> F32:
        self._written[layer] = s.pos + s.n
        return self.store.step(layer, q, k, v, s.pos, s.hot_from, s.cold_from, s.cold_to, **scores)

    def commit(self, keep: int | None = None) -> int:
        policy, total, steps = self.policy, self._row_bytes.total, self._steps
        assert steps and (keep is None or len(steps) == 1), "drafts come in one piece"
        policy.commit(steps[-1], keep)
        self._steps, self._written = [], {}
        return max(total(policy.sink_tokens, *policy.peak_tokens(s)) for s in steps)

    def most_drafted(self) -> int:
        return self.policy.chunk - 1

    def mend(self) -> bool:
        """Tokens before those begun stay as they were: but where so many were begun that they overwrote hot tokens,
        these are restored from their cold form, and count as degraded.

        Layers stand at different pieces. Where a hot token was overwritten it has its cold form, made by an earlier
        piece; the other layers get it too, from exact values, so that no tile is ever quantized twice.
        """
        policy, written = self.policy, self._written
        stop = max(map(policy.overwritten, written.values()), default=0)
        restored = stop > policy.marks.hot_start
        if restored:
            start, cold_from, marks = policy.marks.hot_start, policy.marks.quant_end, policy.restored(stop)
            for layer in range(len(self.formats)):
                lost = policy.overwritten(written[layer]) if layer in written else start
                self.store.quantize(layer, max(cold_from, lost), marks.quant_end)
                self.store.rehydrate(layer, start, lost)
            policy.marks = marks
        self._steps, self._written = [], {}
        return restored

    def reaches(self, n: int) -> bool:
        return 0 <= n <= self.n

    def truncates_exactly(self, n: int) -> bool:
        return self.reaches(n) and self.policy.truncates_exactly(n)

    def reserve_truncation(self, n: int) -> None:
        """Have the memory for the tokens that `truncate(n)` restores. OutOfMemoryError, and nothing has changed."""
        start, stop = copy.copy(self.policy).truncate(n)
        if start < stop:
            self.store.reserve(start, stop, 0, 0)

    def truncate(self, n: int) -> None:
        """See CachePolicy.truncate for when that is exact."""
        ahead = copy.copy(self.policy)
        start, stop = ahead.truncate(n)
        if start < stop:
            for layer in range(len(self.formats)):
                self.store.rehydrate(layer, start, stop)
        self.policy.marks = ahead.marks
        self.store.trim(n, ahead.marks.quant_end)

    def snapshot(self) -> HotSnapshot | None:
        if self.policy.window is None:
            return None
        ring = self.store.copy_ring(self.policy.marks.hot_start, self.n)
        return HotSnapshot(ring, self.policy.marks, ring.ring_pages(), self.policy.truncates_exactly(self.n))

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, HotSnapshot)
        marks = snapshot.marks
        self.store.take_ring(snapshot.store)
        self._steps, self._written, self.policy.marks = [], {}, marks
        self.store.trim(marks.n, marks.quant_end)

    def pages(self) -> dict[int, int]:
        return self.store.ring_pages()

    def clear(self) -> None:
        self.policy.clear()
        self.store.trim(0, 0)
        self._steps, self._written = [], {}

    def fork(self) -> MixedState:
        twin = copy.copy(self)
        twin.policy, twin.store = copy.copy(self.policy), self.store.copy()
        twin._steps, twin._written = [], {}
        return twin

    def stats(self) -> KindStats:
        p, rows = self.policy, self._row_bytes
        return KindStats(
            sink_tokens=p.sink_tokens,
            hot_tokens=p.hot_tokens,
            cold_tokens=p.cold_tokens,
            degraded_tokens=p.degraded_tokens,
            sink_bytes=p.sink_tokens * rows.hot,
            hot_bytes=p.hot_tokens * rows.hot,
            cold_bytes=p.cold_tokens * rows.cold,
            scale_bytes=p.cold_tokens * rows.scales,
            elements=p.n * rows.elements,
            fp16_bytes=2 * p.n * rows.elements,
        )


@dataclass(frozen=True)
class RowBytes:
    """Bytes of one token over some layers and their heads, K and V: hot, cold, the scales among them; its numbers."""

    hot: int
    cold: int
    scales: int
    elements: int

    @classmethod
    def of(cls, shape: tuple[object, ...], formats: Iterable[LayerFormat]) -> RowBytes:
        """shape: `Attention.kv_shape` of every layer."""
        heads, head_dim_k, head_dim_v = cast(tuple[int, int, int], shape)
        hot = cold = scales = elements = 0
        for f in formats:
            for hot_kind, kind, head_dim in ((f.hot_k, f.type_k, head_dim_k), (f.hot_v, f.type_v, head_dim_v)):
                hot += heads * cache_type(hot_kind).row_bytes(head_dim)
                cold += heads * cache_type(kind).row_bytes(head_dim)
                scales += heads * cache_type(kind).row_scale_bytes(head_dim)
                elements += heads * head_dim
        return cls(hot, cold, scales, elements)

    def total(self, sinks: int, hot: int, cold: int) -> int:
        return (sinks + hot) * self.hot + cold * self.cold
