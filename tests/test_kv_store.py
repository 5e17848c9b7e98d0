"""The cache's storage as a contract: both twins refuse the same mistakes alike."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mixkv.kernels import LayerFormat, open_backend
from mixkv.kernels.errors import ConfigError, InputError, OutOfMemoryError

KINDS = ["reference", *["native"] * (importlib.util.find_spec("mixkv.kernels._native") is not None)]
S, N_CTX, TILES, HEADS, DIM = 3, 200, 4, 2, 32
"""Sinks, context, ring slots (64 positions) of the store that is misused; it holds 83 positions, 3 .. 51 also cold."""


def make(kind: str, **changes: Any) -> Any:
    shape = {
        "n_kv_heads": HEADS,
        "head_dim_k": DIM,
        "head_dim_v": 16,
        "n_ctx": N_CTX,
        "sink_tokens": S,
        "hot_tiles": TILES,
    }
    return open_backend(2, kind=kind).KVStore([LayerFormat()] * 2, **shape | changes)


def kind_of(store: Any) -> str:
    return "native" if "native" in type(store).__module__ else "reference"


def rows(n: int, width: int = DIM, heads: int = HEADS, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(n).standard_normal((n, heads, width)).astype(dtype)


def filled(kind: str) -> Any:
    """Positions 0 .. 83 in three writes, tiles up to 51 cold: the ring holds 19 .. 83."""
    store = make(kind)
    for start, stop in ((0, 35), (35, 67), (67, 83)):
        n = stop - start
        store.write(0, rows(n), rows(n, 16), start)
        if stop > 35:
            store.quantize(0, {67: 3, 83: 35}[stop], {67: 35, 83: 51}[stop])
    return store


def hot(*values: int) -> Any:
    return np.array(values, np.int64)


F16 = np.float16
MISUSE: dict[str, Callable[[Any], object]] = {
    "write: layer past the last": lambda s: s.write(2, rows(1), rows(1, 16), 83),
    "write: negative layer": lambda s: s.write(-1, rows(1), rows(1, 16), 83),
    "write: layer beyond 64 bits": lambda s: s.write(1 << 70, rows(1), rows(1, 16), 83),
    "write: negative position": lambda s: s.write(0, rows(1), rows(1, 16), -1),
    "write: position beyond 64 bits": lambda s: s.write(0, rows(1), rows(1, 16), 1 << 64),
    "write: past the context": lambda s: s.write(0, rows(2), rows(2, 16), N_CTX - 1),
    "write: nothing, past the context": lambda s: s.write(0, rows(0), rows(0, 16), N_CTX + 1),
    "write: more than the ring": lambda s: s.write(0, rows(66), rows(66, 16), 83),
    "write: k too wide": lambda s: s.write(0, rows(1, 33), rows(1, 16), 83),
    "write: v as wide as k": lambda s: s.write(0, rows(1), rows(1), 83),
    "write: a head too few": lambda s: s.write(0, rows(1, heads=1), rows(1, 16), 83),
    "write: v shorter than k": lambda s: s.write(0, rows(2), rows(1, 16), 83),
    "write: float64": lambda s: s.write(0, rows(1, dtype=np.float64), rows(1, 16), 83),
    "write: two dimensions": lambda s: s.write(0, rows(1)[0], rows(1, 16), 83),
    "write: no array": lambda s: s.write(0, [[[0.0] * DIM] * HEADS], rows(1, 16), 83),
    "write: every other row": lambda s: s.write(0, rows(4)[::2], rows(2, 16), 83),
    "quantize: layer": lambda s: s.quantize(5, 51, 67),
    "quantize: half a tile": lambda s: s.quantize(0, 51, 59),
    "quantize: between tiles": lambda s: s.quantize(0, 52, 68),
    "quantize: sinks": lambda s: s.quantize(0, -13, 3),
    "quantize: past the context": lambda s: s.quantize(0, 51, 51 + 160),
    "quantize: beyond 64 bits": lambda s: s.quantize(0, 51, 51 + (16 << 70)),
    "quantize: never written": lambda s: s.quantize(0, 83, 99),
    "quantize: overwritten in the ring": lambda s: s.quantize(0, 3, 19),
    "quantize: of another layer": lambda s: s.quantize(1, 51, 67),
    "rehydrate: never quantized": lambda s: s.rehydrate(0, 51, 67),
    "rehydrate: half a tile": lambda s: s.rehydrate(0, 3, 11),
    "rehydrate: past the context": lambda s: s.rehydrate(0, 195, 211),
    "rehydrate: more than the ring": lambda s: s.rehydrate(0, 3, 3 + 80),
    "get_hot: negative": lambda s: s.get_hot(0, -1, 4),
    "get_hot: past the context": lambda s: s.get_hot(0, 80, N_CTX + 1),
    "get_hot: never written": lambda s: s.get_hot(0, 80, 84),
    "get_hot: overwritten in the ring": lambda s: s.get_hot(0, 18, 20),
    "get_hot: layer": lambda s: s.get_hot(2, 80, 82),
    "get_cold: sinks": lambda s: s.get_cold(0, 0, 16),
    "get_cold: never quantized": lambda s: s.get_cold(0, 35, 52),
    "get_cold: past the context": lambda s: s.get_cold(0, 35, N_CTX + 16),
    "set_hot: float32 for float16": lambda s: s.set_hot(0, 0, rows(1), rows(1, 16)),
    "set_hot: past the context": lambda s: s.set_hot(0, 199, rows(2, dtype=F16), rows(2, 16, dtype=F16)),
    "set_hot: negative": lambda s: s.set_hot(0, -2, rows(1, dtype=F16), rows(1, 16, dtype=F16)),
    "set_hot: more than the ring": lambda s: s.set_hot(0, 3, rows(65, dtype=F16), rows(65, 16, dtype=F16)),
    "set_hot: v shorter than k": lambda s: s.set_hot(0, 3, rows(2, dtype=F16), rows(1, 16, dtype=F16)),
    "set_hot: no array": lambda s: s.set_hot(0, 3, None, None),
    "set_cold: sinks": lambda s: s.set_cold(0, 2, np.zeros((1, 2, 18), np.uint8), np.zeros((1, 2, 18), np.uint8)),
    "set_cold: signed": lambda s: s.set_cold(0, 3, np.zeros((1, 2, 18), np.int8), np.zeros((1, 2, 18), np.int8)),
    "set_cold: wide rows": lambda s: s.set_cold(0, 3, np.zeros((1, 2, 34), np.uint8), np.zeros((1, 2, 34), np.uint8)),
    "set_cold: past the context": lambda s: s.set_cold(0, 200, *[np.zeros((1, 2, 18), np.uint8)] * 2),
    "attend: heads that do not divide": lambda s: s.attend(0, rows(1, heads=3), 82, hot(51), scale=1.0),
    "attend: no heads": lambda s: s.attend(0, rows(1, heads=0), 82, hot(51), scale=1.0),
    "attend: width": lambda s: s.attend(0, rows(1, 16), 82, hot(51), scale=1.0),
    "attend: hot_from of another length": lambda s: s.attend(0, rows(1), 82, hot(51, 51), scale=1.0),
    "attend: hot_from in 32 bits": lambda s: s.attend(0, rows(1), 82, np.array([51], np.int32), scale=1.0),
    "attend: hot_from inside a tile": lambda s: s.attend(0, rows(1), 82, hot(52), scale=1.0),
    "attend: past the context": lambda s: s.attend(0, rows(1), N_CTX, hot(51), scale=1.0),
    "attend: negative position": lambda s: s.attend(0, rows(1), -1, hot(51), scale=1.0),
    "attend: negative window": lambda s: s.attend(0, rows(1), 82, hot(51), scale=1.0, window=-1),
    "attend: keys never written": lambda s: s.attend(0, rows(1), 83, hot(51), scale=1.0),
    "attend: tiles never quantized": lambda s: s.attend(0, rows(1), 82, hot(67), scale=1.0),
    "attend: tiles no longer hot": lambda s: s.attend(0, rows(1), 82, hot(3), scale=1.0),
    "attend: empty layer": lambda s: s.attend(1, rows(1), 0, hot(3), scale=1.0),
    "attend: sinks for other heads": lambda s: s.attend(
        0, rows(1), 82, hot(51), scale=1.0, sinks=np.ones(3, np.float32)
    ),
    "attend: float64 sinks": lambda s: s.attend(0, rows(1), 82, hot(51), scale=1.0, sinks=np.ones(2)),
    "attend: a sink for each token": lambda s: s.attend(0, rows(1), 82, hot(51), scale=1.0, sinks=np.ones((1, 2), F16)),
    "attend: every other sink": lambda s: s.attend(
        0, rows(1), 82, hot(51), scale=1.0, sinks=np.ones(4, np.float32)[::2]
    ),
    "reserve: past the context": lambda s: s.reserve(83, N_CTX + 1, 0, 0),
    "reserve: negative": lambda s: s.reserve(-1, 3, 0, 0),
    "reserve: half a tile": lambda s: s.reserve(0, 0, 51, 59),
    "reserve: cold sinks": lambda s: s.reserve(0, 0, 0, 16),
    "trim: negative": lambda s: s.trim(-1, 0),
    "copy_ring: negative": lambda s: s.copy_ring(-1, 5),
    "take_ring: of another pool": lambda s: s.take_ring(make(kind_of(s))),
    "step: k and q of other lengths": lambda s: s.step(0, rows(1), rows(2), rows(2, 16), 83, hot(51), 0, 0, scale=1.0),
    "step: tiles": lambda s: s.step(0, rows(1), rows(1), rows(1, 16), 83, hot(51), 51, 60, scale=1.0),
    "step: a gap before it": lambda s: s.step(0, rows(1), rows(1), rows(1, 16), 90, hot(51), 0, 0, scale=1.0),
    "step: sinks for other heads": lambda s: s.step(
        0, rows(1), rows(1), rows(1, 16), 83, hot(51), 0, 0, scale=1.0, sinks=np.ones(1, np.float32)
    ),
    "step: float64 queries": lambda s: s.step(
        0, rows(1, dtype=np.float64), rows(1), rows(1, 16), 83, hot(51), 0, 0, scale=1.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_one_error_and_the_store_works_on(kind: str, name: str) -> None:
    """A ring of no slots divided by zero, a write past the ring aborted, and NumPy took what native code refused."""
    store, control = filled(kind), filled(kind)
    with pytest.raises(InputError) as caught:
        MISUSE[name](store)
    assert re.match(r"KVStore\.\w+: ", str(caught.value))
    for s in (store, control):
        s.write(0, rows(16), rows(16, 16), 83)
        s.quantize(0, 51, 67)
    results = [s.attend(0, rows(16, heads=4), 83, hot(*[67] * 16), scale=0.2) for s in (store, control)]
    np.testing.assert_array_equal(*results)
    for a, b in zip(store.get_cold(0, 3, 67), control.get_cold(0, 3, 67), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [
    {"hot_tiles": 0}, {"hot_tiles": -1}, {"n_ctx": 0}, {"n_ctx": 1 << 70}, {"sink_tokens": -1}, {"n_kv_heads": 0},
    {"head_dim_k": 0}, {"head_dim_v": 1025},
], ids=str)  # fmt: skip
def test_sizes_that_cannot_be(kind: str, change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        make(kind, **change)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_any_machine_has(kind: str) -> None:
    with pytest.raises(OutOfMemoryError):
        make(kind, n_ctx=1 << 40, head_dim_k=1024, n_kv_heads=1 << 20)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_an_integer_is_a_type_error(kind: str) -> None:
    for call in (
        lambda s: s.write("0", rows(1), rows(1, 16), 83),
        lambda s: s.quantize(0, 51.0, 67.0),
        lambda s: s.get_hot(0, 80, None),
    ):
        with pytest.raises(TypeError):
            call(filled(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_ranges_are_no_mistake(kind: str) -> None:
    """The engine asks for tiles that turn cold where there are none, and then the ends may be crossed."""
    store = filled(kind)
    store.quantize(0, 51, 3)
    store.rehydrate(0, 3, 3)
    store.write(0, rows(0), rows(0, 16), 83)
    assert store.get_hot(0, 80, 7)[0].shape == (0, HEADS, DIM)
    assert store.get_cold(0, 35, 35)[1].shape == (0, HEADS, 18)
    assert store.attend(0, rows(0), 83, hot(), scale=1.0).shape == (0, HEADS, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_may_hold_sinks_and_others(kind: str) -> None:
    """NumPy gave the sinks alone, and wrote them alone."""
    store = make(kind)
    k, v = rows(20, dtype=F16), rows(20, 16, dtype=F16)
    store.set_hot(0, 0, k, v)
    for got, wanted in zip(store.get_hot(0, 0, 20), (k, v), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_that_is_used_again_holds_its_new_tile_alone(kind: str) -> None:
    """One token of a new tile ends the old tile's time, whose other rows would be read as the new one's."""
    store = filled(kind)
    store.write(0, rows(1), rows(1, 16), 83)
    for start in (19, 34):
        with pytest.raises(InputError):
            store.get_hot(0, start, start + 1)
    store.get_hot(0, 83, 84)
    twin = store.copy()
    with pytest.raises(InputError):
        twin.get_hot(0, 34, 35)
    twin.get_hot(0, 35, 84)


@pytest.mark.parametrize("kind", KINDS)
def test_one_form_where_both_are_alike(kind: str) -> None:
    """A float cache whose ring holds every position answers to all orders as one with two areas does."""
    shape = {"n_kv_heads": 2, "head_dim_k": DIM, "head_dim_v": 16, "n_ctx": 80, "sink_tokens": 3}
    layers = [LayerFormat("f16", "f32", "f16", "f32", rotate_k=True)]
    one, two = (open_backend(1, kind=kind).KVStore(layers, **shape, hot_tiles=n) for n in (5, 4))
    outs = []
    for store in (one, two):
        store.write(0, rows(40), rows(40, 16), 0)
        store.quantize(0, 3, 19)
        store = store.copy()
        store.set_cold(0, 5, *(x[::-1].copy() for x in store.get_cold(0, 5, 9)))
        store.rehydrate(0, 3, 19)
        outs.append([store.attend(0, rows(1), 39, hot(at), scale=0.3) for at in (3, 19)])
        outs[-1] += [*store.get_cold(0, 3, 19), *store.get_hot(0, 0, 40)]
    for a, b in zip(*outs, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError):
        one.get_cold(0, 35, 41)
