"""Pages: stores on one pool share them, copy what they write to, and take no more than the budget; both twins alike.

Held to a model in plain dictionaries, which knows what every store holds and which pages that takes.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_tools import NATIVE_IS_BUILT

from mixkv.kernels import LayerFormat, open_backend
from mixkv.kernels.errors import InputError, OutOfMemoryError
from mixkv.kernels.formats import TILE, cache_type, encode

KINDS = ["reference", *["native"] * NATIVE_IS_BUILT]
HEADS, DIM, S = 2, 32, 3
LAYERS = [LayerFormat("q8_0", "q4_0"), LayerFormat("f16", "f16")]
Row = tuple[bytes, bytes]


@dataclass(frozen=True)
class Shape:
    """Of a store: how many positions, ring slots, and what a page of each area holds."""

    n_ctx: int
    hot_tiles: int
    per_page: dict[str, int]

    def make(self, backend: Any, pool: Any) -> Any:
        return backend.KVStore(
            LAYERS, n_kv_heads=HEADS, head_dim_k=DIM, head_dim_v=DIM, n_ctx=self.n_ctx, sink_tokens=S,
            hot_tiles=self.hot_tiles, pool=pool,
        )  # fmt: skip

    def one_form(self, layer: int) -> bool:
        return layer == 1 and self.hot_tiles * TILE >= self.n_ctx - S

    def page_bytes(self, layer: int, area: str) -> int:
        f = LAYERS[layer]
        kinds = (f.type_k, f.type_v) if area == "cold" else (f.hot_k, f.hot_v)
        return self.per_page[area] * HEADS * sum(cache_type(kind).row_bytes(DIM) for kind in kinds)


SHAPES = [
    Shape(400, 6, {"sinks": 64, "ring": 64, "cold": 64}),
    Shape(2200, 9, {"sinks": 64, "ring": 64, "cold": 512}),
    Shape(2100, 132, {"sinks": 64, "ring": 512, "cold": 512}),
]


@dataclass
class Model:
    """What one store holds: sinks by position, the ring's slots as (tile, rows), cold rows; and its pages."""

    shape: Shape
    sinks: dict[tuple[int, int], Row] = field(default_factory=dict)
    ring: dict[tuple[int, int], tuple[int, dict[int, Row]]] = field(default_factory=dict)
    cold: dict[tuple[int, int], Row] = field(default_factory=dict)
    pages: dict[tuple[int, str, int], object] = field(default_factory=dict)

    def fork(self) -> Model:
        ring = {at: (tile, dict(rows)) for at, (tile, rows) in self.ring.items()}
        return Model(self.shape, dict(self.sinks), ring, dict(self.cold), dict(self.pages))

    def hot(self, layer: int) -> dict[int, Row]:
        rows = {p: row for (at, p), row in self.sinks.items() if at == layer}
        for (at, _), (_, tile) in self.ring.items():
            rows |= tile if at == layer else {}
        return rows

    def cold_rows(self, layer: int) -> dict[int, Row]:
        if self.shape.one_form(layer):
            return {p: row for p, row in self.hot(layer).items() if p >= S}
        return {p: row for (at, p), row in self.cold.items() if at == layer}

    def touched(self, layer: int, hot: range, cold: range = range(0)) -> set[tuple[int, str, int]]:
        """Pages that writing these positions takes."""
        per, ring = self.shape.per_page, self.shape.hot_tiles * TILE
        found = {(layer, "sinks", p // per["sinks"]) for p in hot if p < S}
        found |= {(layer, "ring", (p - S) % ring // per["ring"]) for p in hot if p >= S}
        if not self.shape.one_form(layer):
            found |= {(layer, "cold", (p - S) // per["cold"]) for p in cold}
        return found

    def put_hot(self, layer: int, p: int, row: Row) -> None:
        if p < S:
            self.sinks[layer, p] = row
            return
        tile = (p - S) // TILE
        held, rows = self.ring.get((layer, tile % self.shape.hot_tiles), (tile, {}))
        self.ring[layer, tile % self.shape.hot_tiles] = tile, (rows if held == tile else {}) | {p: row}

    def trim(self, hot_stop: int, cold_stop: int) -> None:
        self.sinks = {at: row for at, row in self.sinks.items() if at[1] < hot_stop}
        kept = {at: (t, {p: r for p, r in rows.items() if p < hot_stop}) for at, (t, rows) in self.ring.items()}
        self.ring = {at: held for at, held in kept.items() if held[1]}
        self.cold = {at: row for at, row in self.cold.items() if at[1] < cold_stop}
        used = {
            key
            for layer in range(len(LAYERS))
            for key in self.touched(layer, self.hot(layer), [] if self.shape.one_form(layer) else self.cold_rows(layer))
        }  # type: ignore[arg-type]
        self.pages = {key: page for key, page in self.pages.items() if key in used}

    def copy_ring(self, start: int, stop: int) -> Model:
        """Rings alone, and in them these positions alone."""
        twin = self.fork()
        twin.sinks, twin.cold = {}, {}
        kept = {
            at: (t, {p: r for p, r in rows.items() if start <= p < stop and not self.shape.one_form(at[0])})
            for at, (t, rows) in twin.ring.items()
        }
        twin.ring = {at: held for at, held in kept.items() if held[1]}
        twin.trim(self.shape.n_ctx, 0)
        return twin

    def take_ring(self, other: Model) -> None:
        mine = {layer for layer in range(len(LAYERS)) if not self.shape.one_form(layer)}
        ring = {at: held for at, held in self.ring.items() if at[0] not in mine}
        self.ring = ring | {at: (t, dict(rows)) for at, (t, rows) in other.ring.items() if at[0] in mine}
        pages = {key: page for key, page in self.pages.items() if key[0] not in mine or key[1] != "ring"}
        self.pages = pages | {key: p for key, p in other.pages.items() if key[0] in mine and key[1] == "ring"}


class World:
    """Stores on one pool, and the model of each."""

    def __init__(self, kind: str, shape: Shape, budget: int | None, seed: int) -> None:
        self.backend = open_backend(2, kind=kind)
        if kind == "native":
            self.backend.poison_scratch(True)  # type: ignore[attr-defined]
        self.pool = self.backend.page_pool(budget)
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.stores = [(shape.make(self.backend, self.pool), Model(shape))]
        self.peak = 0

    def nbytes(self) -> int:
        pages = {id(page): key for _, model in self.stores for key, page in model.pages.items()}
        return sum(self.shape.page_bytes(layer, area) for layer, area, _ in pages.values())

    def takes(self, model: Model, keys: set[tuple[int, str, int]]) -> bool:
        """Whether the budget has these pages for the model; and then it has them."""
        shared = [id(page) for _, m in self.stores if m is not model for page in m.pages.values()]
        new = {key for key in keys if key not in model.pages or id(model.pages[key]) in shared}
        wanted = sum(self.shape.page_bytes(layer, area) for layer, area, _ in new)
        if wanted and self.pool.budget is not None and self.nbytes() + wanted > self.pool.budget:
            return False
        model.pages |= {key: object() for key in new}
        self.peak = max(self.peak, self.nbytes())
        return True

    def rows(self, n: int) -> Any:
        return [self.rng.standard_normal((n, HEADS, DIM)).astype(np.float16) for _ in range(2)]

    def act(self, act: str, which: int, layer: int, a: float, b: float) -> None:
        store, model = self.stores[which % len(self.stores)]
        n_ctx, room = self.shape.n_ctx, (self.shape.hot_tiles - 1) * TILE
        start = int(a * n_ctx)
        if act == "write":
            n = min(int(b * room), n_ctx - start)
            k, v = self.rows(n)
            fits = self.takes(model, model.touched(layer, range(start, start + n)))
            self.attempt(fits, lambda: store.set_hot(layer, start, k, v))
            for i in range(n if fits else 0):
                model.put_hot(layer, start + i, (k[i].tobytes(), v[i].tobytes()))
        elif act == "quantize":
            hot = model.hot(layer)
            tiles = [t for t in range((n_ctx - S) // TILE) if all(S + t * TILE + i in hot for i in range(TILE))]
            if not tiles:
                return
            first = last = tiles[int(a * len(tiles))]
            while last + 1 in tiles and last - first < 5 * b:
                last += 1
            span = range(S + first * TILE, S + (last + 1) * TILE)
            fits = self.takes(model, model.touched(layer, range(0), span))
            self.attempt(fits, lambda: store.quantize(layer, span.start, span.stop))
            for p in span if fits and not self.shape.one_form(layer) else ():
                kinds = LAYERS[layer].type_k, LAYERS[layer].type_v
                wide = (np.frombuffer(x, np.float16).reshape(HEADS, DIM).astype(np.float32) for x in hot[p])
                model.cold[layer, p] = tuple(encode(x, kind).tobytes() for x, kind in zip(wide, kinds, strict=True))  # type: ignore[assignment]
        elif act == "reserve":
            span, cold = range(start, min(start + int(b * room), n_ctx)), range(S, S + TILE * int(b * 9))
            keys = [model.touched(i, span, cold) for i in range(len(LAYERS))]
            self.attempt(self.takes(model, set().union(*keys)),
                         lambda: store.reserve(span.start, span.stop, cold.start, cold.stop))  # fmt: skip
        elif act == "trim":
            store.trim(start, int(b * n_ctx))
            model.trim(start, int(b * n_ctx))
        elif act == "fork" and len(self.stores) < 5:
            self.stores.append((store.copy() if b < 0.5 else copy.deepcopy(store), model.fork()))
        elif act == "copy ring" and len(self.stores) < 5:
            stop = int(b * n_ctx)
            self.stores.append((store.copy_ring(start, stop), model.copy_ring(start, stop)))
        elif act == "take ring":
            other, others_model = self.stores[int(a * len(self.stores))]
            store.take_ring(other)
            model.take_ring(others_model)
        elif act == "drop" and len(self.stores) > 1:
            del self.stores[which % len(self.stores)]

    def attempt(self, fits: bool, call: Any) -> None:
        if fits:
            return call()
        before = self.pool.nbytes
        with pytest.raises(OutOfMemoryError, match=f"{before} in use, but its budget is {self.pool.budget}"):
            call()

    def check(self) -> None:
        for store, model in self.stores:
            sizes = sorted(self.shape.page_bytes(layer, area) for layer, area, _ in model.pages if area == "ring")
            assert sorted(store.ring_pages().values()) == sizes
            for layer in range(len(LAYERS)):
                for get, rows, first in (
                    (store.get_hot, model.hot(layer), 0), (store.get_cold, model.cold_rows(layer), S),
                ):  # fmt: skip
                    for start, stop in runs(rows):
                        k, v = get(layer, start, stop)
                        assert b"".join(rows[p][0] for p in range(start, stop)) == k.tobytes()
                        assert b"".join(rows[p][1] for p in range(start, stop)) == v.tobytes()
                    gap = next(p for p in range(first, self.shape.n_ctx + 1) if p not in rows)
                    if gap < self.shape.n_ctx:
                        with pytest.raises(InputError):
                            get(layer, gap, gap + 1)


def runs(rows: dict[int, Row]) -> list[tuple[int, int]]:
    """Stretches [start, stop) of positions that follow each other."""
    starts = [p for p in sorted(rows) if p - 1 not in rows]
    return [(p, next(e for e in range(p, p + len(rows) + 1) if e not in rows)) for p in starts]


ACTS = st.tuples(
    st.sampled_from(["write", "write", "write", "quantize", "quantize", "reserve", "trim", "fork", "fork",
                     "copy ring", "take ring", "drop"]),
    st.integers(0, 4), st.integers(0, 1), st.floats(0, 0.999), st.floats(0, 1),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.sampled_from(SHAPES), st.one_of(st.none(), st.integers(0, 3_000_000)), st.integers(0, 1000),
    st.lists(ACTS, min_size=1, max_size=25),
)  # fmt: skip
@settings(max_examples=60)
def test_stores_hold_what_they_were_given_in_the_pages_that_it_takes(
    kind: str, shape: Shape, budget: int | None, seed: int, acts: list[Any]
) -> None:
    """Whatever is written, forked, forgotten and dropped in whatever order: nobody sees another's writes, pages are
    counted once, none is lost, and what the budget refuses has changed nothing."""
    world = World(kind, shape, budget, seed)
    for act in acts:
        world.act(*act)
        assert world.pool.nbytes == world.nbytes()
    world.check()
    assert world.pool.peak_nbytes == world.peak
    world.stores.clear()
    gc.collect()
    assert world.pool.nbytes == 0
