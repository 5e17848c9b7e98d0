"""One layer of the cache in NumPy: its rows, and which positions they hold (see store.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.formats import TILE, LayerFormat, cache_type
from mixkv.kernels.store_checks import require
from mixkv.kernels.store_pages import Area, PagePool

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """How K or V of one layer is written."""

    hot: str
    cold: str
    rotate: bool
    q4_scale: str
    head_dim: int

    @property
    def width(self) -> int:
        """Bytes of a cold row."""
        return cache_type(self.cold).row_bytes(self.head_dim)

    @property
    def dtype(self) -> Any:
        """Of hot rows."""
        return np.float32 if self.hot == "f32" else np.float16


class Layer:
    """K and V of one layer. widths: numbers of a row of each, 0 of a V that is part of K. first: the position S after
    the sinks. one_form: the ring's bytes are the cold rows."""

    def __init__(
        self, f: LayerFormat, pool: PagePool, *, heads: int, widths: tuple[int, int], sinks: int, n_ctx: int,
        hot_tiles: int,
    ) -> None:  # fmt: skip
        hot_rows, cold_rows = hot_tiles * TILE, -(-max(0, n_ctx - sinks) // TILE) * TILE
        self.pool, self.first, self.hot_tiles = pool, sinks, hot_tiles
        alike = f.type_k == f.hot_k and (f.type_v == f.hot_v or not widths[1])
        self.one_form = alike and hot_rows >= cold_rows
        self.sides = (
            Side(f.hot_k, f.type_k, f.rotate_k, f.q4_scale, widths[0]),
            Side(f.hot_v, f.type_v, f.rotate_v and widths[1] > 0, f.q4_scale, widths[1]),
        )

        def area(rows: int, kinds: tuple[str, str], cold: bool) -> Area:
            return Area(pool, rows, heads=heads, kinds=kinds, head_dims=widths, as_bytes=cold)

        self.sinks = area(min(sinks, n_ctx), (f.hot_k, f.hot_v), False)
        self.ring = area(hot_rows, (f.hot_k, f.hot_v), False)
        self.cold = self.ring if self.one_form else area(cold_rows, (f.type_k, f.type_v), True)

    def copy(self) -> Layer:
        """Another layer with the same contents, which shares all pages."""
        twin = object.__new__(Layer)
        twin.__dict__.update(self.__dict__)
        twin.sinks, twin.ring = self.sinks.copy(), self.ring.copy()
        twin.cold = twin.ring if self.one_form else self.cold.copy()
        return twin

    def ring_index(self, start: int, stop: int) -> I64:
        """Ring rows of positions [start, stop), all at or past S."""
        j = np.arange(start, stop) - self.first
        return j // TILE % self.hot_tiles * TILE + j % TILE

    def hot_at(self, start: int, stop: int) -> tuple[I64, I64]:
        """Sink rows and ring rows of positions [start, stop)."""
        s = self.first
        return np.arange(min(start, s), min(stop, s)), self.ring_index(max(start, s), max(stop, s))

    def hot_rows(self, start: int, stop: int) -> list[tuple[Area, I64]]:
        """What `PagePool.reserve` takes, to write these positions in the hot form."""
        return list(zip((self.sinks, self.ring), self.hot_at(start, max(start, stop)), strict=True))

    def cold_rows(self, start: int, stop: int) -> list[tuple[Area, I64]]:
        """The same for the cold form; where there is one form, writing the hot one is all."""
        return [] if self.one_form else [(self.cold, np.arange(start - self.first, stop - self.first))]

    def check_ring(self, start: int, stop: int, what: str) -> None:
        """A longer run of positions than the ring has room for would overwrite its own beginning."""
        tiles = -(-max(0, stop - self.first) // TILE) - (max(start, self.first) - self.first) // TILE
        require(tiles <= self.hot_tiles, what, f"[{start}, {stop}) is more than a ring of {self.hot_tiles} tiles holds")

    def need_hot(self, start: int, stop: int, what: str) -> None:
        stop = max(start, stop)
        sink_at, ring_at = self.hot_at(start, stop)
        ok = not len(sink_at) or sink_at[-1] < self.sinks.n_rows
        if ok:
            there = np.concatenate([self.sinks.there[sink_at], self.ring.there[ring_at]])
            ok = bool((there == np.arange(start, stop) + 1).all())
        require(ok, what, f"positions [{start}, {stop}) are not all there in the hot form")

    def need_cold(self, start: int, stop: int, what: str) -> None:
        there = self.cold.there[start - self.first : max(start, stop) - self.first]
        ok = len(there) == max(0, stop - start) and bool((there == np.arange(start, max(start, stop)) + 1).all())
        require(ok, what, f"positions [{start}, {stop}) are not all there in the cold form")

    def hot(self, side: int, start: int, stop: int) -> NDArray[Any]:
        """Hot rows of positions that are there."""
        sink_at, ring_at = self.hot_at(start, stop)
        if not len(sink_at):
            return self.ring.get(side, ring_at)
        return np.concatenate([self.sinks.get(side, sink_at), self.ring.get(side, ring_at)])

    def cold_bytes(self, side: int, start: int, stop: int) -> U8:
        """Cold rows of positions that are there."""
        rows = self.cold.get(side, np.arange(start - self.first, stop - self.first))
        return np.ascontiguousarray(rows).view(np.uint8)

    def _add_hot(self, start: int, stop: int) -> None:
        """Positions [start, stop) are in their sink and ring rows from now on; what else their slots held is gone."""
        s, (sink_at, ring_at) = self.first, self.hot_at(start, stop)
        self.sinks.there[sink_at] = sink_at + 1
        j = np.arange(max(start, s), max(stop, s))
        tiles = np.unique((j - s) // TILE)
        slots, at = self.ring.there.reshape(-1, TILE), tiles % self.hot_tiles
        slots[at] *= (slots[at] - 1 - s) // TILE == tiles[:, None]
        self.ring.there[ring_at] = j + 1

    def put_hot(self, start: int, rows: Sequence[NDArray[Any]], what: str) -> None:
        """K and V rows for positions start ..., in the hot type or to be rounded to it."""
        stop = start + len(rows[0])
        self.check_ring(start, stop, what)
        self.pool.reserve(self.hot_rows(start, stop))
        self._add_hot(start, stop)
        sink_at, ring_at = self.hot_at(start, stop)
        for side, x in enumerate(rows):
            self.sinks.put(side, sink_at, x[: len(sink_at)])
            self.ring.put(side, ring_at, x[len(sink_at) :])

    def put_cold(self, start: int, rows: Sequence[U8]) -> None:
        """K and V bytes for positions start ...; not where there is one form."""
        at = np.arange(start - self.first, start - self.first + len(rows[0]))
        self.pool.reserve([(self.cold, at)])
        self.cold.there[at] = at + self.first + 1
        for side, x in enumerate(rows):
            self.cold.put(side, at, x)
