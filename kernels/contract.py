"""What a backend is: the numeric operations that models and the engine call, and the types that these give out.

Both twins (native.py, reference.py) fulfil `Backend`; docs/architecture.md says the same in one page. A backend has
threads, an instruction set and scratch memory of its own, and shares nothing with another one in the process: calls of
several Python threads on one backend take turns, calls on two run side by side. What a backend made works with that
backend and no other, save weights, which any native backend can read that another one packed.

n is the number of tokens; arrays are C-contiguous, activations float32. A wrong shape is an InputError. Where memory
runs out there is a MemoryError (mixkv's OutOfMemoryError is one), and everything can be used on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.formats import LayerFormat
from mixkv.kernels.reference_attention import Rows

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


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


class NormQKV(Protocol):
    """The first half of a layer up to attention: RMS norm, Q/K/V projections, biases, per-head QK norm, RoPE."""

    def __call__(self, x: F32, positions: I64) -> tuple[F32, F32, F32]:
        """x (n, dim), rows at positions (n,) -> q (n, n_heads, head_dim), k, v (n, n_kv_heads, .)."""


class NormFFN(Protocol):
    """The second half of a layer, the residual included."""

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> x + down(silu(gate h) * up h), h = rms_norm(x)."""


class Head(Protocol):
    """From the last hidden state to logits."""

    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> w rms_norm(x), (n, vocabulary)."""


class PagePool(Protocol):
    """Memory for the caches of many sequences: pages that they share, under one budget. It works with every backend of
    the kind that made it."""

    @property
    def budget(self) -> int | None:
        """The most bytes of pages that may be in use; None: as many as there are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use, each counted once."""

    @property
    def peak_nbytes(self) -> int:
        """The most that it ever was."""


class KVStore(Protocol):
    """Storage of all layers' keys and values; method by method in docs/architecture.md and store.py."""

    def reserve(self, hot_start: int, hot_stop: int, cold_start: int, cold_stop: int) -> None: ...
    def trim(self, hot_stop: int, cold_stop: int) -> None: ...

    def step(
        self, layer: int, q: F32, k: F32, v: F32, pos: int, hot_from: I64, cold_from: int, cold_to: int, *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0,
    ) -> F32: ...  # fmt: skip
    def attend(
        self, layer: int, q: F32, pos: int, hot_from: I64, *, scale: float, softcap: float = 0.0,
        max_bias: float = 0.0, window: int = 0,
    ) -> F32: ...  # fmt: skip
    def write(self, layer: int, k: F32, v: F32, pos: int) -> None: ...
    def quantize(self, layer: int, start: int, stop: int) -> None: ...
    def rehydrate(self, layer: int, start: int, stop: int) -> None: ...
    def get_hot(self, layer: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]: ...
    def set_hot(self, layer: int, start: int, k: NDArray[Any], v: NDArray[Any]) -> None: ...
    def get_cold(self, layer: int, start: int, stop: int) -> tuple[U8, U8]: ...
    def set_cold(self, layer: int, start: int, k: U8, v: U8) -> None: ...
    def copy(self) -> KVStore: ...


