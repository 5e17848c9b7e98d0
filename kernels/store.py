"""Where keys and values lie, in NumPy: the readable twin of csrc/kv_*.

Each layer has rows in its hot type for the sinks (positions j < S) and for a ring of tiles of recent positions, and
rows in its cold types for old ones. Tile i holds positions S + 16 i ... S + 16 i + 15 and lives, while it is hot, in
ring slot i % hot_tiles. Where the ring has a slot for every tile and both forms are written alike, there is one form,
and the ring is the cold area too. The store follows orders: who is hot and who reads what is decided by
engine/state/, on integers alone; it knows what it holds, and refuses to read the rest. Rows lie in pages
(store_pages.py), which copies share; before anything is written its pages are there and this store's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import OutOfMemoryError
from mixkv.kernels.formats import TILE, LayerFormat, QuantizedRows, decode, encode
from mixkv.kernels.numeric import hadamard, hadamard_width
from mixkv.kernels.reference_attention import KEY_BLOCK, as_float, attend_segment
from mixkv.kernels.state import F32, AttentionState, alibi_slopes, empty_state, finalize, sink_state
from mixkv.kernels.store_checks import Checks, check_rotation, check_sizes, require
from mixkv.kernels.store_layer import Layer
from mixkv.kernels.store_pages import PagePool
from mixkv.kernels.store_rings import Rings

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


class KVStore(Rings):
    """Storage of all layers' keys and values; see the kernel contract for the orders it takes.

    layers: one LayerFormat each. n_ctx: positions that may ever be stored. sink_tokens S. hot_tiles: ring slots. pool:
    where its pages are from; None: a pool of its own, without a budget. v_in_k: values are the first head_dim_v numbers
    of keys and not kept by themselves; V has no numbers then wherever rows go in or out, and its formats mean nothing.
    Wrong sizes are a ConfigError; every other mistake is an InputError (store_checks.py), and changes nothing.
    """

    def __init__(
        self, layers: Sequence[LayerFormat], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int, pool: PagePool | None = None, v_in_k: bool = False,
    ) -> None:  # fmt: skip
        if pool is not None and not isinstance(pool, PagePool):
            raise TypeError("pool is not a PagePool of this backend")
        self._pool = pool = PagePool() if pool is None else pool
        head_dims = head_dim_k, head_dim_v
        check_sizes(n_kv_heads, head_dims, n_ctx, sink_tokens, hot_tiles, v_in_k)
        self._turn = hadamard_width(head_dim_k if v_in_k else head_dim_v)  # what values are rotated in
        if v_in_k:
            check_rotation(any(f.rotate_k for f in layers), head_dims, self._turn)
        self.head_dim_v, self._v_in_k, self._sinks = head_dim_v, v_in_k, sink_tokens
        widths = head_dim_k, 0 if v_in_k else head_dim_v
        self._check = Checks(len(layers), n_kv_heads, widths, n_ctx, sink_tokens)
        try:
            self._layers = [
                Layer(f, pool, heads=n_kv_heads, widths=widths, sinks=sink_tokens, n_ctx=n_ctx, hot_tiles=hot_tiles)
                for f in layers
            ]
        except (MemoryError, ValueError):  # NumPy's words for more than there is, and more than can be
            raise OutOfMemoryError(f"could not reserve a KV cache of {n_ctx} positions; lower n_ctx") from None

    def _checked_kv(self, k: F32, v: F32, pos: int, what: str) -> None:
        self._check.span(pos, self._check.rows((k, v), (np.float32, np.float32), self._check.widths, what), what)

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
        hot = [at.hot(side, start, stop).astype(np.float32) for side in (0, 1)]
        at.put_cold(start, [encode(x, form.cold, form.q4_scale) for x, form in zip(hot, at.sides, strict=True)])

    def rehydrate(self, layer: int, start: int, stop: int) -> None:
        """Write the hot form of whole tiles [start, stop) from their cold form: exact no more, but readable as hot."""
        at = self._layers[self._check.layer(layer, "rehydrate")]
        self._check.tiles(start, stop, "rehydrate")
        if stop <= start:
            return
        at.check_ring(start, stop, "rehydrate")
        at.need_cold(start, stop, "rehydrate")
        if not at.one_form:
            rows = [decode(at.cold_bytes(i, start, stop), f.cold, f.head_dim) for i, f in enumerate(at.sides)]
            at.put_hot(start, rows, "rehydrate")

    def attend(
        self, layer: int, q: F32, pos: int, hot_from: NDArray[np.int64], *, scale: float, softcap: float = 0.0,
        max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
    ) -> F32:  # fmt: skip
        """Attention of queries q (n, n_heads, head_dim) at pos ... over everything stored; (n, n_heads, head_dim_v).

        Query i reads j < S and hot_from[i] <= j <= pos + i in the hot form, S <= j < hot_from[i] in the cold form, and
        with window > 0 only j > pos + i - window. max_bias adds ALiBi's slope * (j - position). sinks
        (n_heads,): a learned logit of each head, whose weight goes to no value.
        """
        at = self._layers[self._check.layer(layer, "attend")]
        self._check.queries(q, pos, hot_from, window, sinks, "attend")
        key, value = at.sides
        n, n_heads, _ = q.shape
        if n == 0:
            return np.empty((0, n_heads, self.head_dim_v), np.float32)
        if key.rotate:
            q = hadamard(q)
        stop, s = pos + n, self._sinks
        cold_stop, hot_start = min(stop, int(hot_from.max())), max(s, int(hot_from.min()))
        first = max(0, pos - window + 1) if window else 0
        at.need_hot(first, min(s, stop), "attend")
        at.need_cold(max(first, s), cold_stop, "attend")
        at.need_hot(max(first, hot_start), stop, "attend")
        position = np.arange(pos, stop)[:, None]
        slopes = alibi_slopes(n_heads, max_bias)
        dim = self.head_dim_v
        state = empty_state(n, n_heads, dim) if sinks is None else sink_state(sinks, n, dim)
        for start, end, cold in self._segments(first, hot_start, cold_stop, stop):
            j = np.arange(start, end)[None, :]
            hidden = j > position
            if start >= s:
                hidden = hidden | ((j >= hot_from[:, None]) if cold else (j < hot_from[:, None]))
            if window:
                hidden = hidden | (j <= position - window)
            mask = None
            if max_bias > 0:
                mask = np.where(hidden, -np.inf, j - position).astype(np.float32)
            elif hidden.any():
                mask = np.where(hidden, -np.inf, 0).astype(np.float32)
            k = self._rows(at, 0, start, end, cold)
            v = as_float(k)[..., :dim] if self._v_in_k else self._rows(at, 1, start, end, cold)
            state = AttentionState(*attend_segment(q, k, v, mask, state.m, state.s, state.acc, scale, slopes, softcap))
        out = finalize(state)
        return hadamard(out, self._turn) if (key if self._v_in_k else value).rotate else out

    def _segments(self, first: int, hot_start: int, cold_stop: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """(start, stop, whether cold) of the keys that some query reads: sinks, cold ones, hot ones, block by block.

        first: the first position that a window leaves in sight.
        """
        s = self._sinks
        seen = max(s, (first - s) // TILE * TILE + s)
        parts = (first, min(s, stop), False), (seen, cold_stop, True), (max(seen, hot_start), stop, False)
        for start, end, cold in parts:
            for a in range(start, end, KEY_BLOCK):
                yield a, min(a + KEY_BLOCK, end), cold

    def _rows(self, at: Layer, side: int, start: int, stop: int, cold: bool) -> QuantizedRows | NDArray[np.floating]:
        if cold:
            return QuantizedRows(at.cold_bytes(side, start, stop), at.sides[side].cold, at.sides[side].head_dim)
        return at.hot(side, start, stop)

    def step(
        self, layer: int, q: F32, k: F32, v: F32, pos: int, hot_from: I64, cold_from: int, cold_to: int, *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
    ) -> F32:  # fmt: skip
        """write, quantize [cold_from, cold_to), attend: a layer's whole dealing with its cache in one call."""
        self.check_step("step", layer, q, k, v, pos, hot_from, cold_from, cold_to, window=window, sinks=sinks)
        self.reserve_step(layer, pos, len(k), cold_from, cold_to)
        self.write(layer, k, v, pos)
        self.quantize(layer, cold_from, cold_to)
        return self.attend(
            layer, q, pos, hot_from, scale=scale, softcap=softcap, max_bias=max_bias, window=window, sinks=sinks
        )

    def check_step(
        self, what: str, layer: int, q: F32, k: F32, v: F32, pos: int, hot_from: I64, cold_from: int, cold_to: int, *,
        window: int, sinks: F32 | None,
    ) -> None:  # fmt: skip
        """InputError for arguments of `step` that cannot be, whatever is stored."""
        self._check.layer(layer, what)
        self._checked_kv(k, v, pos, what)
        self._check.queries(q, pos, hot_from, window, sinks, what)
        self._check.tiles(cold_from, cold_to, what)
        require(len(q) == len(k), what, "q and k differ in length")

    def reserve_step(self, layer: int, pos: int, n: int, cold_from: int, cold_to: int) -> None:
        """The pages of a `step`, as it takes them before it writes anything."""
        at = self._layers[layer]
        at.check_ring(pos, pos + n, "step")
        self._pool.reserve([*at.hot_rows(pos, pos + n), *at.cold_rows(cold_from, cold_to)])

    def reserve(self, hot_start: int, hot_stop: int, cold_start: int, cold_stop: int) -> None:
        """All layers: the pages to write positions [hot_start, hot_stop) in the hot form (of a longer stretch than the
        ring's: all of it) and whole tiles [cold_start, cold_stop) in the cold one, this store's own. OutOfMemoryError
        where the pool's budget does not allow them all, and then nothing has changed."""
        hot_stop = self._checked_range(hot_start, hot_stop, "reserve")
        self._check.tiles(cold_start, cold_stop, "reserve")
        hot = (rows for at in self._layers for rows in at.hot_rows(hot_start, hot_stop))
        self._pool.reserve([*hot, *(rows for at in self._layers for rows in at.cold_rows(cold_start, cold_stop))])

    def trim(self, hot_stop: int, cold_stop: int) -> None:
        """All layers: forget the hot form of positions from hot_stop on and the cold form of those from cold_stop on
        (where there is one form, the hot one is all), and give back pages that are left empty."""
        require(index(hot_stop) >= 0 and index(cold_stop) >= 0, "trim", "positions are not negative")
        for at in self._layers:
            at.sinks.forget(hot_stop)
            at.ring.forget(hot_stop)
            if not at.one_form:
                at.cold.forget(cold_stop)

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
        k, v = (np.array(at.hot(side, start, stop)) for side in (0, 1))
        return k, v

    def set_hot(self, layer: int, start: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        """The inverse of get_hot: rows in the hot dtype, already rotated."""
        at = self._layers[self._check.layer(layer, "set_hot")]
        key, value = at.sides
        n = self._check.rows((k, v), (key.dtype, value.dtype), self._check.widths, "set_hot")
        self._check.span(start, n, "set_hot")
        at.put_hot(start, (k, v), "set_hot")

    def get_cold(self, layer: int, start: int, stop: int) -> tuple[U8, U8]:
        """Copies of the cold form of positions [start, stop): K and V bytes (n, n_kv_heads, row_bytes)."""
        at = self._layers[self._check.layer(layer, "get_cold")]
        stop = self._checked_range(start, stop, "get_cold")
        require(start == stop or start >= self._sinks, "get_cold", "sinks have no cold form")
        at.need_cold(start, stop, "get_cold")
        k, v = (at.cold_bytes(side, start, stop).copy() for side in (0, 1))
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
        at.put_cold(start, (k, v))

    def copy(self) -> Self:
        """A twin with the same contents: it shares all pages, and each has its own when it writes."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._layers = [at.copy() for at in self._layers]
        return twin

    def __deepcopy__(self, memo: object) -> KVStore:
        return self.copy()
