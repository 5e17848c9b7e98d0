"""Every numeric operation of mixkv, behind typed functions that have a NumPy and a native form.

What a model needs is in `ops`, the backend chosen at import; the operator for people who build on it is re-exported.
"""

from mixkv.kernels.attention import attend, flash_attn_with_state
from mixkv.kernels.backend import ops
from mixkv.kernels.formats import CACHE_TYPES, TILE, LayerFormat, QuantizedRows, cache_type
from mixkv.kernels.state import AttentionState, empty_state, finalize, merge, sink_state

__all__ = [
    "CACHE_TYPES",
    "TILE",
    "AttentionState",
    "LayerFormat",
    "QuantizedRows",
    "attend",
    "cache_type",
    "empty_state",
    "finalize",
    "flash_attn_with_state",
    "merge",
    "ops",
    "sink_state",
]
