"""A layer's step of several sequences, in NumPy: one after the other (the native twin does them as one job)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.state import F32
from mixkv.kernels.store import KVStore
from mixkv.kernels.store_checks import array, require

I64 = NDArray[np.int64]


def step_batch(
    layer: int, stores: Sequence[KVStore], q: F32, k: F32, v: F32, orders: Sequence[tuple[int, I64, int, int]], *,
    scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
) -> F32:  # fmt: skip
    """See contract.Backend."""
    what = "step_batch"
    for name, rows in (("q", q), ("k", k), ("v", v)):
        array(rows, 3, np.float32, what, name)
    require(len(q) == len(k) == len(v), what, "q, k and v differ in length")
    require(len(stores) == len(orders), what, "there are not as many orders as stores")
    require(len({id(s) for s in stores}) == len(stores), what, "a store is there twice")
    for store, order in zip(stores, orders, strict=True):
        if not isinstance(store, KVStore):
            raise TypeError("step_batch: a store is not one of this backend's")
        require(len(order) == 4, what, "an order is (pos, hot_from, cold_from, cold_to)")
        array(order[1], 1, np.int64, what, "hot_from")
    ends = np.cumsum([0, *(len(order[1]) for order in orders)])
    require(ends[-1] <= len(q), what, "the orders have more queries than q has")
    require(ends[-1] >= len(q), what, "the orders have fewer queries than q has")
    parts = [slice(a, b) for a, b in pairwise(ends)]
    for store, order, at in zip(stores, orders, parts, strict=True):
        store.check_step(what, layer, q[at], k[at], v[at], *order, window=window, sinks=sinks)
    width = stores[0].head_dim_v if len(stores) else v.shape[2]
    require(all(s.head_dim_v == width for s in stores), what, "the stores' values are not equally wide")
    for store, (pos, hot_from, cold_from, cold_to) in zip(stores, orders, strict=True):
        store.reserve_step(layer, pos, len(hot_from), cold_from, cold_to)
    out = np.empty((len(q), q.shape[1], width), np.float32)
    for store, order, at in zip(stores, orders, parts, strict=True):
        out[at] = store.step(
            layer, q[at], k[at], v[at], *order, scale=scale, softcap=softcap, max_bias=max_bias, window=window,
            sinks=sinks,
        )  # fmt: skip
    return out
