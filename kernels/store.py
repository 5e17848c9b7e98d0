"""Where keys and values lie, in NumPy: the readable twin of csrc/kv_*.

Each layer has rows in its hot type for the sinks (positions j < S) and for a ring of tiles of recent positions, and
rows in its cold types for old ones. Tile i holds positions S + 16 i ... S + 16 i + 15 and lives, while it is hot, in
ring slot i % hot_tiles. Where the ring has a slot for every tile and both forms are written alike, there is one form,
and the ring is the cold area too. The store follows orders: who is hot and who reads what is decided by
engine/state/, on integers alone; it knows what it holds, and refuses to read the rest. Cold rows are reserved for the
whole context, and the operating system hands out pages as they are first written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import OutOfMemoryError
from mixkv.kernels.formats import TILE, LayerFormat, QuantizedRows, decode, encode
from mixkv.kernels.numeric import hadamard
from mixkv.kernels.reference_attention import attend_segment
from mixkv.kernels.state import F32, AttentionState, alibi_slopes, empty_state, finalize
from mixkv.kernels.store_checks import Checks, check_sizes, require
from mixkv.kernels.store_layer import Layer, Side

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


class KVStore:
    """Storage of all layers' keys and values; see the kernel contract for the orders it takes.

    layers: one LayerFormat each. n_ctx: positions that may ever be stored. sink_tokens S. hot_tiles: ring slots.
    Wrong sizes are a ConfigError; every other mistake is an InputError (store_checks.py), and changes nothing.
    """

    def __init__(
        self, layers: Sequence[LayerFormat], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int,
    ) -> None:  # fmt: skip
        head_dims = head_dim_k, head_dim_v
        check_sizes(n_kv_heads, head_dims, n_ctx, sink_tokens, hot_tiles)
        self._sinks = sink_tokens
        self._check = Checks(len(layers), n_kv_heads, head_dims, n_ctx, sink_tokens)
        try:
            self._layers = [
                Layer(f, heads=n_kv_heads, head_dims=head_dims, sinks=sink_tokens, n_ctx=n_ctx, hot_tiles=hot_tiles)
                for f in layers
            ]
        except (MemoryError, ValueError):  # NumPy's words for more than there is, and more than can be
            raise OutOfMemoryError(f"could not reserve a KV cache of {n_ctx} positions; lower n_ctx") from None

    def _checked_kv(self, k: F32, v: F32, pos: int, what: str) -> None:
        self._check.span(pos, self._check.rows((k, v), (np.float32, np.float32), self._check.head_dims, what), what)

    def write(self, layer: int, k: F32, v: F32, pos: int) -> None:
        """Store rows k, v (n, n_kv_heads, .) at positions pos ... in the hot type, rotated where the layer says so."""
        at = self._layers[self._check.layer(layer, "write")]
        self._checked_kv(k, v, pos, "write")
        rows = [hadamard(x) if side.rotate and len(x) else x for side, x in zip(at.sides, (k, v), strict=True)]
        at.put_hot(pos, rows, "write")

    def quantize(self, layer: int, start: int, stop: int) -> None:
        """Write the cold form of whole tiles [start, stop) from their hot form."""
        at = self._layers[self._check.layer(layer, "quantize")]
        self._check.tiles(start, stop, "quantize")
        at.need_hot(start, stop, "quantize")
        if stop <= start or at.one_form:
            return
        ring_at, cold_at = at.ring_index(start, stop), slice(start - self._sinks, stop - self._sinks)
        at.cold[cold_at] = np.arange(start, stop) + 1
        for side in at.sides:
            side.cold_rows[cold_at] = encode(side.ring[ring_at].astype(np.float32), side.cold, side.q4_scale)

    def rehydrate(self, layer: int, start: int, stop: int) -> None:
        """Write the hot form of whole tiles [start, stop) from their cold form: exact no more, but readable as hot."""
        at = self._layers[self._check.layer(layer, "rehydrate")]
        self._check.tiles(start, stop, "rehydrate")
        if stop <= start:
            return
        at.check_ring(start, stop, "rehydrate")
        at.need_cold(start, stop, "rehydrate")
        if not at.one_form:
            cold_at = slice(start - self._sinks, stop - self._sinks)
            rows = [decode(side.cold_rows[cold_at], side.cold, side.head_dim) for side in at.sides]
            at.put_hot(start, rows, "rehydrate")

    def attend(
        self, layer: int, q: F32, pos: int, hot_from: NDArray[np.int64], *, scale: float, softcap: float = 0.0,
        max_bias: float = 0.0, window: int = 0,
    ) -> F32:  # fmt: skip
        """Attention of queries q (n, n_heads, head_dim) at pos ... over everything stored; (n, n_heads, head_dim_v).

        Query i reads j < S and hot_from[i] <= j <= pos + i in the hot form, S <= j < hot_from[i] in the cold form, and
        with window > 0 only j > pos + i - window. max_bias adds ALiBi's slope * (j - position).
        """
        at = self._layers[self._check.layer(layer, "attend")]
        self._check.queries(q, pos, hot_from, window, "attend")
        key, value = at.sides
        n, n_heads, _ = q.shape
        if n == 0:
            return np.empty((0, n_heads, value.head_dim), np.float32)
        if key.rotate:
            q = hadamard(q)
        stop, s = pos + n, self._sinks
        cold_stop, hot_start = min(stop, int(hot_from.max())), max(s, int(hot_from.min()))
        first = max(0, pos - window + 1) if window else 0
        at.need_hot(first, min(s, stop), "attend")
        at.need_cold(max(first, s), cold_stop, "attend")
        at.need_hot(max(first, hot_start), stop, "attend")
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
            k, v = (self._rows(at, side, start, end, cold) for side in (key, value))
            state = AttentionState(*attend_segment(q, k, v, mask, state.m, state.s, state.acc, scale, slopes, softcap))
        out = finalize(state)
        return hadamard(out) if value.rotate else out

    def _rows(
        self, at: Layer, side: Side, start: int, stop: int, cold: bool | None
    ) -> QuantizedRows | NDArray[np.floating]:
        if cold is None:
            return side.sink_rows[start:stop]
        if cold:
            return QuantizedRows(side.cold_rows[start - self._sinks : stop - self._sinks], side.cold, side.head_dim)
        return side.ring[at.ring_index(start, stop)]

    def step(
        self, layer: int, q: F32, k: F32, v: F32, pos: int, hot_from: I64, cold_from: int, cold_to: int, *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0,
    ) -> F32:  # fmt: skip
        """write, quantize [cold_from, cold_to), attend: a layer's whole dealing with its cache in one call."""
        self._check.layer(layer, "step")
        self._checked_kv(k, v, pos, "step")
        self._check.queries(q, pos, hot_from, window, "step")
        self._check.tiles(cold_from, cold_to, "step")
        require(len(q) == len(k), "step", "q and k differ in length")
        self.write(layer, k, v, pos)
        self.quantize(layer, cold_from, cold_to)
        return self.attend(layer, q, pos, hot_from, scale=scale, softcap=softcap, max_bias=max_bias, window=window)

    def _checked_range(self, start: int, stop: int, what: str) -> int:
        """The end of a range to read, which may be empty and then come the wrong way round."""
        stop = max(index(start), index(stop))
        if start < stop:
            self._check.span(start, 0, what)
            self._check.span(stop, 0, what)
        return stop

    def get_hot(self, layer: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Copies of the hot form of positions [start, stop): K and V (n, n_kv_heads, .)."""
        at = self._layers[self._check.layer(layer, "get_hot")]
        stop = self._checked_range(start, stop, "get_hot")
        at.need_hot(start, stop, "get_hot")
        sink_at, ring_at = at.hot_at(start, stop)
        k, v = (np.concatenate([side.sink_rows[sink_at], side.ring[ring_at]]) for side in at.sides)
        return k, v

    def set_hot(self, layer: int, start: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        """The inverse of get_hot: rows in the hot dtype, already rotated."""
        at = self._layers[self._check.layer(layer, "set_hot")]
        key, value = at.sides
        n = self._check.rows((k, v), (key.dtype, value.dtype), self._check.head_dims, "set_hot")
        self._check.span(start, n, "set_hot")
        at.put_hot(start, (k, v), "set_hot")

    def get_cold(self, layer: int, start: int, stop: int) -> tuple[U8, U8]:
        """Copies of the cold form of positions [start, stop): K and V bytes (n, n_kv_heads, row_bytes)."""
        at = self._layers[self._check.layer(layer, "get_cold")]
        stop = self._checked_range(start, stop, "get_cold")
        require(start == stop or start >= self._sinks, "get_cold", "sinks have no cold form")
        at.need_cold(start, stop, "get_cold")
        rows = slice(max(0, start - self._sinks), max(0, stop - self._sinks))
        k, v = (side.cold_rows[rows].copy() for side in at.sides)
        return k, v

    def set_cold(self, layer: int, start: int, k: U8, v: U8) -> None:
        """The inverse of get_cold."""
        at = self._layers[self._check.layer(layer, "set_cold")]
        key, value = at.sides
        n = self._check.rows((k, v), (np.uint8, np.uint8), (key.width, value.width), "set_cold")
        self._check.span(start, n, "set_cold")
        require(n == 0 or start >= self._sinks, "set_cold", "sinks have no cold form")
        if at.one_form:
            return at.put_hot(start, [x.view(side.dtype) for x, side in zip((k, v), at.sides, strict=True)], "set_cold")
        rows = slice(start - self._sinks, start - self._sinks + n)
        at.cold[rows] = np.arange(start, start + n) + 1
        for side, x in zip(at.sides, (k, v), strict=True):
            side.cold_rows[rows] = x

    def copy(self) -> KVStore:
        """An independent twin with the same contents."""
        return copy.deepcopy(self)
