"""What a backend makes for layers, as those who call it see it; contract.Backend says how each is made."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.parts import F32

I64 = NDArray[np.int64]
Arrays = tuple[F32, ...]


class Weight(Protocol):
    """A matrix of a model file, (rows, cols), in a backend's own layout."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def ggml_type(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Experts(Protocol):
    """Matrices (rows, cols) of n experts, packed as one."""

    @property
    def n(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class NormQKV(Protocol):
    """The first half of a layer up to attention: norm, projections, biases, QK norm, RoPE."""

    def __call__(self, x: F32, positions: I64) -> tuple[F32, F32 | None, F32 | None, F32 | None]:
        """x (n, dim), rows at positions (n,) -> q (n, n_heads, head_dim), k, v (n, n_kv_heads, .), gate (n, n_heads *
        head_dim_v); None for those that the layer does not have."""


class HeadLinear(Protocol):
    """Products of each head's rows with a matrix of its own."""

    def __call__(self, x: F32) -> F32:
        """x (n, n_heads, cols) -> (n, n_heads, rows)."""


class NormLinear(Protocol):
    """A norm and several products of the same rows."""

    def __call__(self, x: F32) -> tuple[F32, ...]:
        """x (n, dim) -> (n, rows) of each weight."""


class Project(Protocol):
    """From a mixer's heads back to the residual stream."""

    def __call__(self, h: F32, residual: F32 | None, gate: F32 | None = None) -> F32:
        """h (n, cols), residual (n, rows), gate (n, cols) -> residual + scale * out_norm(w (h sigmoid(gate)) + bias),
        (n, rows); without a residual the rest alone."""


class RecurrentPart(Protocol):
    """What a recurrent mixer does between its projections, for one sequence."""

    def __call__(self, inputs: Arrays, before: Arrays, after: Arrays) -> F32:
        """inputs: (n, .) products of a sequence's next n tokens, in order; before: its state, the convolution's inputs
        first, which is left as it is; after: arrays of the same shapes, none of them one of `before`, that the state
        behind the tokens is written into. -> (n, width)."""


class FeedForward(Protocol):
    """The second half of a layer, one feed-forward for all tokens (NormFFN) or routed experts (RoutedFFN)."""

    def __call__(self, x: F32, residual: F32 | None) -> F32:
        """x, residual (n, dim) -> residual + scale * out_norm(f(norm(x))), (n, dim)."""


class Head(Protocol):
    """From the last hidden state to logits."""

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> scale * (w norm(x) + bias), capped: (n, vocabulary)."""
