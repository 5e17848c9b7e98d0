"""The native backend's Python face: the names of the kernel contract (docs/architecture.md), from `_native`.

Nothing is computed here. Shapes, dtypes and errors are checked by the binding (kernels/csrc/*_bind.cpp).
"""

from mixkv.kernels._native import (
    available_cores,
    cpu_report,
    isa,
    rms_norm,
    set_isa,
    set_threads,
    supported_isas,
    threads,
)

__all__ = [
    "available_cores",
    "cpu_report",
    "isa",
    "rms_norm",
    "set_isa",
    "set_threads",
    "supported_isas",
    "threads",
]
