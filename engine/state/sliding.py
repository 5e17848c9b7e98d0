"""The sliding kind: a ring of the window in FP16 or float32, no cold tier, no sinks (sliding_policy.py's integers)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mixkv.engine.cache_config import CachePlan
from mixkv.engine.state.group import KindStats, LayerGroup, Order
from mixkv.engine.state.mixed import RowBytes
from mixkv.engine.state.sliding_policy import RingMarks, SlidingPolicy
from mixkv.kernels import TILE, Backend
from mixkv.kernels.contract import KVStore, PagePool
from mixkv.models.batch import F32
from mixkv.models.layers import Attention


def full_bytes(group: LayerGroup, plan: CachePlan, n_ctx: int, chunk: int) -> int:
    """Bytes of n_ctx tokens: of the ring, where that is shorter."""
    policy = SlidingPolicy(n_ctx=n_ctx, window=group.window, chunk=chunk)
    rows = RowBytes.of(group.shape, (plan.format(i) for i in group.layers))
    return rows.hot * min(n_ctx, policy.tiles * TILE)


@dataclass(frozen=True)
class RingSnapshot:
    """What the window needs of a ring as it was; nobody writes to `store`, whose pages the ring shared then."""

    store: KVStore
    marks: RingMarks
    pages: dict[int, int]
    nbytes: ClassVar[int] = 0
    exact: ClassVar[bool] = True


class SlidingState:
    """See group.State. chunk: tokens that may be begun at a time."""

    def __init__(
        self, group: LayerGroup, plan: CachePlan, backend: Backend, *, n_ctx: int, chunk: int,
        pool: PagePool | None = None,
    ) -> None:  # fmt: skip
        self.group = group
        self.formats = tuple(plan.format(i) for i in group.layers)
        self.policy = SlidingPolicy(n_ctx=n_ctx, window=group.window, chunk=chunk)
        self.store = backend.KVStore(
            self.formats, **group.store_shape, n_ctx=n_ctx, sink_tokens=0, hot_tiles=self.policy.tiles, pool=pool
        )
        self._row_bytes = RowBytes.of(group.shape, self.formats)
        self._begun = 0
        self._hot_from = np.zeros(0, np.int64)  # everything is read in the hot form

    @property
    def n(self) -> int:
        return self.policy.n

    def reserve(self, n: int) -> None:
        self.store.reserve(self.n, self.n + n, 0, 0)

    in_one_piece = True

    def order(self, layer: int) -> Order:
        return self.n, self._hot_from, 0, 0

    def begin(self, n: int) -> None:
        assert 0 < n <= self.policy.chunk, "a ring has room for its window and one chunk"
        if len(self._hot_from) != n:
            self._hot_from = np.zeros(n, np.int64)
        self._begun = n

    def scores(self, spec: Attention, sinks: F32 | None) -> dict[str, Any]:
        """How scores are made, as the store is told."""
        return {"scale": spec.scale, "softcap": spec.softcap, "window": self.group.window, "sinks": sinks}

    def attend(
        self, layer: int, q: F32, k: F32 | None, v: F32 | None, spec: Attention, sinks: F32 | None = None
    ) -> F32:
        pos, hot_from, scores = self.policy.n, self._hot_from, self.scores(spec, sinks)
        if k is None or v is None:
            return self.store.attend(layer, q, pos, hot_from, **scores)
        return self.store.step(layer, q, k, v, pos, hot_from, 0, 0, **scores)

    def commit(self, keep: int | None = None) -> int:
        before, end = self.policy.held_tokens, self.n + self._begun
        most = max(before, end - self.policy.oldest_after(end))
        self.policy.commit(self._begun, keep)
        self._begun = 0
        return most * self._row_bytes.hot

    def most_drafted(self) -> int:
        return self.policy.chunk - 1

    def mend(self) -> bool:
        """What was begun overwrote nothing that is still read; but what it did overwrite is gone."""
        if self._begun:
            self.policy.marks = RingMarks(self.n, self.policy.oldest_after(self.n + self._begun))
            self._begun = 0
        return False

    def reaches(self, n: int) -> bool:
        return self.policy.reaches(n)

    def truncates_exactly(self, n: int) -> bool:
        return self.policy.reaches(n)

    def truncate(self, n: int) -> None:
        self.policy.truncate(n)

    def snapshot(self) -> RingSnapshot:
        marks = self.policy.needed()
        ring = self.store.copy_ring(marks.oldest, marks.n)
        return RingSnapshot(ring, marks, ring.ring_pages())

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, RingSnapshot)
        self.store.take_ring(snapshot.store)
        self._begun, self.policy.marks = 0, snapshot.marks

    def pages(self) -> dict[int, int]:
        return self.store.ring_pages()

    def clear(self) -> None:
        self.policy.clear()
        self.store.trim(0, 0)
        self._begun = 0

    def fork(self) -> SlidingState:
        twin = copy.copy(self)
        twin.policy, twin.store, twin._begun = copy.copy(self.policy), self.store.copy(), 0
        return twin

    def stats(self) -> KindStats:
        held, rows = self.policy.held_tokens, self._row_bytes
        return KindStats(
            window_bytes=held * rows.hot, elements=held * rows.elements, fp16_bytes=2 * held * rows.elements
        )
