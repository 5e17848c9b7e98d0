"""How many threads to compute with."""

from __future__ import annotations

import warnings

from mixkv.kernels import ops
from mixkv.kernels.errors import ConfigError, MixkvWarning

MAX_THREADS = 1024


def usable_cores() -> int:
    """Cores that this process may use: physical ones, within its affinity and cgroup's quota."""
    return ops.available_cores()


def choose_threads(n_threads: int | None) -> int:
    """The number asked for, or the usable cores; warns where more threads than cores are asked for."""
    cores = usable_cores()
    if n_threads is None or n_threads == -1:
        return cores
    if isinstance(n_threads, bool) or not isinstance(n_threads, int) or not 1 <= n_threads <= MAX_THREADS:
        raise ConfigError(f"n_threads {n_threads!r} must be a number of threads from 1 to {MAX_THREADS}")
    if n_threads > cores:
        warnings.warn(
            f"{n_threads} threads on {cores} usable cores: more threads than cores slow each other down",
            MixkvWarning,
            stacklevel=3,
        )
    return n_threads
