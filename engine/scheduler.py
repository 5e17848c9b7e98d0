"""Scheduler: forward passes for all that wants some. The only room that runs a model.

A `Job` is work on one sequence: it says which tokens it wants computed next (`next_part`) and takes the logits
(`take`). Each step composes one batch: a token, or a draft, of every job that generates, and pieces of prompts; a long
prompt goes between the tokens of others piece by piece, so that nobody's stream stands still for longer than one piece.

There is no thread of its own. Whoever waits for a job drives: one thread computes a step for all jobs that are ready,
the others sleep until it is done, and the next that still waits goes on. So one thread computes at a time, a lone
caller pays for no handing over, and nothing runs behind anybody's back (nor is lost in a forked child).

A job whose thread is not waiting for it (a stream between two chunks) is idle. It keeps its sequence until another job
needs that.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from mixkv.engine.jobs import TAKEN, Job, Part
from mixkv.engine.sequence import Sequence
from mixkv.engine.step import Held, compute
from mixkv.kernels.errors import InputError
from mixkv.models.protocol import Model

PIECE_BETWEEN = 128
"""Prompt tokens of a step while others generate."""


class Spare(Protocol):
    """Keeps sequences that might be continued."""

    def give_up_one(self) -> bool:
        """Forget one that nobody works on; False where there is none."""


class Scheduler:
    """n_batch: tokens of prompts in one step. n_parallel: jobs at once; more wait."""

    def __init__(self, model: Model, *, n_batch: int, n_parallel: int = 1) -> None:
        self.model, self.n_batch, self.n_parallel = model, n_batch, n_parallel
        self._turn = threading.Condition()  # guards all that follows
        self._busy = False  # a thread computes, or has sequences for itself
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._held: Held = []  # of a step that was broken off after the forward pass
        self.spare: weakref.WeakSet[Spare] = weakref.WeakSet()
        """Who may give memory up when it runs short."""
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
    def paused(self, free: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """No step runs while the block does: for looking at sequences, whose jobs go on after it. free: waited for."""
        with self._turn:
            while self._busy or not free():
                self._turn.wait()
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def alone(self, sequence: Sequence) -> AbstractContextManager[None]:
        """`paused`, and nobody waits for a job on `sequence`: for changing it, which ends an idle one."""
        return self.paused(lambda: sequence.job is None or _idle(sequence.job))

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
            compute(self.model, parts, self._held, self._relieve)
        finally:
            with self._turn:
                self._busy = False
                for job in [job for job in self._running if job.done]:
                    self._release(job)
                self._turn.notify_all()
        return True

    def _relieve(self) -> bool:
        return any(spare.give_up_one() for spare in list(self.spare))

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


def _idle(job: Job) -> bool:
    return job.waiting == 0


_SCHEDULERS: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child has one thread: what others were computing is over, and their locks are nobody's."""
    for scheduler in list(_SCHEDULERS):
        scheduler.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
