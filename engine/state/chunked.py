"""The chunked kind: a query reads the tokens of its own chunk alone (Llama 4), FP16 or float32, no cold tier, no sinks.

A chunk has a store of its own, in which its first token stands at position 0. A step that goes on in the next chunk is
cut at the border, and has stores for what lies behind it; the one before is held until the step's tokens are stored, so
that a step that is given up costs nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.cache_config import CachePlan
from mixkv.engine.state.group import KindStats, LayerGroup, Order
from mixkv.engine.state.mixed import RowBytes
from mixkv.kernels import TILE, Backend
from mixkv.kernels.contract import KVStore, PagePool
from mixkv.models.batch import F32
from mixkv.models.layers import Attention


def full_bytes(group: LayerGroup, plan: CachePlan, n_ctx: int, chunk: int) -> int:
    """Bytes of n_ctx tokens, at the fullest moment: when a step goes on in the next chunk."""
    rows = RowBytes.of(group.shape, (plan.format(i) for i in group.layers))
    return rows.hot * min(n_ctx, group.window + chunk)


@dataclass(frozen=True)
class ChunkMarks:
    """What is stored of n tokens: positions [start, n), the beginning of a chunk; where start is n, none yet."""

    n: int = 0
    start: int = 0


@dataclass(frozen=True)
class ChunkSnapshot:
    """A chunk as it was; nobody writes to `store`, whose pages the chunk's own store shared then."""

    store: KVStore
    marks: ChunkMarks
    pages: dict[int, int]
    nbytes: ClassVar[int] = 0
    exact: ClassVar[bool] = True


@dataclass(frozen=True)
class Piece:
    """Tokens of a step that lie in one chunk: positions pos, pos + 1, ... for each of hot_from, of the chunk at
    start."""

    store: KVStore
    start: int
    pos: int
    hot_from: NDArray[np.int64]

    @property
    def order(self) -> Order:
        return self.pos - self.start, self.hot_from, 0, 0


class ChunkedState:
    """See group.State. chunk: tokens that may be begun at a time; the group's `window` is what a query reads."""

    def __init__(
        self, group: LayerGroup, plan: CachePlan, backend: Backend, *, n_ctx: int, chunk: int,
        pool: PagePool | None = None,
    ) -> None:  # fmt: skip
        self.group, self._most = group, chunk
        self.formats = tuple(plan.format(i) for i in group.layers)
        longest = min(group.window, n_ctx)
        self._new_store = partial(
            backend.KVStore, self.formats, **group.store_shape, n_ctx=longest, sink_tokens=0,
            hot_tiles=-(-longest // TILE), pool=backend.page_pool() if pool is None else pool,
        )  # fmt: skip
        self._held: tuple[KVStore, ChunkMarks] = self._new_store(), ChunkMarks()
        self._row_bytes = RowBytes.of(group.shape, self.formats)
        self._next: list[Piece] = []  # those that there is memory for
        self._pieces: list[Piece] = []  # those begun

    @property
    def n(self) -> int:
        return self.marks.n

    @property
    def marks(self) -> ChunkMarks:
        """What is stored."""
        return self._held[1]

    @marks.setter
    def marks(self, marks: ChunkMarks) -> None:
        self._held = self._held[0], marks

    @property
    def store(self) -> KVStore:
        """Of the tokens begun, if they are one piece; else of the newest chunk."""
        return self._pieces[0].store if len(self._pieces) == 1 else self._held[0]

    def reserve(self, n: int) -> None:
        (store, marks), pieces = self._held, list[Piece]()
        pos, end, start = marks.n, marks.n + n, marks.start
        while pos < end:
            if pos == start + self.group.window:
                start, store = pos, self._new_store()
            stop = min(end, start + self.group.window)
            store.reserve(pos - start, stop - start, 0, 0)
            pieces.append(Piece(store, start, pos, np.zeros(stop - pos, np.int64)))
            pos = stop
        self._next = pieces

    def begin(self, n: int) -> None:
        self._pieces, self._next = self._next, []

    @property
    def in_one_piece(self) -> bool:
        """Whether the tokens begun are one piece, which `order` describes."""
        return len(self._pieces) == 1

    def order(self, layer: int) -> Order:
        return self._pieces[0].order

    def scores(self, spec: Attention, sinks: F32 | None) -> dict[str, Any]:
        """How scores are made, as the store is told."""
        return {"scale": spec.scale, "softcap": spec.softcap, "sinks": sinks}

    def attend(
        self, layer: int, q: F32, k: F32 | None, v: F32 | None, spec: Attention, sinks: F32 | None = None
    ) -> F32:
        scores, outs, at = self.scores(spec, sinks), list[F32](), 0
        for piece in self._pieces:
            mine = slice(at, at + len(piece.hot_from))
            at = mine.stop
            if k is None or v is None:
                outs.append(piece.store.attend(layer, q[mine], *piece.order[:2], **scores))
            else:
                outs.append(piece.store.step(layer, q[mine], k[mine], v[mine], *piece.order, **scores))
        return np.concatenate(outs) if len(outs) > 1 else outs[0]

    def commit(self, keep: int | None = None) -> int:
        store, marks = self._held
        begun = sum(len(piece.hot_from) for piece in self._pieces)
        end, start, held = marks.n + (begun if keep is None else keep), marks.start, marks.n - marks.start
        for piece in self._pieces:
            if piece.pos < end:
                store, start = piece.store, piece.start
        self._held = store, ChunkMarks(end, start)  # in one: an interrupt leaves both as they were, or as they are now
        self._pieces = []
        return (held + begun) * self._row_bytes.hot

    def most_drafted(self) -> int:
        return self._most - 1

    def mend(self) -> bool:
        """What was begun lies behind what is stored, or in stores of its own."""
        self._pieces = []
        return False

    def reaches(self, n: int) -> bool:
        """Back to the beginning of the chunk, whose first token reads nothing before it."""
        return n == 0 or self.marks.start <= n <= self.n

    def truncates_exactly(self, n: int) -> bool:
        return self.reaches(n)

    def truncate(self, n: int) -> None:
        assert self.reaches(n), "what is gone cannot be read again"
        start = self.marks.start if n else 0
        self.marks = ChunkMarks(n, start)
        self._held[0].trim(n - start, n - start)

    def snapshot(self) -> ChunkSnapshot:
        store = self._held[0].copy()
        return ChunkSnapshot(store, self.marks, store.ring_pages())

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, ChunkSnapshot)
        self._held, self._pieces = (snapshot.store.copy(), snapshot.marks), []

    def pages(self) -> dict[int, int]:
        return self._held[0].ring_pages()

    def clear(self) -> None:
        self._held[0].trim(0, 0)
        self.marks, self._pieces = ChunkMarks(), []

    def fork(self) -> ChunkedState:
        twin = copy.copy(self)
        twin._held, twin._next, twin._pieces = (self._held[0].copy(), self.marks), [], []
        return twin

    def stats(self) -> KindStats:
        held, rows = self.n - self.marks.start, self._row_bytes
        return KindStats(
            window_bytes=held * rows.hot, elements=held * rows.elements, fp16_bytes=2 * held * rows.elements
        )
