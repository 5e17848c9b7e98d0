"""Pages of the cache in NumPy: memory that stores share by reference count, under one budget (twin of csrc/pages.*).

A page is a chunk of an area (sinks, ring or cold rows of one layer): 512 positions in a long area, 64 in a short one.
It is there from the first time that something is written to it, belongs to all stores that were copied since, and is
copied when one of them writes to it. Its bytes count as the native tiles have them, so that a budget means the same.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import ConfigError, OutOfMemoryError
from mixkv.kernels.formats import BLOCK, TILE, cache_type

I64 = NDArray[np.int64]

LONG_PAGE, SHORT_PAGE = 512, 64
"""Positions of a page."""


class Page:
    """K and V rows of some positions, (positions, n_kv_heads, width) each, and how many areas have it."""

    def __init__(self, k: NDArray[Any], v: NDArray[Any], nbytes: int) -> None:
        self.sides = k, v
        self.nbytes, self.refs = nbytes, 1


class PagePool:
    """budget: the most bytes of pages that may be in use, None for as many as there are.

    Areas that are no more leave their pages in `_returned`, whatever thread or collection ended them; they are counted
    off when somebody next looks, under the lock.
    """

    def __init__(self, budget: int | None = None) -> None:
        if budget is not None and index(budget) < 0:
            raise ConfigError("a page pool's budget is a number of bytes, 0 or more, or None")
        self.budget = budget
        self._lock = threading.Lock()
        self._used = self._peak = 0
        self._returned: deque[Page] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        with self._lock:
            return self._settled()

    @property
    def peak_nbytes(self) -> int:
        """The most that it ever was."""
        return self._peak

    def _settled(self) -> int:
        while self._returned:
            page = self._returned.popleft()
            page.refs -= 1
            self._used -= 0 if page.refs else page.nbytes
        return self._used

    def share(self, pages: Iterable[Page]) -> None:
        """One more has each."""
        with self._lock:
            for page in pages:
                page.refs += 1

    def give(self, pages: Iterable[Page]) -> None:
        """One less has each."""
        self._returned.extend(pages)

    def reserve(self, rows: Iterable[tuple[Area, I64]]) -> None:
        """These rows of these areas get pages of their own; if not all can, OutOfMemoryError, and nothing changed."""
        with self._lock:
            used = self._settled()
            chunks = [
                (area, int(c), page)
                for area, at in rows
                for c in np.unique(at // area.per_page)
                if (page := area.table.get(int(c))) is None or page.refs > 1
            ]
            wanted = sum(area.page_bytes for area, _, _ in chunks)
            if self.budget is not None and chunks and used + wanted > self.budget:
                raise OutOfMemoryError(
                    f"the KV cache needs {wanted} bytes more beside the {used} in use, but its budget is "
                    f"{self.budget}: end or shorten other sequences, or allow more (kv_memory)"
                )
            pages = [area.new_page(page) for area, _, page in chunks]
            for (area, c, old), page in zip(chunks, pages, strict=True):
                area.table[c] = page
                if old is not None:
                    old.refs -= 1
            self._used = used + wanted
            self._peak = max(self._peak, self._used)


class Area:
    """Rows of sinks, ring or cold area of one layer, both sides, in pages; and which positions they hold.

    kinds: types of K and V; dtypes and widths: of a row as an array. there: position + 1 for each row, 0: none.
    """

    def __init__(
        self, pool: PagePool, n_rows: int, *, heads: int, kinds: tuple[str, str], head_dims: tuple[int, int],
        as_bytes: bool,
    ) -> None:  # fmt: skip
        tiles = -(-n_rows // TILE)
        self.pool, self.heads, self.n_rows = pool, heads, n_rows
        self.per_page = LONG_PAGE if tiles >= 4 * LONG_PAGE // TILE else SHORT_PAGE
        tile = sum(_tile_bytes(kind, side, dim) for kind, side, dim in zip(kinds, "kv", head_dims, strict=True))
        self.page_bytes = self.per_page // TILE * heads * tile
        if -(-n_rows // self.per_page) * self.page_bytes > 1e15:
            raise OutOfMemoryError(f"a KV cache of {n_rows} positions a layer; lower n_ctx")
        self._rows = [
            (np.dtype(np.uint8), cache_type(kind).row_bytes(dim)) if as_bytes
            else (np.dtype(np.float32 if kind == "f32" else np.float16), dim)
            for kind, dim in zip(kinds, head_dims, strict=True)
        ]  # fmt: skip
        self.there = np.zeros(n_rows, np.int64)
        self.table: dict[int, Page] = {}
        self._given_back()

    def _given_back(self) -> None:
        table = self.table
        weakref.finalize(self, lambda pool: pool.give(table.values()), self.pool).atexit = False

    def copy(self) -> Area:
        """Another area with the same contents, which shares all pages."""
        twin = object.__new__(Area)
        twin.__dict__.update(self.__dict__)
        twin.there, twin.table = self.there.copy(), dict(self.table)
        self.pool.share(twin.table.values())
        twin._given_back()
        return twin

    def new_page(self, old: Page | None) -> Page:
        """A fresh page, or a copy of one."""
        if old is not None:
            return Page(old.sides[0].copy(), old.sides[1].copy(), self.page_bytes)
        k, v = (np.zeros((self.per_page, self.heads, width), dtype) for dtype, width in self._rows)
        return Page(k, v, self.page_bytes)

    def forget(self, stop: int) -> None:
        """Positions from `stop` on are there no more; pages that are left empty are given back."""
        there = self.there[: (max(self.table, default=-1) + 1) * self.per_page]
        there[there > stop] = 0
        empty = [c for c in self.table if not there[c * self.per_page : (c + 1) * self.per_page].any()]
        self.pool.give([self.table.pop(c) for c in empty])

    def forget_before(self, start: int) -> None:
        """Nor are those before `start`."""
        self.there[(self.there > 0) & (self.there <= start)] = 0
        self.forget(int(self.there.max(initial=0)))

    def get(self, side: int, at: I64) -> NDArray[Any]:
        """Rows `at` of one side; those of one page are the page's own."""
        pieces = [self.table[c].sides[side][rows] for c, rows, _ in self._pieces(at)]
        dtype, width = self._rows[side]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty((0, self.heads, width), dtype), *pieces])

    def put(self, side: int, at: I64, values: NDArray[Any]) -> None:
        """Write rows `at`, whose pages have been reserved."""
        for c, rows, of_values in self._pieces(at):
            with np.errstate(over="ignore"):
                self.table[c].sides[side][rows] = values[of_values]

    def _pieces(self, at: I64) -> Iterator[tuple[int, slice, slice]]:
        """Runs of consecutive rows in one page: its number, which of its rows, which of `at`."""
        if len(at):
            cuts = np.flatnonzero((np.diff(at) != 1) | (at[1:] % self.per_page == 0)) + 1
            for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(at)], strict=True):
                first = int(at[a]) % self.per_page
                yield int(at[a]) // self.per_page, slice(first, first + b - a), slice(a, b)


def _tile_bytes(kind: str, side: str, head_dim: int) -> int:
    """Bytes of 16 positions of one head in the native layout (csrc/kv_format.h)."""
    if cache_type(kind).is_float:
        lanes = 4 if side == "k" else 16
        return -(-head_dim // lanes) * lanes * TILE * cache_type(kind).block_bytes // BLOCK
    return TILE * cache_type(kind).row_bytes(head_dim)
