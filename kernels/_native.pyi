"""Types and meanings of the native extension (kernels/csrc). All arrays are C-contiguous; none is copied in silence.

n is the number of tokens. Errors: shapes that do not fit raise InputError, wrong dtypes TypeError, weights that cannot
be packed GGUFError. Results are fresh arrays. A token's result is the same bits for any n,
any split of a prompt and any number of threads (per instruction set).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

class Weight:
    """A matrix (rows, cols) in the layout of csrc/packed.h."""

    rows: int
    cols: int
    ggml_type: int
    nbytes: int
    @staticmethod
    def pack(raw: U8, ggml_type: int, cols: int, exact: bool = False, dense: bool = False) -> Weight:
        """raw (rows, row_bytes) as in the file, read-only memory allowed, not kept. Runs on the pool.

        Quantized weights meet activations rounded to int8 per block of 32; with exact=True (or for all weights with
        MIXKV_ACTIVATIONS=f32) float32 activations and dequantized weights, many times slower. `dense` is for the NumPy
        twin and changes nothing here.
        """

def embed(w: Weight, ids: I32) -> F32:
    """Rows ids (n,) dequantized, bit for bit as GGML: (n, cols)."""

def rms_norm(x: F32, gain: F32, eps: float) -> F32:
    """x (n, dim) / sqrt(mean(x^2) + eps) * gain (dim,)."""

def linear(x: F32, w: Weight, bias: F32 | None = None, residual: F32 | None = None) -> F32:
    """x w^T + bias + residual: x (n, cols), bias (rows,), residual (n, rows) -> (n, rows)."""

class NormQKV:
    """RMS norm, Q/K/V products, biases, per-head QK norm, RoPE; parameters as in reference.NormQKV."""

    def __init__(
        self, *, norm: F32, eps: float, wq: Weight, wk: Weight, wv: Weight, bq: F32 | None = None,
        bk: F32 | None = None, bv: F32 | None = None, q_norm: F32 | None = None, k_norm: F32 | None = None,
        inv_freq: F32, interleaved: bool, rope_scale: float = 1.0, n_heads: int, n_kv_heads: int, head_dim: int,
    ) -> None: ...  # fmt: skip
    def __call__(self, x: F32, pos: int) -> tuple[F32, F32, F32]:
        """x (n, dim) at positions pos ... -> q (n, n_heads, head_dim), k, v (n, n_kv_heads, .)."""

class NormFFN:
    """x + down(silu(gate h) * up h) with h = rms_norm(x)."""

    def __init__(self, *, norm: F32, eps: float, gate: Weight, up: Weight, down: Weight) -> None: ...
    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> (n, dim)."""

class Head:
    """w rms_norm(x)."""

    def __init__(self, *, norm: F32, eps: float, w: Weight) -> None: ...
    def __call__(self, x: F32) -> F32:
        """x (n, dim) -> logits (n, rows)."""

class KVStore:
    """The cache of all layers; see docs/architecture.md and its NumPy twin, store.KVStore."""

    def __init__(
        self, layers: Sequence[Any], *, n_kv_heads: int, head_dim_k: int, head_dim_v: int, n_ctx: int,
        sink_tokens: int, hot_tiles: int,
    ) -> None: ...  # fmt: skip
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
    def get_cold(self, layer: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]: ...
    def set_cold(self, layer: int, start: int, k: NDArray[Any], v: NDArray[Any]) -> None: ...
    def copy(self) -> KVStore: ...

def attend_segment_rows(
    q: F32, k: U8, type_k: str, v: U8, type_v: str, head_dim_v: int, mask: F32 | None, m: F32, s: F32, acc: F32,
    scale: float, slopes: F32 | None, softcap: float,
) -> tuple[F32, F32, F32]: ...  # fmt: skip
def poison_scratch(on: bool) -> None:
    """Fill attention's scratch memory with NaN before each use (tests)."""

def isa() -> str:
    """The instruction set in use: base, avx2, avxvnni, avx512 or amx."""

def supported_isas() -> list[str]:
    """Those that this machine can run, in rising order."""

def set_isa(name: str) -> None:
    """Use this one from now on (tests); ConfigError for names that are unknown or cannot run."""

def cpu_report() -> dict[str, Any]:
    """cpu, isa, supported, features {name: yes | no | not enabled by the system}, cores, threads."""

def set_threads(n: int) -> None:
    """Threads for the calls that follow, the caller included."""

def threads() -> int: ...
def read_bandwidth(n_bytes: int) -> float: ...
def available_cores() -> int:
    """Physical cores that affinity and cgroup quota leave to this process; the default number of threads."""

def weight_types() -> list[tuple[str, int]]:
    """(name, GGML type number) of every format that can be packed (F64 becomes F32)."""

def debug_idots(x: F32, w: Weight) -> I32:
    """Tests: the integer dot products, (groups of 16 rows, n, blocks, 2 halves, 16)."""

def debug_quantize(x: F32) -> F32:
    """Tests: x as the int8 kernels see it, rounded and multiplied out again."""
