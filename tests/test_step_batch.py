"""step_batch: one layer of several sequences as one job, to the last bit what each does alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from native_tools import F32, NATIVE_IS_BUILT, Run, first_hot, native_backend, same_bits

from mixkv.kernels import open_backend
from mixkv.kernels.errors import InputError, OutOfMemoryError
from mixkv.kernels.formats import LayerFormat

KINDS = ["reference", *["native"] * NATIVE_IS_BUILT]
Q4 = LayerFormat("q4_0", "q4_0", rotate_k=True, rotate_v=True, q4_scale="unbiased")
FORMATS = [Q4, LayerFormat("f16", "f16"), LayerFormat("q8_0", "f16", hot_v="f32"), LayerFormat("f32", "q4_0")]
OPTIONS = [{}, {"window": 100}, {"max_bias": 8.0}, {"softcap": 3.0}, {"sinks": np.array([0.5, -2, 3, 0], np.float32)}]


class Job:
    """A sequence that is fed [cuts[i], cuts[i + 1]) in step i, by itself or with others."""

    def __init__(self, rng: np.random.Generator, *, most: int, short: bool, options: dict[str, Any]) -> None:
        n = int(rng.integers(2, most))
        fmt = FORMATS[rng.integers(len(FORMATS))]
        sinks, window = int(rng.integers(0, 20)), int(rng.integers(0, 90))
        self.run = Run(None, fmt, n=n, sinks=sinks, window=window, seed=int(rng.integers(1 << 30)), options=options)
        steps = rng.integers(1, 9 if short else 200, 200).cumsum()
        start = max(0, n - 40) if short else 0
        self.cuts = [0, *[start] * (start > 0), *(start + s for s in steps if start + s < n), n]

    def order(self, i: int) -> tuple[slice, tuple[int, Any, int, int]]:
        a, b = self.cuts[i], self.cuts[i + 1]
        hot = first_hot(a, b - a, self.run.window, self.run.sinks)
        before = int(first_hot(a - 1, 1, self.run.window, self.run.sinks)[0]) if a else self.run.sinks
        return slice(a, b), (a, hot, before, int(hot[-1]))

    def alone(self, store: Any) -> list[F32]:
        return [self.run.feed(store, a, b) for a, b in pairwise(self.cuts)]


def together(backend: Any, jobs: list[Job], stores: list[Any], rng: np.random.Generator) -> list[list[F32]]:
    """Each step takes some of the jobs that are not done, in any order."""
    outs: list[list[F32]] = [[] for _ in jobs]
    while left := [i for i, job in enumerate(jobs) if len(outs[i]) < len(job.cuts) - 1]:
        some = [int(i) for i in rng.permutation(left)[: rng.integers(1, len(left) + 1)]]
        parts = [jobs[i].order(len(outs[i])) for i in some]
        q, k, v = (np.concatenate([getattr(jobs[i].run, x)[at] for i, (at, _) in zip(some, parts, strict=True)])
                   for x in "qkv")  # fmt: skip
        out = backend.step_batch(
            0, [stores[i] for i in some], q, k, v, [order for _, order in parts], scale=jobs[0].run.scale,
            **jobs[0].run.options,
        )  # fmt: skip
        ends = np.cumsum([0, *(len(order[1]) for _, order in parts)])
        for i, (a, b) in zip(some, pairwise(ends), strict=True):
            outs[i].append(out[a:b])
    return outs


@pytest.mark.parametrize("threads", [1, 5])
def test_a_batch_gives_each_sequence_its_own_bits(isa: str, threads: int) -> None:
    """Prompts and single tokens of sequences of all lengths and formats: short ones have one task, long ones one for
    each chunk of keys."""
    backend = native_backend(threads, isa=isa)
    backend.poison_scratch(True)
    for seed, options in enumerate(OPTIONS):
        rng = np.random.default_rng(seed)
        jobs = [Job(rng, most=1300, short=i % 2 == 0, options=options) for i in range(rng.integers(2, 6))]
        pool = backend.page_pool()
        wanted = [job.alone(backend.KVStore([job.run.fmt], **job.run.shape())) for job in jobs]
        stores = [backend.KVStore([job.run.fmt], **job.run.shape(), pool=pool) for job in jobs]
        for got, want in zip(together(backend, jobs, stores, rng), wanted, strict=True):
            assert len(got) == len(want) and all(map(same_bits, got, want))


def test_the_reference_takes_batches_too() -> None:
    backend, rng = open_backend(1, kind="reference"), np.random.default_rng(0)
    jobs = [Job(rng, most=150, short=i > 0, options={}) for i in range(3)]
    wanted = [job.alone(backend.KVStore([job.run.fmt], **job.run.shape())) for job in jobs]
    stores = [backend.KVStore([job.run.fmt], **job.run.shape()) for job in jobs]
    for got, want in zip(together(backend, jobs, stores, rng), wanted, strict=True):
        assert all(map(same_bits, got, want))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_cannot_be_are_refused_and_nothing_is_written(kind: str) -> None:
    backend = open_backend(2, kind=kind)
    run = Run(None, Q4, n=40)
    one, two = (backend.KVStore([Q4], **run.shape()) for _ in range(2))
    q, k, v = (x[:2].copy() for x in (run.q, run.k, run.v))
    first, second = [(0, np.array([5]), 5, 5)] * 2
    good: dict[str, Any] = {"layer": 0, "stores": [one, two], "q": q, "k": k, "v": v, "orders": [first, second]}
    for wrong in (
        {"layer": 1}, {"stores": [one]}, {"stores": [one, one]}, {"q": q[:1].copy()}, {"k": k[:1].copy()},
        {"q": q.astype(np.float64)}, {"orders": [first, (0, np.array([5, 5]), 5, 5)]},
        {"orders": [first, (0, second[1])]}, {"orders": [first, (60, np.array([5]), 5, 5)]},
        {"orders": [first, (0, np.array([5], np.int32), 5, 5)]},
        {"orders": [first, (0, np.array([5]), 5, 20)]}, {"stores": [one, two, two.copy()]},
        {"stores": [one], "orders": [first]}, {"sinks": np.zeros(3, np.float32)}, {"sinks": np.zeros(4)},
    ):  # fmt: skip
        with pytest.raises(InputError, match="step_batch"):
            backend.step_batch(**good | wrong, scale=1.0)
    for wrong in ({"stores": [one, None]}, {"stores": [one, "two"]}, {"orders": [first, ("0", np.array([5]), 5, 5)]}):
        with pytest.raises(TypeError):
            backend.step_batch(**good | wrong, scale=1.0)
    for store in (one, two):
        with pytest.raises(InputError):
            store.get_hot(0, 0, 1)
    assert backend.step_batch(0, [], q[:0], k[:0], v[:0], [], scale=1.0).shape == q[:0].shape
    assert backend.step_batch(**good, scale=1.0).shape == q.shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_beyond_the_budget_writes_nothing(kind: str) -> None:
    """The first sequence's token would have been written, and its caller told that the call failed."""
    backend = open_backend(2, kind=kind)
    run = Run(None, Q4, n=40)
    pool = backend.page_pool(3 * 64 * 2 * 128 * 2)
    stores = [backend.KVStore([Q4], **run.shape(), pool=pool) for _ in range(2)]
    q, k, v = (x[:40].copy() for x in (run.q, run.k, run.v))
    orders = [(0, np.full(20, 5), 5, 5)] * 2
    with pytest.raises(OutOfMemoryError):
        backend.step_batch(0, stores, q, k, v, orders, scale=1.0)
    for store in stores:
        with pytest.raises(InputError):
            store.get_hot(0, 0, 1)
