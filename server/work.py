"""Generations on threads of their own, awaited by the event loop, given up when nobody waits any more.

As many threads as the LLM computes sequences at once, so that whatever runs has a sequence and the scheduler batches
it; more wait, up to a bound, in the order in which they came.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from mixkv.engine.decode import F32, Processor
from mixkv.server.errors import ApiError, Gone

Give = Callable[[Any], None]
Work = Callable[[Give, "Leave"], None]
"""Computes one choice: give(item) hands on what there is; what it raises ends the answer."""


class Leave(Processor):
    """Ends a generation whose client has gone, before its next token, whatever that would be."""

    def __init__(self) -> None:
        self.gone = threading.Event()

    def check(self, *_: object) -> None:
        """Gone if so; also the `progress` of a prompt."""
        if self.gone.is_set():
            raise Gone

    def mask(self, logits: F32) -> F32:
        """See `Processor`."""
        self.check()
        return logits

    def accept(self, token: int) -> None:
        """See `Processor`."""


class Workers:
    """n: threads. queue: what may wait besides. `running` and `waiting` count choices."""

    def __init__(self, n: int, queue: int) -> None:
        self.n, self.queue = n, queue
        self.admitted = self.running = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(n, thread_name_prefix="generate")

    @property
    def waiting(self) -> int:
        return self.admitted - self.running

    def start(self, works: Sequence[Work]) -> Answer:
        """Begin all of them, or none: ApiError 503 where they would be more than may wait."""
        with self._lock:
            if self.admitted and self.admitted + len(works) > self.n + self.queue:
                raise ApiError(503, f"{self.admitted} generations run or wait already: try again later")
            self.admitted += len(works)
        return Answer(self, works)

    def submit(self, job: Callable[[], Any], tell: Callable[[Any], None]) -> Future[None]:
        """Run a job on a thread, and tell what it returned once it counts no more."""

        def run() -> None:
            with self._lock:
                self.running += 1
            end = job()
            with self._lock:
                self.running -= 1
                self.admitted -= 1
            tell(end)

        future = self._pool.submit(run)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[None]) -> None:
        if future.cancelled():
            with self._lock:
                self.admitted -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Answer:
    """What some works give, as it comes. `close` ends those that still run."""

    def __init__(self, workers: Workers, works: Sequence[Work]) -> None:
        self._loop, self._items = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
        self._leave, self._left = Leave(), len(works)
        self._futures = [workers.submit(*self._job(i, work)) for i, work in enumerate(works)]

    def _job(self, index: int, work: Work) -> tuple[Callable[[], Any], Callable[[Any], None]]:
        """What a thread runs, which returns how it ended, and what tells the event loop of an item."""

        def tell(item: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended, and who waited with it
                self._loop.call_soon_threadsafe(self._items.put_nowait, (index, item))

        def job() -> Any:
            try:
                self._leave.check()
                work(tell, self._leave)
            except BaseException as error:
                return _Failure(error)
            return _END

        return job, tell

    async def items(self) -> AsyncIterator[tuple[int, Any]]:
        """(index of the work, item). Raises what a work raised, and then ends the others."""
        try:
            while self._left:
                index, item = await self._items.get()
                if item is _END:
                    self._left -= 1
                elif isinstance(item, _Failure):
                    raise item.error
                else:
                    yield index, item
        finally:
            self.close()

    def close(self) -> None:
        self._leave.gone.set()
        for future in self._futures:
            future.cancel()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()
