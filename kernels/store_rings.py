"""The rings of a store by themselves: what a sequence keeps of one to come back to, and coming back (see store.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from operator import index
from typing import Any, Self

from mixkv.kernels.store_checks import Checks, require
from mixkv.kernels.store_layer import Layer
from mixkv.kernels.store_pages import PagePool


class Rings(ABC):
    """Part of KVStore."""

    _layers: list[Layer]
    _pool: PagePool
    _check: Checks

    @abstractmethod
    def copy(self) -> Self:
        """A twin with the same contents."""

    def copy_ring(self, start: int, stop: int) -> Self:
        """All layers' rings as they are, with positions [start, stop) alone, in a store of its own that shares their
        pages; of layers of one form, whose ring overwrites nothing, no position at all."""
        require(index(start) >= 0 and index(stop) >= 0, "copy_ring", "positions are not negative")
        twin = self.copy()
        for at in twin._layers:
            for area in (at.sinks, at.cold):
                area.forget(0)
            at.ring.forget(stop)
            at.ring.forget_before(start)
        return twin

    def take_ring(self, other: Rings) -> None:
        """All layers' rings become those of a store that `copy_ring` made of this one or of a copy of it: pages are
        shared, so that no memory is needed."""
        require(self._same_kind(other), "take_ring", "the other store is of another kind or pool")
        for at, theirs in zip(self._layers, other._layers, strict=True):
            if not at.one_form:
                at.ring = theirs.ring.copy()

    def _same_kind(self, other: Rings) -> bool:
        def kind(store: Rings) -> list[Any]:
            c = store._check
            sizes = [c.heads, c.widths, c.n_ctx, c.sinks]
            return sizes + [(at.one_form, at.hot_tiles, [side.hot for side in at.sides]) for at in store._layers]

        return self._pool is other._pool and kind(self) == kind(other)

    def ring_pages(self) -> dict[int, int]:
        """The pages of all layers' rings: a number that no other page has while this one is there -> its bytes."""
        return {id(page): page.nbytes for at in self._layers for page in at.ring.table.values()}
