"""Where keys and values lie, in NumPy: the readable twin of csrc/kv_*.

Each layer has rows in its hot type for the sinks (positions j < S) and for a ring of tiles of recent positions, and
rows in its cold types for old ones. Tile i holds positions S + 16 i ... S + 16 i + 15 and lives, while it is hot, in
ring slot i % hot_tiles. The store follows orders: who is hot and who reads what is decided by engine/cache.py, on
integers alone. Cold rows are reserved for the whole context, and the operating system hands out pages as they are
first written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.formats import TILE, LayerFormat, QuantizedRows, cache_type, decode, encode
from mixkv.kernels.reference_attention import attend_segment
from mixkv.kernels.state import F32, AttentionState, alibi_slopes, empty_state, finalize

U8 = NDArray[np.uint8]


def hadamard(x: F32) -> F32:
    """Rows x (..., head_dim) times the normalised Walsh-Hadamard matrix of the largest power of two, w, that divides
    head_dim, block by block of w. Orthogonal and its own inverse."""
    width = x.shape[-1] & -x.shape[-1]
    out = x.reshape(-1, width).astype(np.float32)
    half = 1
    while half < width:
        pair = out.reshape(-1, width // (2 * half), 2, half)
        out = np.stack([pair[:, :, 0] + pair[:, :, 1], pair[:, :, 0] - pair[:, :, 1]], axis=2)
        half *= 2
    return (out.reshape(x.shape) * np.float32(width**-0.5)).astype(np.float32)


class _Side:
    """K or V of one layer."""

    def __init__(
        self,
        hot: str,
        cold: str,
        rotate: bool,
        q4_scale: str,
        heads: int,
        head_dim: int,
        sinks: int,
        hot_tiles: int,
        cold_rows: int,
    ) -> None:
        self.hot, self.cold, self.rotate, self.q4_scale, self.head_dim = hot, cold, rotate, q4_scale, head_dim
        dtype = np.float32 if hot == "f32" else np.float16
        self.sink_rows = np.zeros((sinks, heads, head_dim), dtype)
        self.ring = np.zeros((hot_tiles * TILE, heads, head_dim), dtype)
        self.cold_rows = np.zeros((cold_rows, heads, cache_type(cold).row_bytes(head_dim)), np.uint8)

    def write(self, sink_at: slice, ring_at: NDArray[np.int64], x: F32) -> None:
        if self.rotate:
            x = hadamard(x)
        n_sinks = sink_at.stop - sink_at.start
        with np.errstate(over="ignore"):
            self.sink_rows[sink_at] = x[:n_sinks]
            self.ring[ring_at] = x[n_sinks:]


class KVStore:
    """Storage of all layers' keys and values; see the kernel contract for the orders it takes.

    layers: one LayerFormat each. n_ctx: positions that may ever be stored. sink_tokens S. hot_tiles: ring slots.
    """

    def __init__(
        self, layers: Sequence[LayerFormat], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int,
    ) -> None:  # fmt: skip
        self._sinks, self._hot_tiles = sink_tokens, hot_tiles
        sinks = min(sink_tokens, n_ctx)
        cold_rows = -(-max(0, n_ctx - sink_tokens) // TILE) * TILE
        self._layers = [
            (
                _Side(f.hot_k, f.type_k, f.rotate_k, f.q4_scale, n_kv_heads, head_dim_k, sinks, hot_tiles, cold_rows),
                _Side(f.hot_v, f.type_v, f.rotate_v, f.q4_scale, n_kv_heads, head_dim_v, sinks, hot_tiles, cold_rows),
            )
            for f in layers
        ]

    def _ring_index(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ring rows of positions [start, stop), all at or past S."""
        j = np.arange(start, stop) - self._sinks
        return j // TILE % self._hot_tiles * TILE + j % TILE

    def write(self, layer: int, k: F32, v: F32, pos: int) -> None:
        """Store rows k, v (n, n_kv_heads, .) at positions pos ... in the hot type, rotated where the layer says so."""
        stop = pos + len(k)
        sink_at = slice(min(pos, self._sinks), min(stop, self._sinks))
        ring_at = self._ring_index(max(pos, self._sinks), max(stop, self._sinks))
        for side, x in zip(self._layers[layer], (k, v), strict=True):
            side.write(sink_at, ring_at, x)

    def quantize(self, layer: int, start: int, stop: int) -> None:
        """Write the cold form of whole tiles [start, stop) from their hot form."""
        if stop <= start:
            return
        at = self._ring_index(start, stop)
        for side in self._layers[layer]:
            rows = encode(side.ring[at].astype(np.float32), side.cold, side.q4_scale)
            side.cold_rows[start - self._sinks : stop - self._sinks] = rows

    def rehydrate(self, layer: int, start: int, stop: int) -> None:
        """Write the hot form of whole tiles [start, stop) from their cold form: exact no more, but readable as hot."""
        at = self._ring_index(start, stop)
        for side in self._layers[layer]:
            rows = side.cold_rows[start - self._sinks : stop - self._sinks]
            with np.errstate(over="ignore"):
                side.ring[at] = decode(rows, side.cold, side.head_dim)

    def attend(
        self, layer: int, q: F32, pos: int, hot_from: NDArray[np.int64], *, scale: float, softcap: float = 0.0,
        max_bias: float = 0.0, window: int = 0,
    ) -> F32:  # fmt: skip
        """Attention of queries q (n, n_heads, head_dim) at pos ... over everything stored; (n, n_heads, head_dim_v).

        Query i reads j < S and hot_from[i] <= j <= pos + i in the hot form, S <= j < hot_from[i] in the cold form, and
        with window > 0 only j > pos + i - window. max_bias adds ALiBi's slope * (j - position).
        """
        key, value = self._layers[layer]
        n, n_heads, _ = q.shape
        if key.rotate:
            q = hadamard(q)
        stop, s = pos + n, self._sinks
        cold_stop, hot_start = int(hot_from.max()), max(s, int(hot_from.min()))
        segments = [(0, min(s, stop), None), (s, cold_stop, True), (hot_start, stop, False)]
        position = np.arange(pos, stop)[:, None]
        slopes = alibi_slopes(n_heads, max_bias)
        state = empty_state(n, n_heads, value.head_dim)
        for start, end, cold in segments:
            if window:
                start = max(start, (pos - window + 1 - s) // TILE * TILE + s) if start >= s else start
            if end <= start:
                continue
            j = np.arange(start, end)[None, :]
            hidden = j > position
            if cold is not None:
                hidden = hidden | ((j >= hot_from[:, None]) if cold else (j < hot_from[:, None]))
            if window:
                hidden = hidden | (j <= position - window)
            mask = None
            if max_bias > 0:
                mask = np.where(hidden, -np.inf, j - position).astype(np.float32)
            elif hidden.any():
                mask = np.where(hidden, -np.inf, 0).astype(np.float32)
            k, v = (self._rows(side, start, end, cold) for side in (key, value))
            state = AttentionState(*attend_segment(q, k, v, mask, state.m, state.s, state.acc, scale, slopes, softcap))
        out = finalize(state)
        return hadamard(out) if value.rotate else out

    def _rows(self, side: _Side, start: int, stop: int, cold: bool | None) -> QuantizedRows | NDArray[np.floating]:
        if cold is None:
            return side.sink_rows[start:stop]
        if cold:
            return QuantizedRows(side.cold_rows[start - self._sinks : stop - self._sinks], side.cold, side.head_dim)
        return side.ring[self._ring_index(start, stop)]

    def step(
        self, layer: int, q: F32, k: F32, v: F32, pos: int, hot_from: NDArray[np.int64], cold_from: int, cold_to: int,
        *, scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0,
    ) -> F32:  # fmt: skip
        """write, quantize [cold_from, cold_to), attend: a layer's whole dealing with its cache in one call."""
        self.write(layer, k, v, pos)
        self.quantize(layer, cold_from, cold_to)
        return self.attend(layer, q, pos, hot_from, scale=scale, softcap=softcap, max_bias=max_bias, window=window)

    def get_hot(self, layer: int, start: int, stop: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Copies of the hot form of positions [start, stop), all sinks or none: K and V (n, n_kv_heads, .)."""
        k, v = self._layers[layer]
        if start < self._sinks:
            return k.sink_rows[start:stop].copy(), v.sink_rows[start:stop].copy()
        at = self._ring_index(start, stop)
        return k.ring[at], v.ring[at]

    def set_hot(self, layer: int, start: int, k: NDArray[np.floating], v: NDArray[np.floating]) -> None:
        """The inverse of get_hot: rows in the hot dtype, already rotated."""
        for side, rows in zip(self._layers[layer], (k, v), strict=True):
            if start < self._sinks:
                side.sink_rows[start : start + len(rows)] = rows
            else:
                side.ring[self._ring_index(start, start + len(rows))] = rows

    def get_cold(self, layer: int, start: int, stop: int) -> tuple[U8, U8]:
        """Copies of the cold form of positions [start, stop): K and V bytes (n, n_kv_heads, row_bytes)."""
        k, v = self._layers[layer]
        at = slice(start - self._sinks, stop - self._sinks)
        return k.cold_rows[at].copy(), v.cold_rows[at].copy()

    def set_cold(self, layer: int, start: int, k: U8, v: U8) -> None:
        """The inverse of get_cold."""
        for side, rows in zip(self._layers[layer], (k, v), strict=True):
            side.cold_rows[start - self._sinks : start - self._sinks + len(rows)] = rows

    def copy(self) -> KVStore:
        """An independent twin with the same contents."""
        return copy.deepcopy(self)
