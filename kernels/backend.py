"""Where backends come from: `open_backend` makes one, native where that is built and runs here, else NumPy's."""

from __future__ import annotations

import importlib
import os
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mixkv.kernels.contract import Backend
from mixkv.kernels.errors import ConfigError, MixkvWarning

if TYPE_CHECKING:  # both twins fulfil the contract; neither is imported before it is wanted
    from mixkv.kernels.native import NativeBackend
    from mixkv.kernels.reference import ReferenceBackend

    Native: type[Backend] = NativeBackend
    Reference: type[Backend] = ReferenceBackend

KINDS = ("native", "reference")
_default: dict[str, Backend] = {}


def open_backend(n_threads: int | None = None, *, kind: str | None = None, isa: str | None = None) -> Backend:
    """A backend of its own: `n_threads` threads (left out, the usable cores), which start with its first large call.

    kind: "native" or "reference"; left out, what MIXKV_KERNELS says, else native where it is built and the CPU runs
    it. isa: the native instruction set; left out, what MIXKV_ISA says, else the best. ConfigError for what cannot be.
    """
    wanted = _wanted(kind)
    threads = available_cores() if n_threads is None else n_threads
    if wanted != "reference" and _is_built():
        try:
            native: Backend = importlib.import_module("mixkv.kernels.native").NativeBackend(threads, _isa(isa))
            return native
        except ImportError as reason:
            if wanted or _isa(isa):
                raise ConfigError(f"the native extension cannot be imported: {reason}") from reason
            warnings.warn(f"the native kernels do not run here, NumPy does: {reason}", MixkvWarning, stacklevel=2)
    elif isa is not None:
        raise ConfigError(f"isa={isa!r} is for the native kernels; NumPy chooses its instructions by itself")
    reference: Backend = importlib.import_module("mixkv.kernels.reference").ReferenceBackend(threads)
    return reference


def default_backend() -> Backend:
    """The one backend of calls that are given none, made when it is first asked for."""
    if "" not in _default:
        _default.setdefault("", open_backend())  # two threads may make one each at first; both then use the same
    return _default[""]


def available_cores() -> int:
    """Physical cores that affinity and cgroup quota leave to this process; without native code, CPUs by affinity."""
    if _is_built() and os.environ.get("MIXKV_KERNELS") != "reference":
        try:
            cores: int = importlib.import_module("mixkv.kernels._native").available_cores()
            return cores
        except ImportError:  # the CPU is too old; open_backend says so
            pass
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _isa(isa: str | None) -> str:
    return os.environ.get("MIXKV_ISA", "") if isa is None else isa


def _is_built() -> bool:
    return find_spec("mixkv.kernels._native") is not None


def _wanted(kind: str | None) -> str:
    wanted, setting = kind, f"kind {kind!r}"
    if wanted is None:
        wanted = os.environ.get("MIXKV_KERNELS", "")
        setting = f"MIXKV_KERNELS={wanted!r}"
        if wanted == "":
            return wanted
    if wanted not in KINDS:
        raise ConfigError(f"{setting}: use native, reference, or leave it unset")
    if wanted == "native" and not _is_built():
        raise ConfigError(f"{setting}, but this installation has no native extension: install from a wheel")
    return wanted
