"""Scheduler: forward passes for all that wants some. The only room that runs a model.

A `Job` is work on one sequence: it says which tokens it wants computed next (`next_part`) and takes the logits (`take`).
Each step composes one batch: a token, or a draft, of every job that generates, and pieces of prompts; a long prompt goes
between the tokens of others piece by piece, so that nobody's stream stands still for longer than one piece.

There is no thread of its own. Whoever waits for a job drives: one thread computes a step for all jobs that are ready,
the others sleep until it is done, and the next that still waits goes on. So one thread computes at a time, a lone caller
pays for no handing over, and nothing runs behind anybody's back (nor is lost in a forked child).

A job whose thread is not waiting for it (a stream between two chunks) is idle. It keeps its sequence until another job
needs that.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mixkv.engine.sequence import Sequence
from mixkv.engine.state.batch import BatchStates
from mixkv.kernels.errors import InputError
from mixkv.models.batch import F32, Batch
from mixkv.models.protocol import Model

PIECE_BETWEEN = 128
"""Prompt tokens of a step while others generate."""


TAKEN = "this stream is over: a later call on the same LLM took its place in the cache"


@dataclass
class Part:
    """Tokens of one job in one step. n_rows: of how many of its last tokens logits are wanted. n_draft: how many of the
    last are a draft, which `take` may turn down."""

    ids: list[int]
    n_rows: int
    n_draft: int = 0


class Job(Protocol):
    """Work on one sequence. All but the scheduler's own fields is called on whatever thread computes.

    sequence: None until it has a place. done: nothing more will come; error: why, where that is a failure. steps:
    forward passes it took part in. waiting: threads that wait for it now.
    """

    sequence: Sequence | None
    done: bool
    error: BaseException | None
    steps: int
    waiting: int

    @property
    def generates(self) -> bool:
        """Whether its next part is a few tokens that a stream waits for, not a piece of a prompt."""

    @property
    def ready(self) -> bool:
        """Whether it wants to take part in the next step."""

    def place(self) -> Sequence | None:
        """The sequence to work on, None if there is none now. Called when there may be a place for it."""

    def begin(self) -> None:
        """It has `sequence` for itself from here on."""

    def next_part(self, most: int) -> Part:
        """What to compute: at most `most` tokens, if it is a piece of a prompt. InputError if it cannot go on."""

    def take(self, logits: F32, seconds: float) -> int:
        """The (n_rows, n_vocab) logits of the part; returns how many of its draft are to stay. An exception is the
        job's own failure."""

    def taken(self, n: int) -> None:
        """n tokens of the part are stored in the sequence."""

    def fail(self, error: BaseException) -> None:
        """End it: it is `done`, with this error."""


