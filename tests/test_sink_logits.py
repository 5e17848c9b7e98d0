"""A learned logit of each head beside the keys (gpt-oss): what attention starts from, in both twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_oracle import nmse
from native_tools import Run, first_hot, native_backend, same_bits

from mixkv.kernels import open_backend
from mixkv.kernels.formats import LayerFormat

REFERENCE: Any = open_backend(1, kind="reference")
FORMATS = [LayerFormat("f16", "f16"), LayerFormat("q4_0", "q4_0", rotate_k=True, rotate_v=True)]
OPTIONS: list[dict[str, Any]] = [{}, {"window": 19}, {"softcap": 3.0}, {"max_bias": 8.0}]
SINKS = np.array([0.5, -30, 2.5, 30], np.float32)


def run(backend: Any, fmt: LayerFormat = FORMATS[0], n: int = 90, sinks: Any = SINKS, **options: Any) -> Run:
    return Run(backend.KVStore, fmt, n=n, window=33, options={"sinks": sinks, **options})


@pytest.mark.parametrize("fmt", FORMATS, ids=["f16", "cold"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
class TestAgainstFloat64:
    """Sinks far below the scores, among them and far above them."""

    def test_numpy(self, fmt: LayerFormat, options: dict[str, Any]) -> None:
        wanted = run(REFERENCE, fmt, **options)
        store = wanted.store()
        assert nmse(wanted.outputs(store, 13), wanted.exact(store)) <= 1e-10

    def test_native(self, fmt: LayerFormat, options: dict[str, Any], backend: Any) -> None:
        wanted = run(backend, fmt, **options)
        store = wanted.store()
        assert nmse(wanted.outputs(store, 13), wanted.exact(store)) <= 1e-5


@pytest.mark.parametrize("fmt", FORMATS, ids=["f16", "cold"])
def test_a_sink_counts_once_however_the_work_is_cut(fmt: LayerFormat, backend: Any) -> None:
    """Prompts, single tokens whose chunks of keys are tasks of their own, and any number of threads: the same bits."""
    n = 1300  # three chunks of keys
    wanted = run(backend, fmt, n)
    whole = wanted.outputs(wanted.store(), n)
    assert nmse(whole[-3:], wanted.exact(store := filled(wanted), first=n - 3)) <= 1e-5
    assert same_bits(attend_last(wanted, store, 1), whole[-1:])
    for threads in (1, 2, 3):
        other = run(native_backend(threads, isa=backend.isa), fmt, n)
        store = filled(other)
        for last in (1, 2, 40):
            assert same_bits(attend_last(other, store, last), whole[-last:]), f"{threads} threads, {last} tokens"


def filled(r: Run) -> Any:
    store = r.store()
    r.outputs(store, 400)
    return store


def attend_last(r: Run, store: Any, n: int) -> Any:
    """The last n queries once more."""
    hot = first_hot(r.n - n, n, r.window, r.sinks)
    return store.attend(0, r.q[-n:], r.n - n, hot, scale=r.scale, **r.options)


def in_two(r: Run) -> Any:
    """All tokens but one, then that one."""
    store = r.store()
    return np.concatenate([r.feed(store, 0, r.n - 1), r.feed(store, r.n - 1, r.n)])


@pytest.mark.parametrize("n", [40, 700])
def test_extreme_sinks(n: int, isa: str) -> None:
    """Nothing of a head whose sink is above everything, all of one whose sink is -inf (to the bit what it is without
    sinks); NaN stays in its head. Both twins alike."""
    for backend in (REFERENCE, native_backend(2, isa=isa)):
        plain = in_two(run(backend, n=n, sinks=None))
        for sinks in ([-np.inf, 3e38, np.nan, -3e38], [1e4, -1e4, np.nan, -np.inf]):
            out = in_two(run(backend, n=n, sinks=np.array(sinks, np.float32)))
            for head, sink in enumerate(sinks):
                want = np.nan if np.isnan(sink) else 0 if sink > 0 else plain[:, head]
                np.testing.assert_array_equal(out[:, head], np.broadcast_to(want, out[:, head].shape))


def test_sinks_beside_keys_that_count_for_nothing(isa: str) -> None:
    """All scores -inf: every sink has all the weight there is, and NaN is not hidden by that."""
    for backend in (REFERENCE, native_backend(2, isa=isa)):
        r = run(backend, n=40, sinks=np.array([0.5, -np.inf, np.nan, 30], np.float32))
        r.k[:], r.q[:] = -np.inf, 1
        out = in_two(r)
        assert np.isnan(out[:, 2]).all() and not out[:, [0, 1, 3]].any()
