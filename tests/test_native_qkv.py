"""The native half of a layer up to attention, against the NumPy twin; and what its pieces say to wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from layer_tools import EXACT, ROUNDED, Weights, check_bits, nmse, twins
from native_tools import native_backend, poison_freed_arrays, same_bits

from mixkv.kernels.errors import InputError
from mixkv.kernels.parts import Activation, Norm, Rotation, Temperature

pytest.importorskip("mixkv.kernels._native", reason="the native extension is not built here")

N, HEADS, KV = 35, 6, 2
SHAPES = [  # head_dim, dimensions that turn, types of wq, wk, wv and the gate
    (64, 64, (T.Q4_0, T.Q4_0, T.Q4_0, T.Q4_0)), (8, 8, (T.F32, T.F32, T.F32, T.F32)), (128, 0, (T.Q8_0,) * 4),
    (80, 40, (T.Q4_K, T.Q4_K, T.Q6_K, T.F16)), (64, 64, (T.Q8_0, T.F16, T.Q5_1, T.BF16)),
]  # fmt: skip


def rotation(rot: int, interleaved: bool, scale: float = 1.19) -> Rotation:
    return Rotation((10000.0 ** -(np.arange(rot // 2) / max(rot // 2, 1))).astype(np.float32), interleaved, scale)


def head_norm(weights: Weights, heads: int, head_dim: int, form: int) -> Norm | None:
    """None, or one of the three forms of parts.Norm, or one without a gain, RMS norm and LayerNorm."""
    shapes: list[tuple[int, ...]] = [(head_dim,), (heads, head_dim), (heads * head_dim,)]
    if form == 0:
        return None
    if form == 4:
        return Norm(None, 1e-5, bool(weights.rng.random() < 0.5))
    gain, bias = (weights.vector(*shapes[form - 1]) for _ in range(2))
    return Norm(1 + gain / 4, 1e-6, bool(weights.rng.random() < 0.5), weights.perhaps(bias))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rot", "kinds"), SHAPES)
def test_qkv_of_most_models(head_dim: int, rot: int, kinds: tuple[T, ...], interleaved: bool, backend: Any) -> None:
    """Biases, norms of heads before the rotation, values wider than keys."""
    weights, dim = Weights(backend, head_dim), 256
    rows = {"wq": HEADS * head_dim, "wk": KV * head_dim, "wv": KV * (head_dim + 16)}
    pairs = {name: weights(kind, n, dim) for kind, (name, n) in zip(kinds, rows.items(), strict=False)}
    common: dict[str, Any] = {
        "norm": Norm(1 + weights.vector(dim) / 4, 1e-5), "rotation": rotation(rot, interleaved), "n_heads": HEADS,
        "n_kv_heads": KV, "head_dim": head_dim, **{"b" + name[1]: weights.vector(n) for name, n in rows.items()},
        "q_norm": Norm(weights.vector(head_dim), 1e-5), "k_norm": Norm(weights.vector(head_dim), 1e-6),
    }  # fmt: skip
    fast, slow = twins("NormQKV", backend, pairs, **common)
    x, at = weights.vector(N, dim), weights.rng.integers(0, 5000, N)
    for shape in ((N, rows["wq"]), (N, rows["wk"]), (N, rows["wv"])):
        poison_freed_arrays(backend, shape)
    got = fast(x, at)
    assert type(got) is tuple and got[3] is None
    for name, g, w in zip("qkv", got, slow(x, at), strict=False):
        assert nmse(g, w) < (EXACT if kinds[0] == T.F32 else 2 * ROUNDED), name
    native = {name: pair[0] for name, pair in pairs.items()}
    check_bits(backend, lambda b: b.NormQKV(**native, **common), (x, at), got)


@pytest.mark.parametrize("seed", range(24))
def test_qkv_with_any_parts(seed: int, backend: Any) -> None:
    """With and without each: norm, keys, values of their own, gate, biases, norms of all forms, on either side of the
    rotation, temperature."""
    weights = Weights(backend, seed)
    head_dim, rot, kinds = SHAPES[seed % len(SHAPES)]
    dim, wide = 256, head_dim + 16 * (seed % 2)
    has_k, has_v = seed % 6 != 0, seed % 4 != 1
    pairs = {
        "wq": weights(kinds[0], HEADS * head_dim, dim), "wk": weights(kinds[1], KV * head_dim, dim) if has_k else None,
        "wv": weights(kinds[2], KV * wide, dim) if has_k and has_v else None,
        "gate": weights.perhaps(weights(kinds[3], HEADS * wide, dim)),
    }  # fmt: skip
    width = wide if has_v else head_dim
    v_norm = head_norm(weights, KV, width, int(weights.rng.choice([0, 1, 2, 4])))
    common: dict[str, Any] = {
        "norm": weights.perhaps(weights.norm(dim)), "bq": weights.perhaps(weights.vector(HEADS * head_dim)),
        "bk": weights.perhaps(weights.vector(KV * head_dim)) if has_k else None,
        "bv": weights.perhaps(weights.vector(KV * wide)) if has_k and has_v else None,
        "q_norm": head_norm(weights, HEADS, head_dim, seed % 5),
        "k_norm": head_norm(weights, KV, head_dim, (seed + 2) % 5) if has_k else None,
        "v_norm": v_norm if has_k else None, "norms_last": bool(seed // 2 % 2),
        "rotation": rotation(rot, bool(seed % 2)) if seed % 7 else None,
        "temperature": Temperature(0.1, 50, int(weights.rng.integers(3))) if seed % 3 == 0 else None,
        "n_heads": HEADS, "n_kv_heads": KV, "head_dim": head_dim,
    }  # fmt: skip
    fast, slow = twins("NormQKV", backend, pairs, **common)
    x, at = weights.vector(N, dim), weights.rng.integers(0, 5000, N)
    at[:3] = 0, 48, 99
    for rows in (HEADS * head_dim, KV * head_dim, KV * wide, HEADS * wide):
        poison_freed_arrays(backend, (N, rows))
    got, want = fast(x, at), slow(x, at)
    for name, g, w in zip(("q", "k", "v", "gate"), got, want, strict=True):
        assert g is w is None or nmse(g, w) < (EXACT if kinds[0] == T.F32 else 2 * ROUNDED), name
    native = {name: pair if pair is None else pair[0] for name, pair in pairs.items()}
    check_bits(backend, lambda b: b.NormQKV(**native, **common), (x, at), got)


def test_a_value_that_is_the_key_is_the_raw_one(backend: Any) -> None:
    """Before norm and rotation: the bits of the product."""
    weights = Weights(backend, 0)
    w, x = weights(T.Q8_0, 2 * 32, 64)[0], weights.vector(20, 64)
    qkv = backend.NormQKV(
        norm=None, wq=w, wk=w, wv=None, k_norm=Norm(None, 1e-5), rotation=rotation(32, False), n_heads=2, n_kv_heads=2,
        head_dim=32,
    )  # fmt: skip
    _, k, v, _ = qkv(x, np.arange(20))
    assert same_bits(v.reshape(20, -1), backend.linear(x, w)) and not np.allclose(k, v)


def test_wrong_parts_are_input_errors() -> None:
    """Each names what is wrong; nothing is read past its end."""
    backend = native_backend()
    weights = Weights(backend, 0)
    w, wide, v = weights(T.F32, 64, 64)[0], weights(T.F32, 64, 65)[0], weights.vector
    x, at = v(2, 64), np.arange(2)
    qkv = {"norm": None, "wq": w, "wk": w, "wv": w, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16}
    ffn = {"norm": None, "gate": w, "up": w, "down": w}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("NormQKV", "norm.gain", {**qkv, "norm": Norm(v(63), 1e-5)}),
        ("NormQKV", "norm.bias", {**qkv, "norm": Norm(v(64), 1e-5, True, v(1))}),
        ("NormQKV", "q_norm.gain", {**qkv, "q_norm": Norm(v(17), 1e-5)}),
        ("NormQKV", "q_norm.gain", {**qkv, "q_norm": Norm(v(16, 4), 1e-5)}),
        ("NormQKV", "q_norm.bias", {**qkv, "q_norm": Norm(v(64), 1e-5, True, v(16))}),
        ("NormQKV", "k_norm.gain", {**qkv, "k_norm": Norm(v(2, 2, 4), 1e-5)}),
        ("NormQKV", "v_norm.gain", {**qkv, "v_norm": Norm(v(64), 1e-5)}),
        ("NormQKV", "inv_freq", {**qkv, "rotation": Rotation(v(9), True)}),
        ("NormQKV", "length", {**qkv, "temperature": Temperature(0.1, 0)}),
        ("NormQKV", "gate", {**qkv, "gate": wide}), ("NormQKV", "wk", {**qkv, "wk": wide}),
        ("NormQKV", "wv", {**qkv, "wv": wide}), ("NormQKV", "wq", {**qkv, "n_heads": 5}),
        ("NormFFN", "gate", {**ffn, "gate": wide}), ("NormFFN", "down", {**ffn, "up": wide, "gate": None}),
        ("NormFFN", "token_gate", {**ffn, "token_gate": v(65)}),
        ("NormFFN", "out_norm", {**ffn, "out_norm": Norm(v(1), 1e-5)}),
        ("NormFFN", "numbers", {**ffn, "activation": Activation("xielu", (1.0, 2.0))}),
        ("NormFFN", "none of silu", {**ffn, "activation": Activation("relu")}),  # type: ignore[arg-type]
        ("Project", "bias", {"w": w, "bias": v(65)}), ("Head", "norm.gain", {"norm": Norm(v(3), 1e-5), "w": w}),
        ("NormLinear", "biases", {"norm": None, "weights": [w, w], "biases": [v(64)]}),
        ("NormLinear", "weight of NormLinear", {"norm": None, "weights": [w, wide]}),
        ("NormLinear", "no weights", {"norm": None, "weights": []}),
    ]  # fmt: skip
    for name, match, args in wrong:
        with pytest.raises(InputError, match=match):
            getattr(backend, name)(**args)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (backend.NormQKV(**qkv), (x, at[:1])), (backend.NormQKV(**qkv), (v(2, 63), at)),
        (backend.Project(w=w), (x, v(3, 64))), (backend.Project(w=w), (x, x, v(2, 63))),
        (backend.NormFFN(**ffn), (x, v(2, 65))), (backend.Head(norm=None, w=w), (v(2, 65),)),
        (backend.NormLinear(norm=None, weights=[w]), (v(2, 65),)),
        (backend.norm, (x, Norm(v(63), 1e-5))), (backend.norm, (x, Norm(None, 1e-5), v(1, 64))),
    ]  # fmt: skip
    for call, args_ in calls:
        with pytest.raises(InputError, match=r"size|positions"):
            call(*args_)
    doubles: Any = Norm(np.ones(64), 1e-5)  # type: ignore[arg-type]
    strided = Norm(v(128)[::2], 1e-5)
    for make, bad in (
        ("NormFFN", {**ffn, "norm": doubles}), ("NormFFN", {**ffn, "up": None}), ("Head", {"norm": None, "w": 3}),
        ("NormFFN", {**ffn, "out_norm": strided}),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            getattr(backend, make)(**bad)
