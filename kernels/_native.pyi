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

from mixkv.kernels.contract import KVStore, PagePool
from mixkv.kernels.contract_parts import (
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
from mixkv.kernels.parts import Activation, Norm, Rotation, Routing, Temperature

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

    def pack_experts(self, raw: U8, ggml_type: int, cols: int, exact: bool = False, dense: bool = False) -> Experts: ...
    def embed(self, w: Weight, ids: I32) -> F32: ...
    def linear(self, x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32: ...
    def norm(self, x: F32, norm: Norm, residual: F32 | None = None) -> F32: ...
    def activate(self, activation: Activation, g: F32, u: F32 | None) -> F32: ...
    def NormQKV(
        self, *, norm: Norm | None, wq: Weight, wk: Weight | None, wv: Weight | None, gate: Weight | None = None,
        bq: F32 | None = None, bk: F32 | None = None, bv: F32 | None = None, q_norm: Norm | None = None,
        k_norm: Norm | None = None, v_norm: Norm | None = None, norms_last: bool = False,
        rotation: Rotation | None = None, temperature: Temperature | None = None, n_heads: int, n_kv_heads: int,
        head_dim: int,
    ) -> NormQKV: ...  # fmt: skip
    def HeadLinear(self, *, w: Experts) -> HeadLinear: ...
    def NormLinear(
        self, *, norm: Norm | None, weights: Sequence[Weight], biases: Sequence[F32 | None] = ()
    ) -> NormLinear: ...
    def Project(
        self, *, w: Weight, bias: F32 | None = None, out_norm: Norm | None = None, scale: float = 1.0
    ) -> Project: ...
    def NormFFN(
        self, *, norm: Norm | None, gate: Weight | None, up: Weight, down: Weight, gate_bias: F32 | None = None,
        up_bias: F32 | None = None, down_bias: F32 | None = None, activation: Activation = ...,
        token_gate: F32 | None = None, out_norm: Norm | None = None, scale: float = 1.0,
    ) -> FeedForward: ...  # fmt: skip
    def RoutedFFN(
        self, *, norm: Norm | None, router: Weight, routing: Routing, gate: Experts | None, up: Experts, down: Experts,
        gate_bias: F32 | None = None, up_bias: F32 | None = None, down_bias: F32 | None = None,
        activation: Activation = ..., router_norm: Norm | None = None, router_bias: F32 | None = None,
        selection_bias: F32 | None = None, down_scale: F32 | None = None, out_norm: Norm | None = None,
        scale: float = 1.0,
    ) -> FeedForward: ...  # fmt: skip
    def Mamba2(
        self, *, conv: F32, conv_bias: F32 | None = None, a: F32, d: F32, dt_bias: F32, gain: F32 | None = None,
        eps: float, n_heads: int, head_dim: int, n_groups: int, d_state: int,
    ) -> RecurrentPart: ...  # fmt: skip
    def DeltaNet(
        self, *, conv: F32, a: F32, dt_bias: F32, gain: F32, eps: float, n_heads: int, n_k_heads: int, head_dim: int,
        tiled: bool,
    ) -> RecurrentPart: ...  # fmt: skip
    def ShortConv(self, *, conv: F32) -> RecurrentPart: ...
    def Head(
        self, *, norm: Norm | None, w: Weight, bias: F32 | None = None, scale: float = 1.0, softcap: float = 0.0
    ) -> Head: ...
    def KVStore(
        self, layers: Sequence[Any], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int, pool: Any = None, v_in_k: bool = False,
    ) -> KVStore: ...  # fmt: skip
    def page_pool(self, budget: int | None = None) -> PagePool: ...
    def step_batch(
        self, layer: int, stores: Sequence[Any], q: F32, k: F32, v: F32, orders: Sequence[tuple[int, I64, int, int]], *,
        scale: float, softcap: float = 0.0, max_bias: float = 0.0, window: int = 0, sinks: F32 | None = None,
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

    def debug_route(self, p: F32, routing: Routing, selection_bias: F32 | None) -> tuple[I32, F32]:
        """Tests: experts and weights (n, n_used) of tokens whose router products are p (n, n_experts)."""

def supported_isas() -> list[str]:
    """Those that this machine can run, in rising order."""

def available_cores() -> int:
    """Physical cores that affinity and cgroup quota leave to this process; the default number of threads."""

def packed_bytes(ggml_type: int, rows: int, cols: int) -> int:
    """Bytes that a packed matrix takes."""

def weight_types() -> list[tuple[str, int]]:
    """(name, GGML type number) of every format that can be packed (F64 becomes F32)."""
