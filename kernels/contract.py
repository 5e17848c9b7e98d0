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

from mixkv.kernels.contract_parts import (
    I64,
    Experts,
    FeedForward,
    Head,
    HeadLinear,
    NormLinear,
    NormQKV,
    Project,
    RecurrentPart,
    Weight,
)
from mixkv.kernels.formats import LayerFormat
from mixkv.kernels.parts import F32, SILU, Activation, Norm, Rotation, Routing, Temperature
from mixkv.kernels.reference_attention import Rows

U8 = NDArray[np.uint8]


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
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
    ) -> F32: ...  # fmt: skip
    def attend(
        self, layer: int, q: F32, pos: int, hot_from: I64, *, scale: float, softcap: float = 0.0,
        max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
    ) -> F32: ...  # fmt: skip
    def write(self, layer: int, k: F32, v: F32, pos: int) -> None: ...
    def quantize(self, layer: int, start: int, stop: int) -> None: ...
    def rehydrate(self, layer: int, start: int, stop: int) -> None: ...
    def get_hot(self, layer: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]: ...
    def set_hot(self, layer: int, start: int, k: NDArray[Any], v: NDArray[Any]) -> None: ...
    def get_cold(self, layer: int, start: int, stop: int) -> tuple[U8, U8]: ...
    def set_cold(self, layer: int, start: int, k: U8, v: U8) -> None: ...
    def copy(self) -> KVStore: ...
    def copy_ring(self, start: int, stop: int) -> KVStore: ...
    def take_ring(self, other: Any) -> None: ...
    def ring_pages(self) -> dict[int, int]: ...


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

    def packed_bytes(self, ggml_type: int, rows: int, cols: int, dense: bool = False) -> int:
        """Bytes that a matrix takes once it is packed: `Weight.nbytes` before there is a Weight."""

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

    def linear(self, x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32:
        """x w^T + bias + residual: x (n, cols), bias (rows,), residual (n, rows) -> (n, rows)."""

    def pack_experts(self, raw: U8, ggml_type: int, cols: int, exact: bool = False, dense: bool = False) -> Experts:
        """As `pack`, raw (n_experts, rows, row_bytes); experts may lie apart in memory (a slice of each one's rows),
        the rows of one may not."""

    def norm(self, x: F32, norm: Norm, residual: F32 | None = None) -> F32:
        """norm of rows x (n, dim), plus residual (n, dim)."""

    def activate(self, activation: Activation, g: F32, u: F32 | None) -> F32:
        """What `activation` makes of g and u (n, m); u None: there is no gate, and g is up's product."""

    def NormQKV(
        self, *, norm: Norm | None, wq: Weight, wk: Weight | None, wv: Weight | None, gate: Weight | None = None,
        bq: F32 | None = None, bk: F32 | None = None, bv: F32 | None = None, q_norm: Norm | None = None,
        k_norm: Norm | None = None, v_norm: Norm | None = None, norms_last: bool = False,
        rotation: Rotation | None = None, temperature: Temperature | None = None, n_heads: int, n_kv_heads: int,
        head_dim: int,
    ) -> NormQKV:  # fmt: skip
        """wq (n_heads * head_dim, dim), wk alike with n_kv_heads; wv may have another head size, and where it is None
        although there is wk, v is k before norm and rotation. gate (n_heads * head_dim_v, dim). bq, bk, bv: biases.
        Norms come before the rotation, or after it (norms_last)."""

    def HeadLinear(self, *, w: Experts) -> HeadLinear:
        """w: a matrix (rows, cols) for each head, packed as experts are."""

    def NormLinear(
        self, *, norm: Norm | None, weights: Sequence[Weight], biases: Sequence[F32 | None] = ()
    ) -> NormLinear:
        """weights (rows, dim) each; biases (rows,), as many or none at all."""

    def Project(
        self, *, w: Weight, bias: F32 | None = None, out_norm: Norm | None = None, scale: float = 1.0
    ) -> Project:
        """w (rows, cols), bias and out_norm's gain (rows,)."""

    def NormFFN(
        self, *, norm: Norm | None, gate: Weight | None, up: Weight, down: Weight, gate_bias: F32 | None = None,
        up_bias: F32 | None = None, down_bias: F32 | None = None, activation: Activation = SILU,
        token_gate: F32 | None = None, out_norm: Norm | None = None, scale: float = 1.0,
    ) -> FeedForward:  # fmt: skip
        """f(h) = down(activation(gate h, up h)); without a gate, down(activation(up h)). gate, up (n_ff, dim), down
        (dim, n_ff). token_gate (dim,): f(h) is multiplied by sigmoid(h . token_gate)."""

    def RoutedFFN(
        self, *, norm: Norm | None, router: Weight, routing: Routing, gate: Experts | None, up: Experts, down: Experts,
        gate_bias: F32 | None = None, up_bias: F32 | None = None, down_bias: F32 | None = None,
        activation: Activation = SILU, router_norm: Norm | None = None, router_bias: F32 | None = None,
        selection_bias: F32 | None = None, down_scale: F32 | None = None, out_norm: Norm | None = None,
        scale: float = 1.0,
    ) -> FeedForward:  # fmt: skip
        """f(h) = sum over a token's experts, in the order of their choice, of weight * down(activation(gate h, up h)).

        router (n_experts, dim) reads router_norm(x), or what the experts read where that is None; its bias and the
        selection bias (n_experts,). Biases of experts (n_experts, .), down_scale (n_experts,) on what each gives.
        """

    def Mamba2(
        self, *, conv: F32, conv_bias: F32 | None, a: F32, d: F32, dt_bias: F32, gain: F32 | None, eps: float,
        n_heads: int, head_dim: int, n_groups: int, d_state: int,
    ) -> RecurrentPart:  # fmt: skip
        """Mamba-2. inputs: one array of z (inner = n_heads * head_dim), x (inner), B, C (n_groups * d_state each) and
        dt (n_heads) side by side. Convolution over x, B, C, SiLU; step = softplus(dt + dt_bias); for head h of group g:
        S = S exp(a step) + step x B^T; y = S C + d x; then y silu(z), RMS-normed in n_groups pieces where there is a
        gain (inner,). conv (channels, kernel), its last column for the newest; a, d, dt_bias (n_heads,)."""

    def DeltaNet(
        self, *, conv: F32, a: F32, dt_bias: F32, gain: F32, eps: float, n_heads: int, n_k_heads: int, head_dim: int,
        tiled: bool,
    ) -> RecurrentPart:  # fmt: skip
        """Gated delta net. inputs: q, k, v side by side ((2 n_k_heads + n_heads) * head_dim), z (n_heads * head_dim),
        alpha and beta (n_heads) each. Convolution over q, k, v, SiLU; q and k to length 1 (at least eps), q over
        sqrt(head_dim). S = S exp(a softplus(alpha + dt_bias)); S += k (sigmoid(beta) (v - S^T k))^T; y = S^T q; then
        RMS norm of each head with gain (head_dim,), times silu(z). tiled: see layers.DeltaNet."""

    def ShortConv(self, *, conv: F32) -> RecurrentPart:
        """inputs: one array of b, c, x (dim each) side by side; y = c * convolution of b x. conv (dim, kernel)."""

    def Head(
        self, *, norm: Norm | None, w: Weight, bias: F32 | None = None, scale: float = 1.0, softcap: float = 0.0
    ) -> Head:
        """w (vocabulary, dim), bias (vocabulary,). softcap c > 0: c tanh(logit / c), last."""

    def KVStore(
        self, layers: Sequence[LayerFormat], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int, pool: Any = None, v_in_k: bool = False,
    ) -> KVStore:  # fmt: skip
        """layers: one format each. n_ctx: positions that may ever be stored. hot_tiles: ring slots. pool: the PagePool
        that its memory is from; None: one of its own, without a budget. v_in_k: values are the first head_dim_v numbers
        of keys and not kept by themselves: V has no numbers then wherever rows go in or out, and its formats mean
        nothing.

        ConfigError for numbers that cannot be, OutOfMemoryError for more positions than can be listed.
        """

    def page_pool(self, budget: int | None = None) -> PagePool:
        """Where stores take their pages from; budget: bytes, None for as many as there are."""

    def step_batch(
        self, layer: int, stores: Sequence[Any], q: F32, k: F32, v: F32, orders: Sequence[tuple[int, I64, int, int]], *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
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
