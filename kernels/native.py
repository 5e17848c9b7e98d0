"""The native backend's Python face: the names of the kernel contract (docs/architecture.md), from `_native`.

Nothing is computed here. Shapes, dtypes and errors are checked by the binding (kernels/csrc/*_bind.cpp); the cache and
attention have a neighbour of their own, `native_kv.py`.
"""

from mixkv.kernels._native import (
    Head,
    NormFFN,
    NormQKV,
    Weight,
    available_cores,
    cpu_report,
    embed,
    isa,
    linear,
    read_bandwidth,
    rms_norm,
    set_isa,
    set_threads,
    supported_isas,
    threads,
    weight_types,
)
from mixkv.kernels.native_kv import KVStore, attend_segment

__all__ = [
    "Head",
    "KVStore",
    "NormFFN",
    "NormQKV",
    "Weight",
    "attend_segment",
    "available_cores",
    "cpu_report",
    "embed",
    "isa",
    "linear",
    "name",
    "read_bandwidth",
    "rms_norm",
    "set_isa",
    "set_threads",
    "supported_isas",
    "threads",
    "weight_types",
]

name = "native"
