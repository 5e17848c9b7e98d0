"""The native pieces of a layer against the NumPy twin: norms, feed-forwards, projections, heads.

Random parts and shapes that divide nothing, on every instruction set; results go to memory full of NaN.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from layer_tools import EXACT, ROUNDED, Weights, check_bits, nmse, numpy, twins
from native_tools import F32, native_backend, poison_freed_arrays, same_bits

from mixkv.kernels.errors import InputError
from mixkv.kernels.parts import Activation, Norm

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")

ACTIVATIONS = [
    Activation(), Activation("gelu"), Activation("relu2"), Activation("swiglu_oai", (1.702, 2.0)),
    Activation("xielu", (0.8, 1.1, 0.5, -1e-6)),
]  # fmt: skip
N = 35  # tokens: more than a tile of codes, less than two of them a chunk


@pytest.mark.parametrize("dim", [1, 7, 63, 64, 257, 2048])
@pytest.mark.parametrize("centred", [False, True])
def test_norms(dim: int, centred: bool, backend: Any) -> None:
    """RMS and LayerNorm, with and without gain, bias and residual; rows far from zero; the same bits in any company."""
    weights = Weights(backend, dim)
    for n in (1, 3, 40):
        x, residual = 3 * weights.vector(n, dim) + 2, weights.vector(n, dim)
        for gain, bias in ((True, True), (True, False), (False, True), (False, False)):
            norm = Norm(weights.vector(dim) if gain else None, 1e-5, centred, weights.vector(dim) if bias else None)
            for plus in (residual, None):
                poison_freed_arrays(backend, (n, dim))
                got = backend.norm(x, norm, plus)
                np.testing.assert_allclose(got, numpy.norm(x, norm, plus), rtol=1e-5, atol=2e-5)
                last = backend.norm(x[-1:], norm, None if plus is None else plus[-1:])
                assert same_bits(last, got[-1:])


def formula(a: Activation, g: Any, u: Any) -> Any:
    """In float64, from the papers."""
    if a.kind == "silu":
        return g / (1 + np.exp(-g)) * u
    if a.kind == "gelu":
        return g / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u
    if a.kind == "relu2":
        return np.maximum(g, 0) ** 2 * u
    if a.kind == "swiglu_oai":
        alpha, limit = a.numbers
        g = np.minimum(g, limit)
        return g / (1 + np.exp(-alpha * g)) * (np.clip(u, -limit, limit) + 1)
    up, down, beta, eps = a.numbers
    return np.where(g > 0, up * g * g + beta * g, down * (np.expm1(np.minimum(g, eps)) - g) + beta * g) * u


def each_alone(backend: Any, a: Activation, g: F32, u: F32 | None) -> F32:
    """activation(g, u) of numbers (n,): each a token of a feed-forward that has it 19 times over, in 16 lanes and three
    of the next 16, and gives out one of either: (n, 2)."""
    x = np.stack([g, np.zeros_like(g) if u is None else u], axis=1)
    down = np.zeros((2, 19), np.float32)
    down[0, 3] = down[1, 17] = 1

    def pack(m: Any) -> Any:
        return backend.pack(np.ascontiguousarray(m, np.float32).view(np.uint8), int(T.F32), np.shape(m)[1])

    first, second = pack([[1, 0]] * 19), pack([[0, 1]] * 19)
    gate, up = (None, first) if u is None else (first, second)
    out: F32 = backend.NormFFN(norm=None, gate=gate, up=up, down=pack(down), activation=a)(x, None)
    return out


@pytest.mark.parametrize("a", ACTIVATIONS, ids=lambda a: a.kind)
def test_activations(a: Activation, backend: Any) -> None:
    """Against the formulas in float64: tiny and huge numbers of both signs; a NaN stays one, and its token's alone."""
    size = np.concatenate([10.0 ** np.arange(-30.0, 4.5, 0.5), np.linspace(0, 20, 61), np.linspace(0, 1, 30)])
    g = np.concatenate([size, -size]).astype(np.float32)
    u = np.random.default_rng(0).standard_normal(len(g)).astype(np.float32) * 3
    for up in (u, None):
        with np.errstate(over="ignore"):
            want = formula(a, g.astype(np.float64), 1.0 if up is None else up.astype(np.float64))
        got = each_alone(backend, a, g, up)
        assert same_bits(got[:, 0], got[:, 1])
        # where terms cancel, what remains has the rounding of the terms
        terms = np.abs(g) * (1 + np.abs(g) * (a.kind == "xielu")) * (1 if up is None else 1 + np.abs(up))
        assert np.all(np.abs(got[:, 0] - want) <= 4e-7 * np.minimum(terms, 1e6) + 2e-6 * np.abs(want))
        for place in [g] if up is None else [g, up]:
            hurt = place.copy()
            hurt[5] = np.nan
            out = each_alone(backend, a, *((hurt, up) if place is g else (g, hurt)))
            assert np.isnan(out[5]).all() and same_bits(np.delete(out, 5, axis=0), np.delete(got, 5, axis=0))


