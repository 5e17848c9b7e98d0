"""Native pages on every instruction set: what is shared, recycled or full of NaN beforehand changes no bit."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from native_tools import F32, Run, native_backend, same_bits

from mixkv.kernels.formats import LayerFormat

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")

FORMATS = [
    LayerFormat("q4_0", "q4_0", rotate_k=True, rotate_v=True),
    LayerFormat("q8_0", "f16", hot_k="f32"),
    LayerFormat("f16", "f16"),
    LayerFormat("f32", "q8_0", hot_v="f32"),
]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("head_dim", [10, 64, 80])
def test_pages_may_hold_anything_before(isa: str, fmt: LayerFormat, head_dim: int) -> None:
    """Fresh memory is zero; recycled memory has another sequence's keys, and 0 times NaN is no 0: keys 10 wide lie in
    rows of 12, whose last two were never written."""
    clean, poisoned = (native_backend(isa=isa) for _ in range(2))
    poisoned.poison_scratch(True)
    for window in (0, 33):
        run = Run(None, fmt, n=150, head_dim=head_dim, window=33, options={"window": window} if window else {})
        outs = [
            np.concatenate([run.feed(store, a, b) for a, b in pairwise([0, 67, 130, 131, 148, 150])])
            for store in (on.KVStore([fmt], **run.shape()) for on in (clean, poisoned))
        ]
        assert same_bits(*outs) and np.isfinite(outs[0]).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_recycled_pages_are_as_good_as_new(isa: str, fmt: LayerFormat) -> None:
    """A hundred sequences one after the other in the same pages, the first of them full of NaN and infinity."""
    on = native_backend(isa=isa)
    pool = on.page_pool()
    run = Run(None, fmt, n=150, head_dim=10)
    wanted = run.outputs(on.KVStore([fmt], **run.shape()), 50)
    broken = Run(None, fmt, n=150, head_dim=10)
    broken.k[::2], broken.v[::3] = np.nan, np.inf
    for i in range(100):
        got = (broken if i == 0 else run).outputs(on.KVStore([fmt], **run.shape(), pool=pool), 50)
        assert i == 0 or same_bits(got, wanted)
    gc.collect()
    assert pool.nbytes == 0 < pool.peak_nbytes


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_forks_are_independent_to_the_last_bit(backend: Any, fmt: LayerFormat) -> None:
    """Three forks of a prefix go on in turns, each with tokens of its own, as sequences that never forked do."""
    runs = [Run(backend.KVStore, fmt, n=700, head_dim=32, group=1, hot_tiles=11) for _ in range(3)]
    for i, run in enumerate(runs[1:]):
        for x in (run.q, run.k, run.v):
            x[600:] = np.random.default_rng(i + 1).standard_normal(x[600:].shape)

    def goes_on(run: Run, store: Any) -> list[F32]:
        return [run.feed(store, a, b) for a, b in pairwise([600, 601, 633, 640, 700])]

    def prefix() -> Any:
        store = runs[0].store()
        for a, b in pairwise(range(0, 601, 100)):
            runs[0].feed(store, a, b)
        return store

    wanted = [goes_on(run, prefix()) for run in runs]
    store = prefix()
    forks = [store, store.copy(), store.copy().copy()]
    for i, (a, b) in enumerate(pairwise([600, 601, 633, 640, 700])):
        for j in (2, 0, 1):
            assert same_bits(runs[j].feed(forks[j], a, b), wanted[j][i])
    for fork, run in zip(forks, runs, strict=True):
        for got, want in zip(fork.get_cold(0, 5, 581), prefix().get_cold(0, 5, 565), strict=True):
            np.testing.assert_array_equal(got[: len(want)], want)
        np.testing.assert_array_equal(fork.get_hot(0, 699, 700)[1][0], runs_hot(run, backend))


def runs_hot(run: Run, backend: Any) -> Any:
    """The last token's V as a fresh store has it."""
    store = backend.KVStore([run.fmt], **run.shape())
    store.write(0, run.k[-1:], run.v[-1:], 699)
    return store.get_hot(0, 699, 700)[1][0]
