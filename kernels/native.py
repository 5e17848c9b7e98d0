"""The native backend's Python face: the extension's own class, and attention over rows that it names in its own way.

Shapes, dtypes and errors are checked by the binding (csrc/linear_bind.cpp, kv_bind.cpp, kv_args.cpp).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels import _native
from mixkv.kernels.formats import QuantizedRows
from mixkv.kernels.reference_attention import Rows
from mixkv.kernels.state import F32

if not _native.supported_isas():
    raise ImportError("mixkv's native kernels need SSE4.2 and POPCNT (x86-64-v2), which this CPU lacks")


class NativeBackend(_native.Backend):
    """See contract.Backend."""

    name = "native"

    def packed_bytes(self, ggml_type: int, rows: int, cols: int, dense: bool = False) -> int:
        """See contract.Backend: groups of rows are filled up, and some types lie wider than in the file."""
        return _native.packed_bytes(ggml_type, rows, cols)

    def work_numbers(self, *, n_rows: int, n_ff: int, n_queries: int, n_heads: int, n_keys: int) -> int:
        """See contract.Backend: nothing worth counting beside a fixed amount."""
        return 0

    def attend_segment(
        self, q: F32, k: Rows, v: Rows, mask: F32 | None, m: F32, s: F32, acc: F32, scale: float,
        slopes: F32 | None = None, softcap: float = 0.0,
    ) -> tuple[F32, F32, F32]:  # fmt: skip
        """See contract.Backend."""
        k_bytes, type_k = _as_bytes(k)
        v_bytes, type_v = _as_bytes(v)
        return self.attend_segment_rows(
            q, k_bytes, type_k, v_bytes, type_v, acc.shape[2], mask, m, s, acc, scale, slopes, softcap
        )


def _as_bytes(rows: Rows) -> tuple[NDArray[np.uint8], str]:
    """Rows as (n_keys, n_kv_heads, row_bytes) uint8 and their cache type; no copy where they are contiguous."""
    if isinstance(rows, QuantizedRows):
        return np.ascontiguousarray(rows.data), rows.kind
    kind = "f16" if rows.dtype == np.float16 else "f32"
    return np.ascontiguousarray(rows, np.float16 if kind == "f16" else np.float32).view(np.uint8), kind
