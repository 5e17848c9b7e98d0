"""Types of the native extension (kernels/csrc). What things mean stands in contract.py.

All arrays are C-contiguous; none is copied in silence. Shapes that do not fit raise InputError, wrong dtypes TypeError
(in a KVStore InputError), weights that cannot be packed GGUFError, lack of memory OutOfMemoryError. Results are fresh
arrays. A token's result is the same bits for any n, any split of a prompt and any number of threads (per instruction
set).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.contract import Head, KVStore, NormFFN, NormQKV, PagePool, Weight

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

class Backend:
    def __init__(self, n_threads: int, isa: str = "") -> None:
        """isa "" is the best one. ConfigError for what cannot be."""

    @property
    def isa(self) -> str: ...
    @property
    def n_threads(self) -> int: ...
    def cpu_report(self) -> dict[str, Any]: ...
    def read_bandwidth(self, n_bytes: int) -> float: ...
    def pack(self, raw: U8, ggml_type: int, cols: int, exact: bool = False, dense: bool = False) -> Weight:
        """In the layout of csrc/packed.h, whatever the instruction set. Runs on the pool; raw is not kept.

        Quantized weights meet activations rounded to int8 per block of 32; with exact=True (or for all weights with
        MIXKV_ACTIVATIONS=f32) float32 activations and dequantized weights. `dense` changes nothing here.
        """

    def embed(self, w: Weight, ids: I32) -> F32: ...
    def rms_norm(self, x: F32, gain: F32, eps: float) -> F32: ...
    def linear(self, x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32: ...
    def NormQKV(
        self, *, norm: F32, eps: float, wq: Weight, wk: Weight, wv: Weight, bq: F32 | None = None,
        bk: F32 | None = None, bv: F32 | None = None, q_norm: F32 | None = None, k_norm: F32 | None = None,
        inv_freq: F32, interleaved: bool, rope_scale: float = 1.0, n_heads: int, n_kv_heads: int, head_dim: int,
    ) -> NormQKV: ...  # fmt: skip
    def NormFFN(
        self, *, norm: F32, eps: float, gate: Weight, up: Weight, down: Weight, gate_bias: F32 | None = None,
        up_bias: F32 | None = None, down_bias: F32 | None = None,
    ) -> NormFFN: ...  # fmt: skip
    def Head(self, *, norm: F32, eps: float, w: Weight) -> Head: ...
    def KVStore(
        self, layers: Sequence[Any], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int, pool: Any = None,
    ) -> KVStore: ...  # fmt: skip
    def page_pool(self, budget: int | None = None) -> PagePool: ...
    def step_batch(
        self, layer: int, stores: Sequence[Any], q: F32, k: F32, v: F32, orders: Sequence[tuple[int, I64, int, int]], *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0,
    ) -> F32: ...  # fmt: skip
    def attend_segment_rows(
        self, q: F32, k: U8, type_k: str, v: U8, type_v: str, head_dim_v: int, mask: F32 | None, m: F32, s: F32,
        acc: F32, scale: float, slopes: F32 | None, softcap: float,
    ) -> tuple[F32, F32, F32]: ...  # fmt: skip
    def apply_token_mask(self, logits: F32, bitmask: I32) -> F32: ...
    def poison_scratch(self, on: bool) -> None:
        """Tests: fill attention's scratch memory with NaN before each use, and pages before they are first written."""

    def debug_idots(self, x: F32, w: Weight) -> I32:
        """Tests: the integer dot products, (groups of 16 rows, n, blocks, 2 halves, 16)."""

    def debug_quantize(self, x: F32) -> F32:
        """Tests: x as the int8 kernels see it, rounded and multiplied out again."""

def supported_isas() -> list[str]:
    """Those that this machine can run, in rising order."""

def available_cores() -> int:
    """Physical cores that affinity and cgroup quota leave to this process; the default number of threads."""

def weight_types() -> list[tuple[str, int]]:
    """(name, GGML type number) of every format that can be packed (F64 becomes F32)."""
