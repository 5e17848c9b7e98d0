"""One layer of the cache in NumPy: its rows, and which positions they hold (see store.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.formats import TILE, LayerFormat, cache_type
from mixkv.kernels.store_checks import require

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


class Side:
    """K or V of one layer: rows of sinks, ring and cold area. one_form: the ring's bytes are the cold rows."""

    def __init__(
        self, hot: str, cold: str, rotate: bool, q4_scale: str, *, heads: int, head_dim: int, sinks: int,
        hot_rows: int, cold_rows: int, one_form: bool,
    ) -> None:  # fmt: skip
        self.hot, self.cold, self.rotate, self.q4_scale, self.head_dim = hot, cold, rotate, q4_scale, head_dim
        self.one_form, self.width = one_form, cache_type(cold).row_bytes(head_dim)
        self.dtype = np.float32 if hot == "f32" else np.float16
        self.sink_rows = np.zeros((sinks, heads, head_dim), self.dtype)
        self.ring = np.zeros((hot_rows, heads, head_dim), self.dtype)
        self._cold_rows = np.zeros((0 if one_form else cold_rows, heads, self.width), np.uint8)

    @property
    def cold_rows(self) -> U8:
        return self.ring.view(np.uint8) if self.one_form else self._cold_rows


class Layer:
    """K and V of one layer, and which positions are there, plus 1 (0: none): of each row of sinks, ring and cold area.

    first: the position S after the sinks.
    """

    def __init__(
        self, f: LayerFormat, *, heads: int, head_dims: tuple[int, int], sinks: int, n_ctx: int, hot_tiles: int
    ) -> None:
        hot_rows, cold_rows = hot_tiles * TILE, -(-max(0, n_ctx - sinks) // TILE) * TILE
        one_form = (f.type_k, f.type_v) == (f.hot_k, f.hot_v) and hot_rows >= cold_rows
        self.first, self.hot_tiles, self.one_form = sinks, hot_tiles, one_form
        sinks = min(sinks, n_ctx)
        formats = (f.hot_k, f.type_k, f.rotate_k, f.q4_scale), (f.hot_v, f.type_v, f.rotate_v, f.q4_scale)
        self.sides = [
            Side(*form, heads=heads, head_dim=head_dim, sinks=sinks, hot_rows=hot_rows, cold_rows=cold_rows,
                 one_form=one_form)
            for form, head_dim in zip(formats, head_dims, strict=True)
        ]  # fmt: skip
        self.sinks, self.ring = np.zeros(sinks, np.int64), np.zeros(hot_rows, np.int64)
        self.cold = self.ring if one_form else np.zeros(cold_rows, np.int64)

    def ring_index(self, start: int, stop: int) -> I64:
        """Ring rows of positions [start, stop), all at or past S."""
        j = np.arange(start, stop) - self.first
        return j // TILE % self.hot_tiles * TILE + j % TILE

    def hot_at(self, start: int, stop: int) -> tuple[slice, I64]:
        """Sink rows and ring rows of positions [start, stop)."""
        s = self.first
        return slice(min(start, s), min(stop, s)), self.ring_index(max(start, s), max(stop, s))

    def check_ring(self, start: int, stop: int, what: str) -> None:
        """A longer run of positions than the ring has room for would overwrite its own beginning."""
        tiles = -(-max(0, stop - self.first) // TILE) - (max(start, self.first) - self.first) // TILE
        require(tiles <= self.hot_tiles, what, f"[{start}, {stop}) is more than a ring of {self.hot_tiles} tiles holds")

    def need_hot(self, start: int, stop: int, what: str) -> None:
        stop = max(start, stop)
        sink_at, ring_at = self.hot_at(start, stop)
        there = np.concatenate([self.sinks[sink_at], self.ring[ring_at]])
        ok = len(there) == stop - start and bool((there == np.arange(start, stop) + 1).all())
        require(ok, what, f"positions [{start}, {stop}) are not all there in the hot form")

    def need_cold(self, start: int, stop: int, what: str) -> None:
        there = self.cold[start - self.first : max(start, stop) - self.first]
        ok = len(there) == max(0, stop - start) and bool((there == np.arange(start, max(start, stop)) + 1).all())
        require(ok, what, f"positions [{start}, {stop}) are not all there in the cold form")

    def _add_hot(self, start: int, stop: int) -> None:
        """Positions [start, stop) are in their sink and ring rows from now on; what else their slots held is gone."""
        s, (sink_at, ring_at) = self.first, self.hot_at(start, stop)
        self.sinks[sink_at] = np.arange(sink_at.start, sink_at.stop) + 1
        j = np.arange(max(start, s), max(stop, s))
        tiles = np.unique((j - s) // TILE)
        slots, at = self.ring.reshape(-1, TILE), tiles % self.hot_tiles
        slots[at] *= (slots[at] - 1 - s) // TILE == tiles[:, None]
        self.ring[ring_at] = j + 1

    def put_hot(self, start: int, rows: Sequence[NDArray[Any]], what: str) -> None:
        """K and V rows for positions start ..., in the hot type or to be rounded to it."""
        stop = start + len(rows[0])
        self.check_ring(start, stop, what)
        self._add_hot(start, stop)
        sink_at, ring_at = self.hot_at(start, stop)
        n_sinks = sink_at.stop - sink_at.start
        for side, x in zip(self.sides, rows, strict=True):
            with np.errstate(over="ignore"):
                side.sink_rows[sink_at], side.ring[ring_at] = x[:n_sinks], x[n_sinks:]
