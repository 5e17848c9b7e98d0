"""Recurrent mixers: the native ones against the NumPy twin on every instruction set, however a sequence is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_oracle import nmse

from mixkv.kernels import open_backend
from mixkv.kernels.errors import InputError

pytest.importorskip("mixkv.kernels._native")
from native_tools import native_backend

F32 = np.ndarray
TWIN: Any = open_backend(1, kind="reference")


class Case:
    """A mixer of random numbers: `make` on a backend, inputs of n tokens, shapes of its state."""

    def __init__(self, kind: str, rng: np.random.Generator, **sizes: int) -> None:
        self.kind, self.rng = kind, rng

        def numbers(*shape: int) -> F32:
            return rng.standard_normal(shape, np.float32)

        s = sizes
        if kind == "Mamba2":
            inner, bc = s["n_heads"] * s["head_dim"], s["n_groups"] * s["d_state"]
            channels, self.widths = inner + 2 * bc, [2 * inner + 2 * bc + s["n_heads"]]
            heads = s["n_heads"]
            self.parts: dict[str, Any] = {
                "conv": numbers(channels, s.pop("kernel")), "conv_bias": numbers(channels),
                "a": -np.exp(numbers(heads)), "d": numbers(heads), "dt_bias": numbers(heads),
                "gain": numbers(inner), "eps": 1e-5, **s,
            }  # fmt: skip
            self.shapes = [(self.parts["conv"].shape[1] - 1, channels), (heads, s["d_state"], s["head_dim"])]
        elif kind == "DeltaNet":
            heads, d = s["n_heads"], s["head_dim"]
            channels = (heads + 2 * s["n_k_heads"]) * d
            self.widths = [channels, heads * d, heads, heads]
            self.parts = {
                "conv": numbers(channels, s.pop("kernel")), "a": -np.exp(numbers(heads)), "dt_bias": numbers(heads),
                "gain": numbers(d), "eps": 1e-5, **s, "tiled": bool(s["tiled"]),
            }  # fmt: skip
            self.shapes = [(self.parts["conv"].shape[1] - 1, channels), (heads, d, d)]
        else:
            self.widths, self.parts = [3 * s["dim"]], {"conv": numbers(s["dim"], s["kernel"])}
            self.shapes = [(s["kernel"] - 1, s["dim"])]

    def make(self, backend: Any) -> Any:
        return getattr(backend, self.kind)(**self.parts)

    def inputs(self, n: int) -> tuple[F32, ...]:
        return tuple(self.rng.standard_normal((n, width), np.float32) for width in self.widths)

    def state(self) -> tuple[F32, ...]:
        return tuple(self.rng.standard_normal(shape, np.float32) for shape in self.shapes)

    def poisoned(self) -> tuple[F32, ...]:
        return tuple(np.full(shape, np.nan, np.float32) for shape in self.shapes)


SIZES: dict[str, tuple[str, dict[str, int]]] = {
    "mamba": ("Mamba2", {"n_heads": 6, "head_dim": 8, "n_groups": 2, "d_state": 16, "kernel": 4}),
    "mamba, odd": ("Mamba2", {"n_heads": 3, "head_dim": 21, "n_groups": 1, "d_state": 13, "kernel": 2}),
    "mamba, wide": ("Mamba2", {"n_heads": 2, "head_dim": 64, "n_groups": 2, "d_state": 128, "kernel": 4}),
    "mamba, one head": ("Mamba2", {"n_heads": 1, "head_dim": 1, "n_groups": 1, "d_state": 1, "kernel": 3}),
    "delta": ("DeltaNet", {"n_heads": 4, "n_k_heads": 2, "head_dim": 32, "kernel": 4, "tiled": 0}),
    "delta, tiled": ("DeltaNet", {"n_heads": 6, "n_k_heads": 2, "head_dim": 16, "kernel": 4, "tiled": 1}),
    "delta, odd": ("DeltaNet", {"n_heads": 3, "n_k_heads": 3, "head_dim": 19, "kernel": 3, "tiled": 0}),
    "delta, wide": ("DeltaNet", {"n_heads": 2, "n_k_heads": 1, "head_dim": 128, "kernel": 4, "tiled": 0}),
    "short": ("ShortConv", {"dim": 48, "kernel": 3}),
    "short, odd": ("ShortConv", {"dim": 37, "kernel": 2}),
}


@pytest.fixture(params=SIZES)
def case(request: pytest.FixtureRequest) -> Case:
    kind, sizes = SIZES[request.param]
    return Case(kind, np.random.default_rng(), **dict(sizes))


@pytest.mark.parametrize("n", [0, 1, 2, 33, 300])
def test_the_twin_gives_the_same(case: Case, isa: str, n: int) -> None:
    """A wrong tap, head, group or sign moves results by their own size; rounding by a millionth of it."""
    inputs, before = case.inputs(n), case.state()
    kept = [a.copy() for a in before]
    after, expected_after = case.poisoned(), case.poisoned()
    y = case.make(native_backend(2, isa=isa))(inputs, before, after)
    expected = case.make(TWIN)(inputs, before, expected_after)
    if n:
        assert nmse(y, expected.astype(np.float64)) < 1e-9
    assert y.shape == expected.shape
    for mine, theirs in zip(after, expected_after, strict=True):
        assert mine.shape == theirs.shape
        near = not mine.size or np.abs(mine - theirs).max() < 1e-6  # a state of one number may be almost nothing
        assert near or nmse(mine, theirs.astype(np.float64)) < 1e-9
    assert all(np.array_equal(a, b) for a, b in zip(before, kept, strict=True)), "the state before is left as it is"


def test_bits_do_not_depend_on_cuts_or_threads(case: Case, isa: str) -> None:
    """One token at a time, in any pieces, on any number of threads: the same bits, of results and of the state."""
    n, before = 70, case.state()
    inputs, expected_after = case.inputs(n), case.poisoned()
    expected = case.make(native_backend(1, isa=isa))(inputs, before, expected_after)
    for threads, cuts in ((1, range(n + 1)), (3, [0, 1, 18, 19, 50, n]), (2, [0, n])):
        mixer, state, got = case.make(native_backend(threads, isa=isa)), before, []
        for start, stop in zip(cuts, list(cuts)[1:], strict=False):
            after = case.poisoned()
            got.append(mixer(tuple(np.ascontiguousarray(a[start:stop]) for a in inputs), state, after))
            state = after
        assert np.concatenate(got).tobytes() == expected.tobytes()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(state, expected_after, strict=True))


def test_nan_and_infinity_are_data(case: Case) -> None:
    """They show where the formulas put them, and the call ends."""
    inputs, before = case.inputs(5), case.state()
    for array, number in zip(inputs, (np.nan, np.inf, -np.inf, np.nan), strict=False):
        array[2, 0] = number
    y = case.make(native_backend(2))(inputs, before, case.poisoned())
    assert np.isfinite(y[:2]).all() and not np.isfinite(y[2:]).all()


def test_wrong_arrays_are_refused(case: Case) -> None:
    """One clear error each, before anything is written."""
    mixer, inputs, before, after = case.make(native_backend(2)), case.inputs(3), case.state(), case.poisoned()
    with pytest.raises(InputError, match="inputs"):
        mixer((*inputs, inputs[0]), before, after)
    with pytest.raises(InputError, match="inputs"):
        mixer((np.ascontiguousarray(inputs[0][:, 1:]), *inputs[1:]), before, after)
    with pytest.raises(InputError, match="before"):
        mixer(inputs, before[:-1], after)
    with pytest.raises(InputError, match="one of before"):
        mixer(inputs, before, before)
    assert all(np.isnan(a).all() for a in after)