class Scheduler:
    """n_batch: tokens of prompts in one step. n_parallel: jobs at once; more wait."""

    def __init__(self, model: Model, *, n_batch: int, n_parallel: int = 1) -> None:
        self.model, self.n_batch, self.n_parallel = model, n_batch, n_parallel
        self._turn = threading.Condition()  # guards all that follows
        self._busy = False  # a thread computes, or has sequences for itself
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._held: list[tuple[Job, F32]] = []  # logits of a step that was broken off after the forward pass
        _SCHEDULERS.add(self)

    def add(self, *jobs: Job) -> None:
        """Queue jobs; they run when somebody waits for one (`advance`)."""
        with self._turn:
            self._queue += jobs

    @contextmanager
    def attended(self, jobs: Ids[Job]) -> Iterator[None]:
        """While the block runs these jobs are not idle, whatever their thread does between two steps."""
        with self._turn:
            for job in jobs:
                job.waiting += 1
        try:
            yield
        finally:
            with self._turn:
                for job in jobs:
                    job.waiting -= 1
                self._turn.notify_all()

    def run(self, jobs: Ids[Job], report: Callable[[], None]) -> None:
        """Add jobs and bring all of them to their ends; report() is called on this thread after each step.

        What report raises, or an interrupt, ends these jobs and is raised.
        """
        with self.attended(jobs):
            self.add(*jobs)
            try:
                while left := [job for job in jobs if not job.done]:
                    self.advance(left)
                    report()
            finally:
                self.cancel(*jobs)

    def drop(self, job: Job) -> None:
        """Like `cancel`, but waits for nothing: for destructors, which run anywhere. A step that runs ends first."""
        job.done = True
        with self._turn:
            if not self._busy:
                self._release(job)

    def cancel(self, *jobs: Job) -> None:
        """Let go of jobs, queued or running; what they have computed stays in their sequences. Twice does no harm."""
        with self._turn:
            while self._busy and any(job in self._running for job in jobs):
                self._turn.wait()
            for job in jobs:
                job.done = True
                self._release(job)
            self._turn.notify_all()

    def advance(self, jobs: Ids[Job]) -> None:
        """Return when one of `jobs` has taken part in a step, or is done. Errors of a job are left in it; an interrupt
        of this thread is raised, and no job has lost anything but its part of the step."""
        before = [job.steps for job in jobs]

        def news() -> bool:
            return any(job.done or job.steps != n for job, n in zip(jobs, before, strict=True))

        with self.attended(jobs):
            while self._drive_or_wait(news):
                pass

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No step runs while the block does: for looking at sequences, whose jobs go on afterwards."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    @contextmanager
    def alone(self, sequence: Sequence) -> Iterator[None]:
        """`paused`, and nobody waits for a job on `sequence`: for changing it, which ends an idle one when it goes on."""
        with self._turn:
            while self._busy or (sequence.job is not None and not _idle(sequence.job)):
                self._turn.wait()
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def after_fork(self) -> None:
        """In a forked child: forget the jobs, whose threads stayed in the parent; sequences keep what was whole."""
        jobs = [*self._running, *self._queue]
        self._turn, self._busy = threading.Condition(), False
        self._queue, self._running, self._held = [], [], []
        for job in jobs:
            job.fail(InputError("this call was running when the process was forked: it goes on in the parent alone"))
            self._release(job)

    def _drive_or_wait(self, news: Callable[[], bool]) -> bool:
        """One step on this thread, or one rest; False once there is news."""
        with self._turn:
            while self._busy and not news():
                self._turn.wait()
            if news():
                return False
            self._admit()
            parts = self._compose()
            if not parts and not self._held:
                if not news():  # all places are taken by jobs whose threads will be back
                    self._turn.wait()
                return True
            self._busy = True
        try:
            self._compute(parts)
        finally:
            with self._turn:
                self._busy = False
                for job in [job for job in self._running if job.done]:
                    self._release(job)
                self._turn.notify_all()
        return True

    def _admit(self) -> None:
        """Give places to jobs in the queue, first come first served among those that can have one."""
        for job in list(self._queue):
            if sum(not _idle(running) for running in self._running) >= self.n_parallel:
                return
            try:
                sequence = job.place()
                if sequence is None or (sequence.job is not None and not _idle(sequence.job)):
                    continue
                if sequence.job is not None:
                    self._evict(sequence.job)
                job.sequence, sequence.job = sequence, job
                self._running.append(job)
                job.begin()
            except Exception as error:
                job.fail(error)
                self._release(job)
            if job in self._queue:
                self._queue.remove(job)

    def _evict(self, job: Job) -> None:
        job.fail(InputError(TAKEN))
        self._release(job)

    def _release(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)
        if job in self._running:
            self._running.remove(job)
        if job.sequence is not None and job.sequence.job is job:
            job.sequence.job = None

    def _compose(self) -> list[tuple[Job, Part]]:
        """The next batch: all that generate, then prompts in turn while there is room."""
        held = [job for job, _ in self._held]
        ready = [job for job in self._running if job.ready and not job.done and job not in held]
        parts = self._parts([job for job in ready if job.generates], self.n_batch)
        room = min(self.n_batch, PIECE_BETWEEN) if parts else self.n_batch
        for job in [job for job in ready if not job.generates]:
            if room <= 0:
                break
            for _, part in (new := self._parts([job], room)):
                room -= len(part.ids)
            parts += new
            if room <= 0 and new:  # who comes last this time comes first the next
                self._running.remove(job)
                self._running.append(job)
        return parts

    def _parts(self, jobs: list[Job], most: int) -> list[tuple[Job, Part]]:
        """Each job's next part; a job that cannot go on is over."""
        parts = []
        for job in jobs:
            try:
                parts.append((job, job.next_part(most)))
            except InputError as error:
                job.fail(error)
                self._release(job)
        return parts

    def _compute(self, parts: list[tuple[Job, Part]]) -> None:
        """One forward pass, and what the jobs do with it."""
        while self._held:
            job, logits = self._held[-1]
            if not job.done:
                _hand_over(job, logits, 0.0)
            self._held.pop()
        begun: list[_Begun] = []
        try:
            for job, part in parts:
                assert job.sequence is not None
                try:
                    begun.append(_Begun(job, part, job.sequence, job.sequence.cache.begin(len(part.ids))))
                except Exception as error:
                    job.fail(error)
            if not begun:
                return
            start = time.perf_counter()
            batch = Batch.of((b.part.ids, b.pos, b.part.n_rows) for b in begun)
            logits = self.model.forward(batch, BatchStates([b.sequence.cache for b in begun], batch.runs))
            seconds = time.perf_counter() - start
        except BaseException as error:
            for b in begun:
                b.sequence.cache.abandon()
                if isinstance(error, Exception):
                    b.job.fail(error)
            if isinstance(error, Exception):
                return
            raise
        ends = np.cumsum([b.part.n_rows for b in begun])
        rows = [logits[end - b.part.n_rows : end] for b, end in zip(begun, ends, strict=True)]
        for i, b in enumerate(begun):
            try:
                kept = _hand_over(b.job, rows[i], seconds)
            except BaseException:  # an interrupt: what is computed is kept, and handed over by the next step
                for late, its_rows in zip(begun[i:], rows[i:], strict=True):
                    late.store(0)
                    if late.part.n_rows > late.part.n_draft:
                        self._held.append((late.job, its_rows[: late.part.n_rows - late.part.n_draft]))
                raise
            b.store(kept)


@dataclass
class _Begun:
    """A part whose sequence is ready for it. pos: of its first token."""

    job: Job
    part: Part
    sequence: Sequence
    pos: int

    def store(self, kept: int) -> None:
        """Its tokens are in the sequence, `kept` of its draft's among them."""
        n = len(self.part.ids) - self.part.n_draft + kept
        self.sequence.cache.commit(n if n < len(self.part.ids) else None)
        self.sequence.tokens += self.part.ids[:n]
        self.job.steps += 1
        self.job.taken(n)


def _hand_over(job: Job, logits: F32, seconds: float) -> int:
    """What `take` says; its errors are the job's own, and nobody else's."""
    try:
        return job.take(logits, seconds)
    except Exception as error:
        job.fail(error)
        return 0


def _idle(job: Job) -> bool:
    return job.waiting == 0


_SCHEDULERS: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child has one thread: what others were computing is over, and their locks are nobody's."""
    for scheduler in list(_SCHEDULERS):
        scheduler.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
