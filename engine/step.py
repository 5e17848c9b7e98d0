"""One step of the scheduler: a forward pass over the parts of some jobs, and what the jobs do with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixkv.engine.jobs import Job, Part
from mixkv.engine.sequence import Sequence
from mixkv.engine.state.batch import BatchStates
from mixkv.kernels.errors import OutOfMemoryError
from mixkv.models.batch import F32, Batch
from mixkv.models.protocol import Model

Held = list[tuple[Job, F32]]
"""Jobs, and the logits that they have not seen yet."""


def compute(model: Model, parts: list[tuple[Job, Part]], held: Held, relieve: Callable[[], bool]) -> None:
    """Compute all parts and give each job its logits.

    What goes wrong in a job is left in it; what goes wrong in the pass itself, in all of them. An interrupt is raised:
    before the logits are there the sequences are as they were, after that `held` has what is still to be handed over,
    which the next step does first. relieve: gives some memory up that nobody needs now; False where there is none.
    """
    while held:
        job, logits = held[-1]
        if not job.done:
            _hand_over(job, logits, 0.0)
        held.pop()
    begun: list[_Begun] = []
    short: list[tuple[Job, OutOfMemoryError]] = []
    try:
        for job, part in parts:
            assert job.sequence is not None
            try:
                begun.append(_Begun(job, part, job.sequence, _begin(job.sequence, len(part.ids), relieve)))
            except OutOfMemoryError as error:
                short.append((job, error))
            except Exception as error:
                job.fail(error)
        for job, shortage in short[:1] if not begun else short:
            if job.generates or not begun:  # a prompt waits while others work, who will give memory back
                job.fail(shortage)
        if not begun:
            return
        start = time.perf_counter()
        batch = Batch.of((b.part.ids, b.pos, b.part.n_rows) for b in begun)
        logits = model.forward(batch, BatchStates([b.sequence.cache for b in begun], batch.runs))
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
                    held.append((late.job, its_rows[: late.part.n_rows - late.part.n_draft]))
            raise
        b.store(kept)


def _begin(sequence: Sequence, n: int, relieve: Callable[[], bool]) -> int:
    """`KVCache.begin`, with what others can do without."""
    while True:
        try:
            return sequence.cache.begin(n)
        except OutOfMemoryError:
            if not relieve():
                raise


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