@pytest.mark.parametrize("a", ACTIVATIONS, ids=lambda a: a.kind)
def test_activations_of_arrays(a: Activation, backend: Any) -> None:
    """By itself: any shape, many rows in threads, the arguments left as they are, the bits of each row alone."""
    weights = Weights(backend, 0)
    for n, m in ((1, 1), (3, 19), (40, 257)):
        g, u = 3 * weights.vector(n, m), 3 * weights.vector(n, m)
        before = g.copy(), u.copy()
        for up in (u, None):
            poison_freed_arrays(backend, (n, m))
            got = backend.activate(a, g, up)
            np.testing.assert_allclose(got, numpy.activate(a, g, up), rtol=1e-5, atol=2e-6)
            assert same_bits(backend.activate(a, g[-1:], None if up is None else up[-1:]), got[-1:])
        assert same_bits(g, before[0]) and same_bits(u, before[1])
    with pytest.raises(InputError, match="u has size"):
        backend.activate(a, np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


FFN_KINDS = [
    (T.Q4_0, T.Q4_0, T.Q4_0), (T.Q4_K, T.Q4_K, T.Q6_K), (T.Q8_0, T.F16, T.Q8_0), (T.F32, T.F32, T.F32),
    (T.Q4_0, T.Q4_0, T.F16), (T.F16, T.Q4_0, T.Q4_0),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kinds", FFN_KINDS, ids=lambda k: "-".join(t.name for t in k))
def test_feed_forward(kinds: tuple[T, T, T], seed: int, backend: Any) -> None:
    """With and without each part; `silu` with a gate (seeds 0, 1) also in the form that most models have."""
    weights = Weights(backend, seed)
    plain, exact = seed < 2, set(kinds) == {T.F32}
    dim, hidden = (72, 172) if exact else (256, 768)

    def perhaps(value: Any, when_plain: bool = False) -> Any:
        return (value if when_plain else None) if plain else weights.perhaps(value)

    gate = None if not plain and seed % 3 == 0 else weights(kinds[0], hidden, dim)
    pairs = {"gate": gate, "up": weights(kinds[1], hidden, dim), "down": weights(kinds[2], dim, hidden)}
    common: dict[str, Any] = {
        "norm": Norm(1 + weights.vector(dim) / 4, 1e-6) if plain else perhaps(weights.norm(dim)),
        "gate_bias": perhaps(weights.vector(hidden), seed == 1) if gate else None,
        "up_bias": perhaps(weights.vector(hidden), seed == 1), "down_bias": perhaps(weights.vector(dim), seed == 1),
        "activation": ACTIVATIONS[0 if plain else seed % 5],
        "token_gate": weights.vector(dim) / 8 if seed % 4 > 1 else None,
        "out_norm": weights.norm(dim) if not plain and seed % 2 else None, "scale": [1.0, 1.0, 0.3][seed % 3],
    }  # fmt: skip
    fast, slow = twins("NormFFN", backend, pairs, **common)
    x, residual = weights.vector(N, dim), weights.vector(N, dim)
    for plus in (residual, None):
        poison_freed_arrays(backend, x.shape)
        got = fast(x, plus)
        assert nmse(got, slow(x, plus)) < (EXACT if exact else 2 * ROUNDED)
    native = {name: pair if pair is None else pair[0] for name, pair in pairs.items()}
    check_bits(backend, lambda b: b.NormFFN(**native, **common), (x, residual), fast(x, residual))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("kind", "rows", "cols"), [(T.Q8_0, 70, 96), (T.F32, 129, 37), (T.Q4_K, 1000, 256)])
def test_projection(kind: T, rows: int, cols: int, seed: int, backend: Any) -> None:
    """From heads to the residual stream; without a norm and a scale the bits are those of `linear`."""
    weights = Weights(backend, seed)
    h, residual, gate = weights.vector(N, cols), weights.vector(N, rows), 3 * weights.vector(N, cols)
    pair, bias = weights(kind, rows, cols), weights.perhaps(weights.vector(rows))
    plain = {"w": pair[0], "bias": bias}
    for plus in (residual, None):
        assert same_bits(backend.Project(**plain)(h, plus), backend.linear(h, pair[0], bias, plus))
    common = {"bias": bias, "out_norm": weights.perhaps(weights.norm(rows)), "scale": [1.0, 0.25][seed % 2]}
    fast, slow = twins("Project", backend, {"w": pair}, **common)
    for plus, by in ((residual, gate), (None, gate), (residual, None), (None, None)):
        poison_freed_arrays(backend, residual.shape)
        assert nmse(fast(h, plus, by), slow(h, plus, by)) < (EXACT if kind == T.F32 else ROUNDED)
    got = fast(h, residual, gate)
    check_bits(backend, lambda b: b.Project(w=pair[0], **common), (h, residual, gate), got)
    gate[3, 5] = np.nan  # rounded or not, it reaches its token and no other
    hurt = fast(h, residual, gate)
    assert np.isnan(hurt[3]).all() and same_bits(np.delete(hurt, 3, axis=0), np.delete(got, 3, axis=0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", [(T.Q4_0, T.F16, T.Q8_0), (T.F32, T.BF16), (T.Q4_K,)])
def test_several_products_of_a_norm(kinds: tuple[T, ...], seed: int, backend: Any) -> None:
    """Each with the bits that it has alone."""
    weights = Weights(backend, seed)
    pairs = [weights(kind, 33 * (i + 1) + 37 * seed, 256) for i, kind in enumerate(kinds)]
    biases = [weights.perhaps(weights.vector(w.rows)) for w, _ in pairs]
    norm, x = weights.perhaps(weights.norm(256)), weights.vector(N, 256)
    fast = backend.NormLinear(norm=norm, weights=[w for w, _ in pairs], biases=biases)
    got = fast(x)
    assert type(got) is tuple
    for y, want in zip(got, numpy.NormLinear(norm=norm, weights=[w for _, w in pairs], biases=biases)(x), strict=True):
        assert nmse(y, want) < ROUNDED
    h = x if norm is None else backend.norm(x, norm)
    for y, (w, _), bias in zip(got, pairs, biases, strict=True):
        assert same_bits(y, backend.linear(h, w, bias))
    check_bits(backend, lambda b: b.NormLinear(norm=norm, weights=[w for w, _ in pairs], biases=biases), (x,), got)
    unbiased = backend.NormLinear(norm=norm, weights=[pairs[0][0]])(x)
    assert same_bits(unbiased[0], backend.linear(h, pairs[0][0]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("kind", "rows", "cols"), [(T.Q6_K, 1003, 256), (T.F32, 70, 37)])
def test_head(kind: T, rows: int, cols: int, seed: int, backend: Any) -> None:
    """Bias, scale and cap, of logits far above the cap too."""
    weights = Weights(backend, seed)
    pair, x = weights(kind, rows, cols), 20 * weights.vector(N, cols)
    common = {
        "norm": weights.perhaps(weights.norm(cols)), "bias": weights.perhaps(weights.vector(rows)),
        "scale": [1.0, 0.5, 3.0][seed % 3], "softcap": [0.0, 5.0][seed // 3],
    }  # fmt: skip
    fast, slow = twins("Head", backend, {"w": pair}, **common)
    poison_freed_arrays(backend, (N, rows))
    got = fast(x)
    assert nmse(got, slow(x)) < (EXACT if kind == T.F32 else ROUNDED)
    assert common["softcap"] == 0 or np.abs(got).max() <= common["softcap"]
    check_bits(backend, lambda b: b.Head(w=pair[0], **common), (x,), got)


def test_pieces_keep_what_they_read() -> None:
    """Weights, norms and vectors that nobody else holds any more."""
    backend = native_backend()

    def made() -> Any:
        weights = Weights(backend, 1)
        return backend.NormFFN(
            norm=Norm(weights.vector(64), 1e-5, True, weights.vector(64)), gate=None, up=weights(T.F32, 999, 64)[0],
            down=weights(T.F32, 64, 999)[0], up_bias=weights.vector(999), token_gate=weights.vector(64),
            out_norm=Norm(weights.vector(64), 1e-5),
        )  # fmt: skip

    x, ffn = np.ones((2, 64), np.float32), made()
    want = ffn(x, x)
    gc.collect()
    kept = [np.full(n, np.nan, np.float32) for n in (64, 999) for _ in range(100)]
    assert same_bits(ffn(x, x), want) and np.isnan(kept[0]).all()