class Backend(Protocol):
    """See above. `backend.open_backend` makes one."""

    @property
    def name(self) -> str:
        """Which twin this is, "native" or "reference": for reports, never to decide by."""

    @property
    def isa(self) -> str:
        """The instruction set; "numpy" where NumPy decides."""

    @property
    def n_threads(self) -> int:
        """Threads that compute, the caller included."""

    @property
    def keeps_dense(self) -> bool:
        """Whether `pack(dense=True)` holds float32: 4 bytes for every number of a matrix."""

    def work_numbers(self, *, n_rows: int, n_ff: int, n_queries: int, n_heads: int, n_keys: int) -> int:
        """Float32 numbers that a forward pass of n_rows tokens holds at most beside its arrays: what a feed-forward of
        n_ff needs for itself, and attention of n_queries to n_keys."""

    def cpu_report(self) -> dict[str, Any]:
        """cpu, isa, supported, features {name: yes | no | not enabled by the system}, threads; NumPy knows nothing."""

    def read_bandwidth(self, n_bytes: int) -> float:
        """Bytes a second read from memory by all threads, in one pass over n_bytes of fresh memory."""

    def pack(self, raw: U8, ggml_type: int, cols: int, exact: bool = False, dense: bool = False) -> Weight:
        """raw (rows, row_bytes) uint8 as in the file, read-only memory allowed. GGUFError for what cannot be packed.

        exact: products with float32 activations, many times slower natively. dense: dequantized once (NumPy alone).
        """

    def embed(self, w: Weight, ids: NDArray[np.int32]) -> F32:
        """Rows `ids` (n,) of a matrix, dequantized bit for bit as GGML: (n, cols)."""

    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32:
        """x (n, dim) / sqrt(mean(x^2) + eps) * gain (dim,)."""

    def linear(self, x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32:
        """x w^T + bias + residual: x (n, cols), bias (rows,), residual (n, rows) -> (n, rows)."""

    def NormQKV(
        self, *, norm: F32, eps: float, wq: Weight, wk: Weight, wv: Weight, bq: F32 | None = None,
        bk: F32 | None = None, bv: F32 | None = None, q_norm: F32 | None = None, k_norm: F32 | None = None,
        inv_freq: F32, interleaved: bool, rope_scale: float = 1.0, n_heads: int, n_kv_heads: int, head_dim: int,
    ) -> NormQKV:  # fmt: skip
        """norm (dim,); wq (n_heads * head_dim, dim), wk, wv alike with n_kv_heads; bq, bk, bv their biases; q_norm,
        k_norm (head_dim,) gains of a per-head RMS norm before RoPE (Qwen3). V's head may be wider or narrower."""

    def NormFFN(
        self, *, norm: F32, eps: float, gate: Weight, up: Weight, down: Weight, gate_bias: F32 | None = None,
        up_bias: F32 | None = None, down_bias: F32 | None = None,
    ) -> NormFFN:  # fmt: skip
        """norm (dim,); gate, up (n_ff, dim), down (dim, n_ff); biases of gate and up (n_ff,), of down (dim,)."""

    def Head(self, *, norm: F32, eps: float, w: Weight) -> Head:
        """norm (dim,), w (vocabulary, dim)."""

    def KVStore(
        self, layers: Sequence[LayerFormat], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int, pool: Any = None,
    ) -> KVStore:  # fmt: skip
        """layers: one format each. n_ctx: positions that may ever be stored. hot_tiles: ring slots. pool: the PagePool
        that its memory is from; None: one of its own, without a budget.

        ConfigError for numbers that cannot be, OutOfMemoryError for more positions than can be listed.
        """

    def page_pool(self, budget: int | None = None) -> PagePool:
        """Where stores take their pages from; budget: bytes, None for as many as there are."""

    def step_batch(
        self, layer: int, stores: Sequence[Any], q: F32, k: F32, v: F32, orders: Sequence[tuple[int, I64, int, int]], *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0,
    ) -> F32:  # fmt: skip
        """One layer's `KVStore.step` of several sequences, each with a store of its own, as one job.

        q, k, v have the rows of the first store, then those of the second, and so on; orders: (pos, hot_from,
        cold_from, cold_to) for each store, with as many numbers in hot_from as it has rows. The bits are those of
        separate calls.
        """

    def attend_segment(
        self, q: F32, k: Rows, v: Rows, mask: F32 | None, m: F32, s: F32, acc: F32, scale: float,
        slopes: F32 | None = None, softcap: float = 0.0,
    ) -> tuple[F32, F32, F32]:  # fmt: skip
        """The state after one more segment (kv-cache.md section 6); the arguments are left as they are.

        q (n_queries, n_heads, head_dim); k, v (n_keys, n_kv_heads, .) FP16, float32 or QuantizedRows, n_heads a
        multiple of n_kv_heads; mask additive (n_queries, n_keys) or None; m, s (n_queries, n_heads); acc (n_queries,
        n_heads, head_dim_v); slopes (n_heads,) multiply the mask (ALiBi). Score: softcap * tanh(scale q.k / softcap)
        + slope * mask.
        """

    def apply_token_mask(self, logits: F32, bitmask: NDArray[np.int32]) -> F32:
        """logits (n_vocab,) with -inf for each token i that bit i % 32 of bitmask[i // 32] does not allow; tokens
        beyond the mask's end are not allowed, bits beyond the vocabulary mean nothing. A fresh array."""
