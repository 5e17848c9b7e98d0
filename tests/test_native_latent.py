"""Rows that are key and value at once, and matrices of each head's own: the native pieces against float64, their NumPy
twins, and themselves cut in other ways. Every case runs on each instruction set of this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from attention_oracle import nmse
from conftest import ISAS
from gguf import GGMLQuantizationType as T
from native_tools import Run, first_hot, hadamard_matrix, native_backend, poison_freed_arrays, same_bits
from weight_tools import random_raw

from mixkv.kernels import open_backend
from mixkv.kernels.errors import ConfigError, InputError
from mixkv.kernels.formats import LayerFormat, decode
from mixkv.kernels.numeric import hadamard

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")
numpy: Any = open_backend(1, kind="reference")

FORMATS = {
    "f32": LayerFormat("f32", "f32", "f32", "f32"),
    "f16": LayerFormat("f16", "f16"),
    "q8_0": LayerFormat("q8_0", "q8_0"),
    "q8_0 rotated": LayerFormat("q8_0", "q8_0", rotate_k=True, rotate_v=True),
    "q4_0": LayerFormat("q4_0", "q4_0"),
    "q4_0 rotated, f32": LayerFormat("q4_0", "q4_0", "f32", "f32", True, True, "unbiased"),
}
SIZES = {"DeepSeek": (576, 512), "odd": (24, 16), "one block": (48, 32), "width 8": (40, 24), "all of it": (64, 64)}


@pytest.fixture(scope="module", params=ISAS)
def backend(request: pytest.FixtureRequest) -> Any:
    found = native_backend(2, isa=request.param)
    found.poison_scratch(True)
    return found


@dataclass
class Latent(Run):
    """Values are the first head_dim_v numbers of keys."""

    n_kv_heads: int = 1
    group: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.v = np.empty((self.n, self.n_kv_heads, 0), np.float32)

    def shape(self) -> dict[str, int]:
        return super().shape() | {"v_in_k": True}

    def wanted(self, store: Any) -> np.ndarray:
        """In float64, over the keys that the store gives out, turned back."""
        hot_from, s = first_hot(0, self.n, self.window, self.sinks), self.sinks
        stop, turn = int(hot_from[-1]), np.eye(self.head_dim)
        if self.fmt.rotate_k:
            turn = hadamard_matrix(self.head_dim)
        hot = np.concatenate([store.get_hot(0, 0, s)[0], store.get_hot(0, s, self.n)[0]]).astype(np.float64)[:, 0]
        cold = hot.copy()
        cold[s:stop] = decode(store.get_cold(0, s, stop)[0], self.fmt.type_k, self.head_dim)[:, 0]
        out = np.zeros((self.n, self.group, self.head_dim_v))
        for i in range(self.n):
            j = np.arange(i + 1)
            keys = np.where(((j >= s) & (j < hot_from[i]))[:, None], cold[: i + 1], hot[: i + 1]) @ turn
            score = self.q[i].astype(np.float64) @ keys.T * self.scale
            weight = np.exp(score - score.max(axis=1, keepdims=True))
            out[i] = weight @ keys[:, : self.head_dim_v] / weight.sum(axis=1, keepdims=True)
        return out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_value_is_the_beginning_of_its_key(backend: Any, kind: str, sizes: str) -> None:
    """Whatever form a tile is read in, and however it is rotated: values that are not what their keys begin with, or
    that are turned back in other blocks than they were turned in, are far off."""
    k, v = SIZES[sizes]
    run = Latent(backend.KVStore, FORMATS[kind], head_dim=k, head_dim_v=v)
    store = run.store()
    got = run.outputs(store, run.n)
    assert nmse(got, run.wanted(store)) < (2e-6 if "q4_0" in kind else 1e-7)
    twin_run = replace(run, store_class=numpy.KVStore)
    twin = twin_run.store()
    assert nmse(got, twin_run.outputs(twin, 50).astype(np.float64)) < 1e-6
    for mine, theirs in zip(store.get_cold(0, 5, 69), twin.get_cold(0, 5, 69), strict=True):
        assert mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()
    assert store.get_hot(0, 80, 90)[1].shape == twin.get_hot(0, 80, 90)[1].shape == (10, 1, 0)
    for cut in (1, 7, 64):
        assert same_bits(run.outputs(run.store(), cut), got), f"pieces of {cut}"
    again = replace(run, store_class=native_backend(3, isa=backend.isa).KVStore)
    assert same_bits(again.outputs(again.store(), 40), got)


def test_many_query_heads_and_sequences_in_one_call(backend: Any) -> None:
    """128 heads read a tile that is laid out once; the bits are those of each sequence alone."""
    fmt = FORMATS["q4_0 rotated, f32"]
    runs = [Latent(backend.KVStore, fmt, n=n, group=128, head_dim=72, head_dim_v=64, seed=n) for n in (40, 90)]
    alone = [run.outputs(run.store(), run.n) for run in runs]
    stores, orders = [run.store() for run in runs], []
    for run in runs:
        hot = first_hot(0, run.n, run.window, run.sinks)
        orders.append((0, hot, run.sinks, int(hot[-1])))
    rows = [np.concatenate([getattr(run, side) for run in runs]) for side in "qkv"]
    got = backend.step_batch(0, stores, *rows, orders, scale=runs[0].scale)
    assert same_bits(got, np.concatenate(alone))
    assert nmse(got[:40], runs[0].wanted(stores[0])) < 2e-6


@pytest.mark.parametrize("make", ["native", "numpy"])
def test_rows_go_out_and_in_without_values(backend: Any, make: str) -> None:
    """Copies, rehydration, and what sessions carry: a row has one side."""
    run = Latent((backend if make == "native" else numpy).KVStore, FORMATS["q4_0"], head_dim=48, head_dim_v=32)
    store = run.store()
    wanted = run.outputs(store, 50)
    twin, other = store.copy(), run.store()
    s, stop = run.sinks, int(first_hot(0, run.n, run.window, run.sinks)[-1])
    other.set_hot(0, 0, *store.get_hot(0, 0, s))
    other.set_cold(0, s, *store.get_cold(0, s, stop))
    other.set_hot(0, stop, *store.get_hot(0, stop, run.n))
    hot = first_hot(run.n - 1, 1, run.window, run.sinks)
    for each in (twin, other):
        got = each.attend(0, run.q[-1:], run.n - 1, hot, scale=run.scale)
        assert nmse(got, wanted[-1:].astype(np.float64)) < 1e-12
    other.rehydrate(0, s, s + 32)
    back, v = other.get_hot(0, s, s + 32)
    rows = decode(store.get_cold(0, s, s + 32)[0], "q4_0", 48)
    assert v.shape == (32, 1, 0) and back.tobytes() == rows.astype(back.dtype).tobytes()


@pytest.mark.parametrize("make", ["native", "numpy"])
def test_a_page_has_no_room_for_values(backend: Any, make: str) -> None:
    """The row is stored once: 16 positions of 48 FP16 numbers in a tile, 4 tiles in a page."""
    found = backend if make == "native" else numpy
    pool = found.page_pool()
    run = Latent(found.KVStore, FORMATS["f16"], n=40, head_dim=48, head_dim_v=32)
    store = found.KVStore([run.fmt], **run.shape(), pool=pool)
    store.write(0, run.k[5:6], run.v[5:6], 5)
    assert pool.nbytes == 64 * 48 * 2


@pytest.mark.parametrize("make", ["native", "numpy"])
def test_what_cannot_be_is_refused(backend: Any, make: str) -> None:
    found = backend if make == "native" else numpy
    shape = {"n_kv_heads": 1, "n_ctx": 64, "sink_tokens": 0, "hot_tiles": 4, "v_in_k": True}
    with pytest.raises(ConfigError, match="40 numbers are no part of keys of 32"):
        found.KVStore([LayerFormat("f16", "f16")], head_dim_k=32, head_dim_v=40, **shape)
    with pytest.raises(ConfigError, match="keys of 32 numbers cannot be rotated, 20 of which"):
        found.KVStore([FORMATS["q8_0 rotated"]], head_dim_k=32, head_dim_v=20, **shape)
    store = found.KVStore([FORMATS["q8_0"]], head_dim_k=32, head_dim_v=20, **shape)
    k, v = np.ones((4, 1, 32), np.float32), np.ones((4, 1, 20), np.float32)
    with pytest.raises(InputError):
        store.write(0, k, v, 0)
    with pytest.raises(InputError):
        store.set_hot(0, 0, k.astype(np.float16), v.astype(np.float16))
    store.write(0, k, v[..., :0].copy(), 0)
    assert store.get_hot(0, 0, 4)[1].shape == (4, 1, 0)


def test_the_rotation_is_its_own_inverse_in_any_blocks() -> None:
    x = np.random.default_rng(0).standard_normal((7, 2, 48), np.float32)
    np.testing.assert_allclose(hadamard(hadamard(x, 8), 8), x, atol=1e-6)
    np.testing.assert_array_equal(hadamard(x, 16), hadamard(x))
    np.testing.assert_allclose(hadamard(x, 16)[..., :32], hadamard(x[..., :32].copy(), 16), atol=1e-6)


HEADS = [
    (T.F32, 3, 24, 40, False), (T.F32, 16, 512, 128, False), (T.F16, 2, 33, 64, False), (T.Q8_0, 5, 40, 96, False),
    (T.Q4_K, 3, 70, 512, False), (T.Q8_0, 5, 40, 96, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "heads", "rows", "cols", "exact"), HEADS)
def test_every_head_has_its_own_matrix(backend: Any, kind: T, heads: int, rows: int, cols: int, exact: bool) -> None:
    """Against the twin, and to the bit against the same rows as a product of their own, alone or among others."""
    rng = np.random.default_rng(rows)
    raw = random_raw(kind, heads * rows, cols, rng, std=cols**-0.5).reshape(heads, rows, -1)
    x = rng.standard_normal((37, heads, cols), np.float32)

    def piece(of: Any) -> Any:
        return of.HeadLinear(w=of.pack_experts(raw, int(kind), cols, exact=exact))

    poison_freed_arrays(backend, (37, heads, rows))
    fast, got = piece(backend), piece(backend)(x)
    wanted = piece(numpy)(x)
    rounded = kind in (T.Q8_0, T.Q4_K) and not exact
    assert got.shape == (37, heads, rows) and nmse(got, wanted.astype(np.float64)) < (5e-4 if rounded else 1e-10)
    for head in range(heads):
        alone = backend.linear(x[:, head].copy(), backend.pack(raw[head], int(kind), cols, exact=exact))
        assert same_bits(got[:, head].copy(), alone), f"head {head}"
    for m in (1, 2, 9, 20):
        assert same_bits(fast(x[-m:].copy()), got[-m:].copy()), f"{m} tokens"
    assert same_bits(piece(native_backend(1, isa=backend.isa))(x), got)
    many = np.tile(x, (30, 1, 1))
    assert same_bits(fast(many), np.tile(got, (30, 1, 1))), "more tokens than are held at a time"
    assert fast(x[:0]).shape == (0, heads, rows)


def test_rows_of_another_shape_are_refused(backend: Any) -> None:
    fast = backend.HeadLinear(w=backend.pack_experts(np.zeros((3, 8, 64), np.uint8), int(T.F32), 16))
    for shape in ((2, 4, 16), (2, 3, 17)):
        with pytest.raises(InputError):
            fast(np.zeros(shape, np.float32))
    with pytest.raises(TypeError):
        backend.HeadLinear(w=None)
