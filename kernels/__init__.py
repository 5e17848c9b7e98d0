"""Every numeric operation of mixkv, behind typed functions that have a NumPy and a native form.

`open_backend` makes what models and the engine compute with (contract.Backend); the operator for people who build on it
is re-exported.
"""

from mixkv.kernels.attention import attend, flash_attn_with_state
from mixkv.kernels.backend import available_cores, default_backend, open_backend
from mixkv.kernels.contract import Backend
from mixkv.kernels.formats import CACHE_TYPES, TILE, LayerFormat, QuantizedRows, cache_type
from mixkv.kernels.state import AttentionState, empty_state, finalize, merge, sink_state

__all__ = [
    "CACHE_TYPES",
    "TILE",
    "AttentionState",
    "Backend",
    "LayerFormat",
    "QuantizedRows",
    "attend",
    "available_cores",
    "cache_type",
    "default_backend",
    "empty_state",
    "finalize",
    "flash_attn_with_state",
    "merge",
    "open_backend",
    "sink_state",
]
