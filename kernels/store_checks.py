"""What the cache's methods may be called with: arrays of the right type and shape, positions inside the context, tiles
that are whole. All else is an InputError, and nothing is written. The native twin is csrc/kv_args.cpp.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mixkv.kernels.errors import ConfigError, InputError
from mixkv.kernels.formats import TILE

MAX_HEAD_DIM = 1024


def require(ok: bool, what: str, why: str) -> None:
    """InputError unless `ok`."""
    if not ok:
        raise InputError(f"KVStore.{what}: {why}")


def check_sizes(
    n_kv_heads: int, head_dims: tuple[int, int], n_ctx: int, sink_tokens: int, hot_tiles: int, v_in_k: bool
) -> None:
    """ConfigError for a store that cannot be."""
    if not (1 <= n_kv_heads <= 1 << 20 and all(1 <= dim <= MAX_HEAD_DIM for dim in head_dims)):
        raise ConfigError(
            f"a KV cache takes n_kv_heads >= 1 and head_dim 1..{MAX_HEAD_DIM}, not n_kv_heads {n_kv_heads}, "
            f"head_dim_k {head_dims[0]}, head_dim_v {head_dims[1]}"
        )
    if not (1 <= n_ctx <= 1 << 40 and sink_tokens >= 0 and 1 <= hot_tiles <= 1 << 36):
        raise ConfigError(
            f"a KV cache needs n_ctx >= 1, sink_tokens >= 0 and hot_tiles >= 1, not {n_ctx}, {sink_tokens}, {hot_tiles}"
        )

    if v_in_k and head_dims[1] > head_dims[0]:
        raise ConfigError(f"values of {head_dims[1]} numbers are no part of keys of {head_dims[0]}")


def check_rotation(rotated: bool, head_dims: tuple[int, int], width: int) -> None:
    """ConfigError where values are part of keys whose rotation, of `width` numbers at a time, would mix them with the
    rest."""
    if rotated and head_dims[1] % width:
        raise ConfigError(f"keys of {head_dims[0]} numbers cannot be rotated, {head_dims[1]} of which are values")


class Checks:
    """The checks of a store of these sizes; `what` is the method, for the message. widths: numbers of a K and a V
    row."""

    def __init__(self, n_layers: int, n_kv_heads: int, widths: tuple[int, int], n_ctx: int, sinks: int) -> None:
        self.n_layers, self.heads, self.widths = n_layers, n_kv_heads, widths
        self.n_ctx, self.sinks = n_ctx, sinks

    def layer(self, layer: int, what: str) -> int:
        require(0 <= index(layer) < self.n_layers, what, f"layer {layer} of {self.n_layers}")
        return index(layer)

    def span(self, start: int, n: int, what: str) -> None:
        """Positions start ... start + n - 1 are inside the context."""
        inside = 0 <= start <= self.n_ctx and n <= self.n_ctx - start
        require(inside, what, f"{n} positions from {start} on, of a context of {self.n_ctx}")

    def tiles(self, start: int, stop: int, what: str) -> None:
        whole = index(stop) <= index(start) or (
            start >= self.sinks and stop <= self.n_ctx and (start - self.sinks) % TILE == (stop - start) % TILE == 0
        )
        require(whole, what, f"[{start}, {stop}) are not whole tiles of this cache")

    def rows(self, sides: tuple[Any, Any], dtypes: tuple[DTypeLike, DTypeLike], widths: tuple[int, int],
             what: str) -> int:  # fmt: skip
        """K and V (n, n_kv_heads, width) of these dtypes; returns n."""
        for name, a, dtype in zip("kv", sides, dtypes, strict=True):
            array(a, 3, dtype, what, name)
        n = len(sides[0])
        for a, width in zip(sides, widths, strict=True):
            require(a.shape == (n, self.heads, width), what, f"rows {a.shape} do not fit: ({n}, {self.heads}, {width})")
        return n

    def queries(self, q: Any, pos: int, hot_from: Any, window: int, sinks: Any, what: str) -> None:
        array(q, 3, np.float32, what, "q")
        array(hot_from, 1, np.int64, what, "hot_from")
        n, n_heads, width = q.shape
        fits = n_heads > 0 and n_heads % self.heads == 0 and width == self.widths[0] and len(hot_from) == n
        require(fits, what, f"q {q.shape} with {len(hot_from)} hot_from has a wrong shape")
        require(index(window) >= 0, what, f"window {window} is negative")
        if sinks is not None:
            array(sinks, 1, np.float32, what, "sinks")
            require(len(sinks) == n_heads, what, f"{len(sinks)} sinks for {n_heads} query heads")
        self.span(pos, n, what)
        started = (hot_from <= self.sinks) | (hot_from > pos + np.arange(n)) | ((hot_from - self.sinks) % TILE == 0)
        require(bool(started.all()), what, f"hot_from {hot_from[~started][:1]} is not the start of a tile")


def array(a: Any, dims: int, dtype: DTypeLike, what: str, name: str) -> NDArray[Any]:
    """`a` itself: a C-contiguous array of this dtype and number of dimensions."""
    require(isinstance(a, np.ndarray), what, f"{name} is not an array of numbers")
    require(a.ndim == dims, what, f"{name} has {a.ndim} dimensions, not {dims}")
    require(a.flags.c_contiguous, what, f"{name} is not C-contiguous")
    require(a.dtype == dtype, what, f"{name} has another dtype than it must: {a.dtype}")
    checked: NDArray[Any] = a
    return checked
