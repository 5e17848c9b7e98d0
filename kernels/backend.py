"""Which twin of the kernels runs: the native extension or NumPy. Chosen once, at import.

`MIXKV_KERNELS=reference` or `=native` forces one. `ops` is the module chosen; both offer the names of the kernel
contract in docs/architecture.md.
"""

from __future__ import annotations

import importlib
import os
import warnings
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from mixkv.kernels.errors import ConfigError, MixkvWarning


def _choose() -> ModuleType:
    wanted = os.environ.get("MIXKV_KERNELS", "")
    if wanted not in ("", "native", "reference"):
        raise ConfigError(f"MIXKV_KERNELS={wanted!r}: use native, reference, or leave it unset")
    built = find_spec("mixkv.kernels._native") is not None
    if wanted == "native" and not built:
        raise ConfigError("MIXKV_KERNELS=native, but this installation has no native extension: install from a wheel")
    if built and wanted != "reference":
        try:
            return importlib.import_module("mixkv.kernels.native")
        except ImportError as reason:  # the CPU is too old, or MIXKV_ISA names what it cannot run
            if wanted == "native" or os.environ.get("MIXKV_ISA"):
                raise ConfigError(str(reason)) from reason
            warnings.warn(f"the native kernels do not run here, NumPy does: {reason}", MixkvWarning, stacklevel=2)
    return importlib.import_module("mixkv.kernels.reference")


if TYPE_CHECKING:  # both have the same names and signatures
    from mixkv.kernels import reference as ops
else:
    ops = _choose()
