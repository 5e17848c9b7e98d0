"""Routed experts: the native ones against the same experts as dense feed-forwards, one by one, which they equal to the
bit, and against the NumPy twin; a token's result whatever else is computed beside it.

Where instruction sets differ, every one of this machine runs. Random tokens are of those whose choice of experts does
not hang on a rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from native_tools import native_backend, same_bits
from routed_tools import ACTIVATIONS, QWEN, Layer, numpy, poison
from test_native_linear import TYPES
from weight_tools import random_raw

from mixkv.kernels.errors import InputError
from mixkv.kernels.parts import Activation, Norm, Routing


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_experts_are_dense_feed_forwards(kind: T, backend: Any) -> None:
    """Every weight type, from one token to many: a wrong place of a panel, a tile or a scale of any expert but the
    first shows here. 70 rows are no whole number of panels; an expert that starts within one read its neighbour."""
    block = 256 if kind not in (T.F32, T.F16, T.BF16, T.F64) else 70
    layer = Layer(replace(QWEN, n_experts=4, n_used=2), dim=block, n_ff=block, kinds=(kind, kind, kind))
    fast, x = layer.on(backend), layer.numbers(40, block)
    want = layer.one_by_one(backend, x, x)
    for n in (1, 2, 17, 40):
        poison(backend, fast, (n, block))
        np.testing.assert_array_equal(fast(x[:n], x[:n]), want[:n], err_msg=f"{n} tokens")


@pytest.mark.parametrize("n_ff", [32, 160, 1120])
@pytest.mark.parametrize("kinds", [(T.Q4_0, T.Q4_0, T.Q8_0), (T.Q4_0, T.F16, T.Q5_0), (T.F32, T.Q8_0, T.F32)], ids=str)
def test_sizes_and_types_mixed(kinds: tuple[T, T, T], n_ff: int, backend: Any) -> None:
    """Rows that end within a panel, tasks of several panels; experts of which one reads codes and another floats."""
    layer = Layer(replace(QWEN, n_experts=5), dim=96, n_ff=n_ff, kinds=kinds, biased=True)
    fast, x = layer.on(backend), layer.numbers(33, 96)
    poison(backend, fast, (33, 96))
    np.testing.assert_array_equal(fast(x, None), layer.one_by_one(backend, x, None))


OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "not normalised": {"routing": replace(QWEN, normalize=False, scale=2.5)},
    "DeepSeek": {
        "routing": replace(QWEN, n_experts=12, gating="sigmoid", n_groups=4, n_groups_used=2, scale=2.5),
        "parts": {"selection_bias": np.linspace(-1, 1, 12, dtype=np.float32)},
    },
    "gpt-oss": {
        "routing": replace(QWEN, gating="softmax of chosen"), "biased": True, "activation": ACTIVATIONS[3],
    },
    "Llama 4": {"routing": replace(QWEN, n_used=1, gating="sigmoid", normalize=False, on_input=True)},
    "several on input": {"routing": replace(QWEN, gating="sigmoid", on_input=True), "biased": True},
    "no gate": {"gated": False, "activation": Activation("relu2"), "biased": True},
    "no norm": {"normed": False},
    "all experts": {"routing": replace(QWEN, n_used=11)},
    "one expert": {"routing": Routing(1, 1)},
    "router normed apart, scaled": {
        "parts": {
            "router_norm": Norm(np.linspace(-1, 1, 256, dtype=np.float32), 1e-6),
            "out_norm": Norm(np.linspace(1, 2, 256, dtype=np.float32), 1e-6, centred=True), "scale": 0.3,
        },
    },
    "router in float16": {"router_kind": T.F16},
}  # fmt: skip


def layer_of(name: str, **changes: Any) -> Layer:
    """A layer with the options of that name."""
    options = OPTIONS[name] | changes
    return Layer(**options | {"parts": dict(options.get("parts", {}))})


@pytest.mark.parametrize("name", OPTIONS)
def test_beside_the_numpy_twin(name: str, backend: Any) -> None:
    """Every gate form, with float32 activations, where only the order of sums differs; poisoned memory before."""
    layer = layer_of(name)
    fast, slow = layer.on(backend), layer.on(numpy)
    for n in (0, 1, 2, 17, 100):
        x, residual = layer.tokens(n), layer.numbers(n, layer.dim)
        for plus in (residual, None):
            poison(backend, fast, (n, layer.dim))
            want = slow(x, plus)
            np.testing.assert_allclose(fast(x, plus), want, rtol=1e-4, atol=2e-5 * np.abs(want).max(initial=1))


@pytest.mark.parametrize("name", OPTIONS)
def test_rounded_activations(name: str, backend: Any) -> None:
    """As above with quantized experts, whose activations are int8: the bits of the experts one by one, and exact mode
    near the twin."""
    layer = layer_of(name, kinds=(T.Q8_0, T.Q4_0, T.Q5_1))
    x = layer.tokens(19)
    np.testing.assert_array_equal(layer.on(backend)(x, x), layer.one_by_one(backend, x, x))
    want = layer.on(numpy)(x, x)
    np.testing.assert_allclose(layer.on(backend, exact=True)(x, x), want, rtol=1e-4, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
@pytest.mark.parametrize("gated", [True, False])
def test_activations(activation: Activation, gated: bool, backend: Any) -> None:
    layer = Layer(activation=activation, gated=gated)
    x = layer.tokens(5)
    want = layer.on(numpy)(x, None)
    np.testing.assert_allclose(layer.on(backend)(x, None), want, rtol=1e-4, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("kinds", [(T.Q4_K, T.Q4_K, T.Q6_K), (T.Q4_0, T.Q4_0, T.Q4_0), (T.F16, T.F16, T.F16)], ids=str)
@pytest.mark.parametrize("name", ["DeepSeek", "several on input"])
def test_a_token_depends_on_itself_alone(name: str, kinds: tuple[T, T, T], backend: Any) -> None:
    """The same bits alone, in any batch, at any place of it, with any number of threads: how many rows share an expert,
    and so the width of tiles and the cut into tasks, changes with all of these."""
    layer = layer_of(name, kinds=kinds, n_ff=256)
    fast, x = layer.on(backend), layer.numbers(150, layer.dim)
    want = fast(x, x)
    assert not np.isnan(want).any()
    for i in (0, 7, 149):
        np.testing.assert_array_equal(fast(x[i : i + 1], x[i : i + 1]), want[i : i + 1])
    for start, stop in ((0, 2), (3, 8), (0, 9), (40, 57), (11, 150)):
        part = np.ascontiguousarray(x[start:stop])
        np.testing.assert_array_equal(fast(part, part), want[start:stop], err_msg=f"{start} to {stop}")
    order = layer.rng.permutation(150)
    np.testing.assert_array_equal(fast(x[order], x[order]), want[order])
    for threads in (1, 3, 8):
        other = layer.on(native_backend(threads, isa=backend.isa))
        np.testing.assert_array_equal(other(x, x), want, err_msg=f"{threads} threads")


def test_more_tokens_than_are_sorted_together() -> None:
    """Beyond 1,024 tokens a call is several, and where all go to one expert there are more than one product takes."""
    backend: Any = native_backend()
    layer = Layer(Routing(3, 1), dim=32, n_ff=32, kinds=(T.Q8_0, T.Q8_0, T.Q8_0))
    layer.parts["selection_bias"] = np.array([0, 9, 0], np.float32)
    fast, x = layer.on(backend), layer.numbers(2100, 32)
    parts = np.concatenate([fast(x[i : i + 100], x[i : i + 100]) for i in range(0, 2100, 100)])
    np.testing.assert_array_equal(fast(x, x), parts)


def test_wide_rows_are_summed_slab_by_slab() -> None:
    """What experts give has room for so many rows of `down` at a time: for 1,000 tokens of 8 experts, not for all."""
    backend: Any = native_backend()
    layer = Layer(Routing(9, 8), dim=1280, n_ff=32, kinds=(T.Q8_0, T.Q8_0, T.Q8_0))
    layer.parts["out_norm"] = Norm(layer.numbers(1280), 1e-5)
    fast, x = layer.on(backend), layer.numbers(1000, 1280)
    want = fast(x, x)
    np.testing.assert_array_equal(fast(x[::50].copy(), x[::50].copy()), want[::50])


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax of chosen"])
def test_nan_and_infinity_stay_in_their_rows(gating: Any, backend: Any) -> None:
    """A token that is not a number tells so and changes no other; nothing is read or written outside, whatever the
    router's products are."""
    layer = Layer(replace(QWEN, gating=gating), kinds=(T.Q8_0, T.Q4_0, T.Q8_0), normed=False)
    fast, x = layer.on(backend), layer.numbers(20, layer.dim)
    want = fast(x, None)
    spoiled = x.copy()
    spoiled[3, 17], spoiled[8, 0], spoiled[11, 40], spoiled[19] = np.nan, np.inf, -np.inf, np.nan
    got = fast(spoiled, None)
    rows = [3, 8, 11, 19]
    assert np.isnan(got[rows]).all()
    assert same_bits(np.delete(got, rows, axis=0), np.delete(want, rows, axis=0))
    assert same_bits(fast(spoiled, None), got)


