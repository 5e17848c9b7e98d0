"""How many threads to compute with, and a thread for what can be done meanwhile."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from mixkv.kernels import available_cores
from mixkv.kernels.errors import ConfigError, MixkvWarning

MAX_THREADS = 1024
T = TypeVar("T")


class Meanwhile(Generic[T]):
    """Runs `work` on a thread of its own while the block runs; leaving the block waits for it.

    Not concurrent.futures, whose import takes longer than what this is for saves.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # raised again by `result`, on the thread that wants it
            self._error = error

    def __enter__(self) -> Meanwhile[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.join()
        if kind is not None:
            self._error = None

    def result(self) -> T:
        """What `work` returned; raises what it raised, once.

        The error is given away: its traceback leads back here, and the two would keep all that `work` touched alive.
        """
        self._thread.join()
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error


def choose_threads(n_threads: int | None) -> int:
    """The number asked for, or the usable cores (None, 0, -1); warns where more threads than cores are asked for."""
    cores = available_cores()
    if n_threads is None:
        return cores
    if isinstance(n_threads, bool) or not isinstance(n_threads, int) or not -1 <= n_threads <= MAX_THREADS:
        raise ConfigError(
            f"n_threads {n_threads!r} must be a number of threads from 1 to {MAX_THREADS}, or 0 for the cores"
        )
    if n_threads <= 0:
        return cores
    if n_threads > cores:
        warnings.warn(
            f"{n_threads} threads on {cores} usable cores: more threads than cores slow each other down",
            MixkvWarning,
            stacklevel=3,
        )
    return n_threads
