"""What the tests of a layer's native pieces share: weights for both twins, comparisons, the NumPy twin itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as T
from native_tools import F32, native_backend, same_bits
from weight_tools import random_raw

from mixkv.kernels import open_backend
from mixkv.kernels.parts import Norm

numpy: Any = open_backend(1, kind="reference")

ROUNDED, EXACT = 5e-4, 1e-10
"""NMSE of products of activations that are rounded to int8, and of float32 ones."""


class Weights:
    """Random weights as the files of both twins have them, and vectors, of one seed. native: a backend."""

    def __init__(self, native: Any, seed: int) -> None:
        self.native, self.rng = native, np.random.default_rng(seed)

    def __call__(self, kind: T, rows: int, cols: int) -> tuple[Any, Any]:
        """(native, reference), of numbers so large that products are of order 1."""
        raw = random_raw(kind, rows, cols, self.rng, std=cols**-0.5)
        return self.native.pack(raw, int(kind), cols), numpy.pack(raw, int(kind), cols)

    def vector(self, *shape: int) -> F32:
        return self.rng.standard_normal(shape, np.float32)

    def norm(self, *shape: int) -> Norm:
        """One of the kinds of norms of this shape."""
        gain, bias = (self.vector(*shape) if self.rng.random() < 0.7 else None for _ in range(2))
        eps = float(self.rng.choice([1e-5, 0.3]))  # the larger one lets a row's scale show in what comes out
        return Norm(1 + gain / 4 if gain is not None else None, eps, bool(self.rng.random() < 0.5), bias)

    def perhaps(self, value: Any) -> Any:
        return value if self.rng.random() < 0.5 else None


def twins(make: str, native: Any, pairs: dict[str, Any], **common: Any) -> tuple[Any, Any]:
    """The piece `make` of both backends; pairs: arguments that each twin has its own of (or None)."""
    sides = ({name: pair if pair is None else pair[i] for name, pair in pairs.items()} for i in (0, 1))
    native_piece, reference_piece = (
        getattr(backend, make)(**side, **common) for backend, side in zip((native, numpy), sides, strict=True)
    )
    return native_piece, reference_piece


def nmse(got: F32, want: F32) -> float:
    """Of float32 results against the twin's; no NaN."""
    assert got.shape == want.shape and got.dtype == want.dtype == np.float32
    assert not np.isnan(got).any()
    return float(((got.astype(np.float64) - want) ** 2).sum() / max((want.astype(np.float64) ** 2).sum(), 1e-30))


def check_bits(native: Any, make: Callable[[Any], Callable[..., Any]], args: Sequence[F32 | None], got: Any) -> None:
    """The same bits for parts of the tokens and for other numbers of threads. make: a backend -> the piece."""
    for m in (1, 2, 9, 20):
        at = slice(len(args[0]) - m, None) if args[0] is not None else slice(0, 0)
        some = make(native)(*(a if a is None else np.ascontiguousarray(a[at]) for a in args))
        for part, whole in zip(as_tuple(some), as_tuple(got), strict=True):
            assert part is whole is None or same_bits(part, whole[at]), f"{m} tokens"
    for threads in (1, 3):
        again = make(native_backend(threads, isa=native.isa))(*args)
        for a, b in zip(as_tuple(again), as_tuple(got), strict=True):
            assert a is b is None or same_bits(a, b), f"{threads} threads"


def as_tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