def test_packing() -> None:
    """Experts cost what their matrices cost one by one, each rounded up to a whole panel; a slice of each one's rows
    (of files that keep gate and up in one tensor) is packed where it lies."""
    backend: Any = native_backend()
    rng = np.random.default_rng()
    raw = random_raw(T.Q4_0, 5 * 140, 64, rng).reshape(5, 140, -1)
    raw.setflags(write=False)
    packed = backend.pack_experts(raw[:, 70:], int(T.Q4_0), 64)
    one = backend.pack(raw[0, 70:].copy(), int(T.Q4_0), 64)
    assert (packed.n, packed.rows, packed.cols, packed.nbytes) == (5, 70, 64, 5 * one.nbytes)
    slow = numpy.pack_experts(raw[:, 70:], int(T.Q4_0), 64)
    assert (slow.n, slow.rows, slow.cols, slow.nbytes) == (5, 70, 64, raw[:, 70:].nbytes)
    layer = Layer(Routing(5, 2), dim=64, n_ff=70, kinds=(T.Q4_0, T.Q4_0, T.F32))
    layer.raw[0] = (raw[:, :70], T.Q4_0, 64)
    layer.raw[1] = (raw[:, 70:], T.Q4_0, 64)
    x = layer.tokens(6)
    np.testing.assert_array_equal(layer.on(backend)(x, x), layer.one_by_one(backend, x, x))
    for bad in (raw[:, ::2], raw[:, :, ::2], raw[::-1]):
        with pytest.raises(InputError, match="follow each other"):
            backend.pack_experts(bad, int(T.Q4_0), 64)


def test_shapes_that_do_not_fit() -> None:
    """Each wrong shape is an error that names it, before anything reads outside an array."""
    backend: Any = native_backend()
    layer = Layer(biased=True)
    fast = layer.on(backend)
    for x, residual in ((layer.numbers(2, 255), None), (layer.numbers(2, 256), layer.numbers(3, 256))):
        with pytest.raises(InputError):
            fast(x, residual)
    for name in ("gate_bias", "up_bias", "down_bias", "router_bias", "down_scale"):
        other = layer_of("softmax", biased=True)
        other.parts[name] = np.ascontiguousarray(other.parts[name][:-1])
        with pytest.raises(InputError, match=name):
            other.on(backend)
    for i in range(3):
        for change in (lambda raw: raw[:-1], lambda raw: raw[:, :-1]):
            other = layer_of("softmax")
            raw, kind, cols = other.raw[i]
            other.raw[i] = (np.ascontiguousarray(change(raw)), kind, cols)
            with pytest.raises(InputError, match=r"gate|up|down"):
                other.on(backend)
