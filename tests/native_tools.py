"""What the tests of the native cache and attention share: known contents, float64 attention over them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from attention_oracle import slope_of
from numpy.typing import NDArray

from mixkv.kernels import open_backend
from mixkv.kernels.formats import LayerFormat, decode
from mixkv.kernels.parts import Norm

NATIVE_IS_BUILT = importlib.util.find_spec("mixkv.kernels._native") is not None

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def native_backend(n_threads: int = 2, isa: str | None = None) -> Any:
    """A native backend, whatever MIXKV_KERNELS asks for: with the methods that only tests call."""
    return open_backend(n_threads, kind="native", isa=isa)


def poison_freed_arrays(backend: Any, shape: tuple[int, ...]) -> None:
    """Leaves NaN in the memory that the next results of this shape are written to, so that holes show."""
    size = int(np.prod(shape))
    ones, nans = np.ones((1, size), np.float32), Norm(np.full(size, np.nan, np.float32), 1e-5)
    kept = [backend.norm(ones, nans) for _ in range(4)]
    assert np.isnan(kept).all()


def first_hot(pos: int, n: int, window: int, sinks: int) -> NDArray[np.int64]:
    """kv-cache.md section 2, for queries pos .. pos + n - 1."""
    p = np.arange(pos, pos + n, dtype=np.int64)
    return sinks + 16 * (np.maximum(0, p + 1 - window - sinks) // 16)


def hadamard_matrix(head_dim: int) -> F64:
    """The block-diagonal normalised Walsh-Hadamard matrix of the specification, by Sylvester's construction."""
    width = head_dim & -head_dim
    h = np.ones((1, 1))
    while len(h) < width:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(head_dim // width), h / np.sqrt(width))


@dataclass
class Run:
    """One layer's worth of tokens, fed in any way to a store (store_class: a backend's KVStore); everything follows the
    mixed cache's policy."""

    store_class: Any
    fmt: LayerFormat = field(default_factory=LayerFormat)
    n: int = 150
    n_kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    head_dim_v: int = 0
    sinks: int = 5
    window: int = 33
    hot_tiles: int = 0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.head_dim_v = self.head_dim_v or self.head_dim
        self.hot_tiles = self.hot_tiles or self.n // 16 + 2
        self.k = rng.standard_normal((self.n, self.n_kv_heads, self.head_dim), dtype=np.float32)
        self.v = rng.standard_normal((self.n, self.n_kv_heads, self.head_dim_v), dtype=np.float32)
        self.q = rng.standard_normal((self.n, self.n_kv_heads * self.group, self.head_dim), dtype=np.float32)
        self.scale = self.head_dim**-0.5

    def store(self) -> Any:
        return self.store_class([self.fmt], **self.shape())

    def shape(self) -> dict[str, int]:
        """What a store of this run is made with."""
        return {
            "n_kv_heads": self.n_kv_heads, "head_dim_k": self.head_dim, "head_dim_v": self.head_dim_v,
            "n_ctx": self.n + 16, "sink_tokens": self.sinks, "hot_tiles": self.hot_tiles,
        }  # fmt: skip

    def feed(self, store: Any, pos: int, stop: int) -> F32:
        """Tokens [pos, stop) in one step, with what turns cold in it."""
        hot = first_hot(pos, stop - pos, self.window, self.sinks)
        before = int(first_hot(pos - 1, 1, self.window, self.sinks)[0]) if pos else self.sinks
        s = slice(pos, stop)
        return store.step(
            0, self.q[s], self.k[s], self.v[s], pos, hot, before, int(hot[-1]), scale=self.scale, **self.options
        )

    def outputs(self, store: Any, chunk: int) -> F32:
        """All tokens in chunks of this length."""
        parts = [self.feed(store, a, min(a + chunk, self.n)) for a in range(0, self.n, chunk)]
        return np.concatenate(parts)

    def exact(self, store: Any, first: int = 0) -> F64:
        """Queries `first` on, attended in float64 over what the store gives out, in the form that each query reads."""
        hot_from = first_hot(0, self.n, self.window, self.sinks)
        s, stop = self.sinks, int(hot_from[-1])
        hot = [
            np.concatenate(x)
            for x in zip(store.get_hot(0, 0, min(s, self.n)), store.get_hot(0, s, self.n), strict=True)
        ]
        cold = [x.astype(np.float64) for x in hot]
        for side, kind, dim in ((0, self.fmt.type_k, self.head_dim), (1, self.fmt.type_v, self.head_dim_v)):
            cold[side][s:stop] = decode(store.get_cold(0, s, stop)[side], kind, dim)
        q = self.q.astype(np.float64) @ (hadamard_matrix(self.head_dim) if self.fmt.rotate_k else np.eye(self.head_dim))
        out = np.zeros((self.n, self.n_kv_heads * self.group, self.head_dim_v))
        for i in range(first, self.n):
            j = np.arange(max(0, i - int(self.options["window"]) + 1) if self.options.get("window") else 0, i + 1)
            read_cold = ((j >= s) & (j < hot_from[i]))[:, None, None]
            keys, values = (np.where(read_cold, cold[x][j], hot[x][j].astype(np.float64)) for x in (0, 1))
            for h in range(out.shape[1]):
                out[i, h] = self._one(q[i, h], keys[:, h // self.group], values[:, h // self.group], h, j - i)
        back = hadamard_matrix(self.head_dim_v) if self.fmt.rotate_v else np.eye(self.head_dim_v)
        return out[first:] @ back

    def _one(self, q: F64, keys: F64, values: F64, head: int, distance: NDArray[np.int64]) -> F64:
        score = keys @ q * self.scale
        if cap := self.options.get("softcap", 0.0):
            score = cap * np.tanh(score / cap)
        if bias := self.options.get("max_bias", 0.0):
            score = score + slope_of(head, self.n_kv_heads * self.group, bias) * distance
        sinks = self.options.get("sinks")
        base = max(score.max(), -np.inf if sinks is None else sinks[head])
        weight = np.exp(score - base)
        return weight @ values / (weight.sum() + (0 if sinks is None else np.exp(sinks[head] - base)))


def same_bits(a: F32, b: F32) -> bool:
    """Equal bit for bit, NaN included."""
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))
