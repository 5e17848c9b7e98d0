"""Which twin of the kernels runs: the native extension or NumPy. Chosen once, at import.

`MIXKV_KERNELS=reference` or `=native` forces one. `ops` is the module chosen; both offer the names of the kernel
contract in docs/architecture.md.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from mixkv.kernels.errors import ConfigError


def _choose() -> ModuleType:
    wanted = os.environ.get("MIXKV_KERNELS", "")
    if wanted not in ("", "native", "reference"):
        raise ConfigError(f"MIXKV_KERNELS={wanted!r}: use native, reference, or leave it unset")
    if wanted != "reference":
        try:
            return importlib.import_module("mixkv.kernels.native")
        except ImportError as reason:
            if wanted == "native":
                raise ConfigError(f"MIXKV_KERNELS=native, but the extension is not built here: {reason}") from reason
    return importlib.import_module("mixkv.kernels.reference")


ops = _choose()
