"""The NumPy backend, the readable twin of csrc/, kept to contract.py: weights, products and what layers are made of.

NumPy's BLAS keeps threads of its own, whatever number a backend was opened with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.errors import ConfigError
from mixkv.kernels.ggml import BLOCK_SIZES, WeightType
from mixkv.kernels.parts import F32, Activation, Norm
from mixkv.kernels.reference_attention import KEY_BLOCK, attend_segment
from mixkv.kernels.reference_layers import Head, HeadLinear, NormFFN, NormLinear, NormQKV, Project, activate, normalise
from mixkv.kernels.reference_recurrent import DeltaNet, Mamba2, ShortConv
from mixkv.kernels.reference_routed import RoutedFFN
from mixkv.kernels.reference_weights import Experts, Weight, linear
from mixkv.kernels.store import KVStore
from mixkv.kernels.store_batch import step_batch
from mixkv.kernels.store_pages import PagePool

MAX_THREADS = 1024


class ReferenceBackend:
    """See contract.Backend. What it makes is in the classes above, which need nothing of it."""

    name, isa = "reference", "numpy"

    def __init__(self, n_threads: int) -> None:
        if not 1 <= n_threads <= MAX_THREADS:
            raise ConfigError(f"threads must be between 1 and {MAX_THREADS}, not {n_threads}")
        self.n_threads = n_threads

    def packed_bytes(self, ggml_type: int, rows: int, cols: int, dense: bool = False) -> int:
        """See contract.Backend: the bytes of the file, or float32."""
        block, block_bytes = BLOCK_SIZES[WeightType(ggml_type)]
        return rows * (4 * cols if dense else cols // block * block_bytes)

    def work_numbers(self, *, n_rows: int, n_ff: int, n_queries: int, n_heads: int, n_keys: int) -> int:
        """See contract.Backend: scores of a piece of queries, and steps of an expression."""
        return 3 * n_heads * n_queries * min(KEY_BLOCK, n_keys) + 2 * n_rows * n_ff

    def cpu_report(self) -> dict[str, Any]:
        """What the kernels know of the CPU: here nothing, NumPy looks at it by itself."""
        return {}

    def read_bandwidth(self, n_bytes: int) -> float:
        """Bytes a second read from memory in one pass over n_bytes, by NumPy and so by one thread."""
        memory = np.ones(n_bytes // 8, np.int64)
        start = time.perf_counter()
        memory.sum()
        return memory.nbytes / (time.perf_counter() - start)

    def pack(
        self, raw: NDArray[np.uint8], ggml_type: int, cols: int, exact: bool = False, dense: bool = False
    ) -> Weight:
        """raw is kept, not copied. exact changes nothing: activations are float32 anyway."""
        return Weight(raw, ggml_type, cols, dense)

    def pack_experts(
        self, raw: NDArray[np.uint8], ggml_type: int, cols: int, exact: bool = False, dense: bool = False
    ) -> Experts:
        """raw (n_experts, rows, row_bytes); as `pack`."""
        return Experts(raw, ggml_type, cols, dense)

    def norm(self, x: F32, norm: Norm, residual: F32 | None = None) -> F32:
        """See contract.Backend."""
        y = normalise(x, norm)
        return y if residual is None else residual + y

    def embed(self, w: Any, ids: NDArray[np.int32]) -> F32:
        """Rows `ids` (n,) of a Weight: (n, cols). The caller has checked the range."""
        rows: F32 = w.rows_as_float(ids)
        return rows

    def linear(self, x: F32, w: Any, bias: F32 | None = None, residual: F32 | None = None) -> F32:
        """The function above, of one of our Weights."""
        return linear(x, w, bias, residual)

    attend_segment = staticmethod(attend_segment)

    def activate(self, activation: Activation, g: F32, u: F32 | None) -> F32:
        """See contract.Backend."""
        return activate(activation, g, np.float32(1) if u is None else u)

    def NormQKV(self, **parts: Any) -> NormQKV:
        return NormQKV(**parts)

    def HeadLinear(self, **parts: Any) -> HeadLinear:
        return HeadLinear(**parts)

    def NormLinear(self, *, norm: Norm | None, weights: Sequence[Any], biases: Sequence[F32 | None] = ()) -> NormLinear:
        return NormLinear(norm, weights, biases)

    def Project(self, **parts: Any) -> Project:
        return Project(**parts)

    def NormFFN(self, **parts: Any) -> NormFFN:
        return NormFFN(**parts)

    def RoutedFFN(self, **parts: Any) -> RoutedFFN:
        return RoutedFFN(**parts)

    def Mamba2(self, **parts: Any) -> Mamba2:
        return Mamba2(**parts)

    def DeltaNet(self, **parts: Any) -> DeltaNet:
        return DeltaNet(**parts)

    def ShortConv(self, **parts: Any) -> ShortConv:
        return ShortConv(**parts)

    def Head(self, **parts: Any) -> Head:
        return Head(**parts)

    def KVStore(self, *args: Any, **shape: Any) -> KVStore:
        return KVStore(*args, **shape)

    def page_pool(self, budget: int | None = None) -> PagePool:
        return PagePool(budget)

    step_batch = staticmethod(step_batch)

    def apply_token_mask(self, logits: F32, bitmask: NDArray[np.int32]) -> F32:
        """See contract.Backend."""
        bits = np.unpackbits(bitmask.astype("<i4").view(np.uint8), bitorder="little")[: len(logits)].astype(np.bool_)
        out = np.full(len(logits), -np.inf, np.float32)
        out[: len(bits)][bits] = logits[: len(bits)][bits]
        return out
