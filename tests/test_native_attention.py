"""Native attention on every instruction set of this machine: right against float64, the same bits however it runs.

Bounds of the specification, against float64 on the same (dequantized) values: NMSE 1e-6 where all is float, 1e-5 where
something is Q4_0. Same bits: the output for a query depends on its position and on the stored data, not on how the
prompt was cut, on threads, on the ring's size, or on a detour through get and set.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from attention_oracle import exact_attention, nmse
from native_tools import F32, Run, first_hot, native_backend, same_bits

from mixkv.kernels.formats import LayerFormat, QuantizedRows

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")

Q4 = LayerFormat("q4_0", "q4_0", rotate_k=True, rotate_v=True)
FORMATS = {
    "q4_0": Q4,
    "q8_0": LayerFormat("q8_0", "q8_0"),
    "f16": LayerFormat("f16", "f16", rotate_k=True),
    "q4_0/f16": LayerFormat("q4_0", "f16", hot_k="f32"),
    "f32/q4_0": LayerFormat("f32", "q4_0", hot_v="f32"),
    "q8_0/q4_0": LayerFormat("q8_0", "q4_0", rotate_v=True),
}


def bound(fmt: LayerFormat) -> float:
    return 1e-5 if "q4_0" in (fmt.type_k, fmt.type_v) else 1e-6


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
def test_right_for_every_shape(backend: Any, head_dim: int, group: int) -> None:
    """A prompt that mixes sinks, cold and hot keys, some tiles cold for late queries only."""
    for i, fmt in enumerate(FORMATS.values()):
        if i > 1 and group in (2, 8):
            continue  # the uncommon formats with every other group
        run = Run(backend.KVStore, fmt, n=70, head_dim=head_dim, group=group, window=20, seed=i)
        store = run.store()
        assert nmse(run.outputs(store, 70), run.exact(store)) <= bound(fmt)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63])
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "f16"])
def test_right_for_every_length(backend: Any, n: int, name: str) -> None:
    for window, sinks in ((0, 0), (1, 16), (40, 4)):
        run = Run(backend.KVStore, FORMATS[name], n=n, window=window, sinks=sinks, n_kv_heads=1, group=3)
        store = run.store()
        assert nmse(run.outputs(store, 7), run.exact(store)) <= bound(run.fmt)


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "f16"])
def test_right_over_many_chunks_of_keys(backend: Any, name: str) -> None:
    """The last query of a long prompt: 4,097 keys are nine chunks whose states are merged."""
    run = Run(backend.KVStore, FORMATS[name], n=4097, n_kv_heads=1, group=2, sinks=16, window=500)
    store = run.store()
    hot = first_hot(0, run.n, run.window, run.sinks)
    store.write(0, run.k, run.v, 0)
    store.quantize(0, run.sinks, int(hot[-1]))
    got = store.attend(0, run.q[-1:], run.n - 1, hot[-1:], scale=run.scale)
    assert nmse(got, run.exact(store, run.n - 1)) <= bound(run.fmt)


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"max_bias": 8.0}, {"window": 40}, {"window": 1},
                                     {"softcap": 3.0, "max_bias": 8.0, "window": 25}])  # fmt: skip
@pytest.mark.parametrize("name", ["q4_0", "f16"])
def test_softcap_alibi_and_sliding_window(backend: Any, options: dict[str, float], name: str) -> None:
    run = Run(backend.KVStore, FORMATS[name], n=120, group=3, n_kv_heads=2, options=options)
    store = run.store()
    assert nmse(run.outputs(store, 50), run.exact(store)) <= bound(run.fmt)


def test_head_dim_of_keys_and_values_may_differ(backend: Any) -> None:
    for dim_k, dim_v in ((96, 64), (40, 128), (8, 80)):
        run = Run(backend.KVStore, Q4, head_dim=dim_k, head_dim_v=dim_v)
        store = run.store()
        assert nmse(run.outputs(store, 60), run.exact(store)) <= 1e-5


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_outliers_and_sharp_scores(backend: Any, spread: float) -> None:
    """Queries with one large dimension and scores far apart: Q as integers must not lose the small dimensions."""
    run = Run(backend.KVStore, Q4, n=100, group=4)
    run.q *= spread
    run.q[:, :, 3] *= 20
    run.k[:, :, 5] *= 10
    store = run.store()
    assert nmse(run.outputs(store, 100), run.exact(store)) <= 1e-5


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize(("head_dim", "group"), [(64, 4), (80, 1), (8, 7)])
def test_same_bits_for_every_way_of_feeding(backend: Any, name: str, head_dim: int, group: int) -> None:
    run = Run(
        backend.KVStore,
        FORMATS[name],
        n=640 if name == "q4_0" and head_dim == 64 else 200,
        head_dim=head_dim,
        group=group,
    )
    wanted = run.outputs(run.store(), 512)
    for chunk, threads in ((1, 3), (7, 1), (32, 8), (512, 1), (512, 3)):
        other = replace(run, store_class=native_backend(threads, isa=backend.isa).KVStore)
        assert same_bits(other.outputs(other.store(), chunk), wanted), (chunk, threads)


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"max_bias": 8.0}, {"window": 50}])
def test_same_bits_with_options(backend: Any, options: dict[str, float]) -> None:
    run = Run(backend.KVStore, Q4, n=160, group=4, options=options)
    wanted = run.outputs(run.store(), 160)
    for chunk in (1, 7, 33):
        assert same_bits(run.outputs(run.store(), chunk), wanted), chunk


def test_same_bits_across_many_chunks_of_keys(backend: Any) -> None:
    """Beyond 512 keys the work is split by chunks of keys in decoding and by queries in a prompt."""
    run = Run(backend.KVStore, Q4, n=1300, n_kv_heads=1, group=4, sinks=16, window=64)
    whole = run.outputs(run.store(), 1300)
    for threads in (1, 2, 8):
        store = native_backend(threads, isa=backend.isa).KVStore([Q4], **run.shape())
        run.feed(store, 0, 1300)
        hot = first_hot(1290, 10, run.window, run.sinks)
        batch = store.attend(0, run.q[1290:], 1290, hot, scale=run.scale)
        assert same_bits(batch, whole[1290:])
        single = [
            store.attend(0, run.q[i : i + 1], i, hot[i - 1290 : i - 1289], scale=run.scale) for i in range(1290, 1300)
        ]
        assert same_bits(np.concatenate(single), whole[1290:])


def test_same_bits_after_copy_and_after_get_and_set(backend: Any) -> None:
    run = Run(backend.KVStore, Q4, n=150, group=4)
    store = run.store()
    wanted = run.outputs(store, 150)[120:]
    store = run.store()
    run.feed(store, 0, 120)
    restored, cold_stop = run.store(), int(first_hot(119, 1, run.window, run.sinks)[0])
    restored.set_hot(0, 0, *store.get_hot(0, 0, run.sinks))
    restored.set_cold(0, run.sinks, *store.get_cold(0, run.sinks, cold_stop))
    restored.set_hot(0, cold_stop, *store.get_hot(0, cold_stop, 120))
    for twin in (store.copy(), restored, store):
        assert same_bits(run.feed(twin, 120, 150), wanted)


@pytest.mark.parametrize(("n", "window"), [(400, 33), (2600, 1990)])
def test_same_bits_in_a_ring_that_is_just_large_enough(backend: Any, n: int, window: int) -> None:
    """hot_window + chunk + a tile of hot rows suffice; slots are used over and over. A ring of 128 tiles or more
    is laid out by chunks of 32, and may end in the middle of one."""
    run = Run(backend.KVStore, Q4, n=n, window=window, n_kv_heads=2, group=1)
    wanted = run.outputs(run.store(), 30)
    small = replace(run, hot_tiles=(window + 30 + 15) // 16 + 2)
    store = small.store()
    parts = [small.feed(store, at, at + 30) for at in range(0, n - 30, 30)]
    at = 30 * len(parts)
    parts.append(small.feed(store.copy(), at, n))
    assert same_bits(np.concatenate(parts), wanted)


def test_cold_f16_equals_a_plain_f16_cache(backend: Any) -> None:
    """Migration without loss: the same bits as a cache in which nothing ever turns cold."""
    for hot_window in (0, 33):
        run = Run(backend.KVStore, FORMATS["f16"], n=200, window=hot_window, group=4)
        plain = Run(backend.KVStore, FORMATS["f16"], n=200, window=10_000, group=4)
        assert same_bits(run.outputs(run.store(), 64), plain.outputs(plain.store(), 64))


# The operator's core, kv-cache.md section 6: the cases that broke the first implementation, on every instruction set.


def empty(n: int, n_heads: int, head_dim: int) -> tuple[F32, F32, F32]:
    return (
        np.full((n, n_heads), -np.inf, np.float32),
        np.zeros((n, n_heads), np.float32),
        np.zeros((n, n_heads, head_dim), np.float32),
    )


def segment_inputs(n: int, n_keys: int, n_heads: int, n_kv: int, head_dim: int) -> tuple[F32, F32, F32]:
    rng = np.random.default_rng(n + n_keys)
    shapes = ((n, n_heads, head_dim), (n_keys, n_kv, head_dim), (n_keys, n_kv, head_dim))
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    return q, k.astype(np.float16), v.astype(np.float16)


def output(state: tuple[F32, F32, F32]) -> F32:
    return state[2] / state[1][..., None]


@pytest.mark.parametrize("n_heads", [1, 3, 40])
@pytest.mark.parametrize(("n", "head_dim"), [(1, 8), (300, 8), (17, 40), (5, 128)])
def test_cases_1_and_4_every_head_from_poisoned_memory(backend: Any, n: int, n_heads: int, head_dim: int) -> None:
    q, k, v = segment_inputs(n, 21, n_heads, n_heads, head_dim)
    got = output(backend.attend_segment(q, k, v, None, *empty(n, n_heads, head_dim), head_dim**-0.5))
    np.testing.assert_allclose(got, exact_attention(q, k, v)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_segments", [1, 2, 7, 64])
def test_cases_2_and_7_segments_equal_the_whole(backend: Any, n_segments: int) -> None:
    q, k, v = segment_inputs(2, 200, 8, 2, 64)
    cuts = [0, *sorted(np.random.default_rng(n_segments).integers(0, 201, n_segments - 1).tolist()), 200]
    state = empty(2, 8, 64)
    for a, b in pairwise(cuts):
        state = backend.attend_segment(q, k[a:b], v[a:b], None, *state, 0.125)
    whole = output(backend.attend_segment(q, k, v, None, *empty(2, 8, 64), 0.125))
    np.testing.assert_allclose(output(state), whole, atol=1e-5)
    assert nmse(whole, exact_attention(q, k, v)[0]) <= 1e-6


def test_case_3_and_6_threads_repeats_and_aliasing(backend: Any) -> None:
    q, k, v = segment_inputs(3, 1000, 12, 4, 64)
    start = backend.attend_segment(q, k[:100], v[:100], None, *empty(3, 12, 64), 0.125)
    kept = [x.copy() for x in start]
    results = []
    for threads in (1, 2, 3, 8, 1):
        on = native_backend(threads, isa=backend.isa)
        results.append(on.attend_segment(q, k[100:], v[100:], None, *start, 0.125))
    for r in results:
        assert all(same_bits(a, b) for a, b in zip(r, results[0], strict=True))
        assert not any(np.shares_memory(a, b) for a in r for b in start)
    assert all(same_bits(a, b) for a, b in zip(start, kept, strict=True))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@pytest.mark.parametrize("masked", [False, True])
def test_case_5_quantized_segments_with_and_without_mask(backend: Any, kind: str, masked: bool) -> None:
    q, k, v = segment_inputs(6, 77, 8, 4, 80)
    cold_k, cold_v = (QuantizedRows.quantize(x.astype(np.float32), kind) for x in (k, v))
    mask = None
    if masked:
        mask = np.where(np.arange(77)[None, :] % 5 == np.arange(6)[:, None], -np.inf, -0.5).astype(np.float32)
        mask[5] = -np.inf  # sees nothing at all
    m, s, acc = backend.attend_segment(q, cold_k, cold_v, mask, *empty(6, 8, 80), 0.1)
    wanted, lse = exact_attention(q, cold_k.dequantize(), cold_v.dequantize(), mask, scale=0.1)
    seen = 5 if masked else 6
    assert nmse(acc[:seen] / s[:seen, :, None], wanted[:seen]) <= 1e-5
    np.testing.assert_allclose(m[:seen] + np.log(s[:seen]), lse[:seen], atol=2e-3)
    if masked:
        assert np.isneginf(m[5]).all() and not s[5].any() and not acc[5].any()


def test_alibi_mask_slopes_and_softcap_of_a_segment(backend: Any) -> None:
    q, k, v = segment_inputs(4, 90, 6, 2, 64)
    mask = np.random.default_rng(1).uniform(-4, 0, (4, 90)).astype(np.float32)
    mask[:, ::7] = -np.inf
    slopes = np.array([0.0, 0.25, 0.5, 1.0, 2.0, 4.0], np.float32)
    state = backend.attend_segment(q, k, v, mask, *empty(4, 6, 64), 0.125, slopes, 2.0)
    for h in range(6):
        bias = np.where(np.isneginf(mask), -np.inf, np.maximum(mask, -9) * slopes[h])
        kv = h // 3
        wanted = exact_attention(q[:, h : h + 1], k[:, kv : kv + 1], v[:, kv : kv + 1], bias, scale=0.125, softcap=2.0)[
            0
        ]
        assert nmse(output(state)[:, h : h + 1], wanted) <= 1e-6


def test_case_8_sixty_five_thousand_keys(backend: Any) -> None:
    q, k, v = segment_inputs(1, 65_536, 2, 1, 64)
    cold_k, cold_v = (QuantizedRows.quantize(x.astype(np.float32)) for x in (k, v))
    state = backend.attend_segment(q, cold_k, cold_v, None, *empty(1, 2, 64), 0.125)
    assert nmse(output(state), exact_attention(q, cold_k.dequantize(), cold_v.dequantize())[0]) <= 1e-5


@pytest.mark.parametrize("group", [1, 2, 4, 7, 8, 71])
def test_case_9_groups(backend: Any, group: int) -> None:
    q, k, v = segment_inputs(3, 37, 2 * group, 2, 64)
    assert (
        nmse(
            output(backend.attend_segment(q, k, v, None, *empty(3, 2 * group, 64), 0.125)), exact_attention(q, k, v)[0]
        )
        <= 1e-6
    )
    cold_k, cold_v = (QuantizedRows.quantize(x.astype(np.float32)) for x in (k, v))
    got = output(backend.attend_segment(q, cold_k, cold_v, None, *empty(3, 2 * group, 64), 0.125))
    assert nmse(got, exact_attention(q, cold_k.dequantize(), cold_v.dequantize())[0]) <= 1e-5


def test_nan_queries_give_nan(backend: Any) -> None:
    """A broken activation shows in its own row, and nowhere else."""
    run = Run(backend.KVStore, Q4, n=60)
    wanted = run.outputs(run.store(), 60)
    run.q[30, 1, 7] = np.nan
    got = run.outputs(run.store(), 60)
    assert np.isnan(got[30, 1]).all()
    keep = np.ones((60, 4), bool)
    keep[30, 1] = False
    assert same_bits(got[keep], wanted[keep])
