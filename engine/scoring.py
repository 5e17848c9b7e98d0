"""Scoring: a job that appends given tokens to a sequence and gives their logits back."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids

import numpy as np

from mixkv.engine.jobs import BaseJob, Part
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Progress, Sequence
from mixkv.models.batch import F32


class Scoring(BaseJob):
    """Append `prompt` (ids) to a sequence that `find` finds. restart: forget what that sequence holds first.

    all_rows: logits of every token, else of the last. progress(tokens done, tokens in all).
    """

    def __init__(
        self, prompt: Ids[int], find: Callable[[Scoring], Sequence | None], *, all_rows: bool,
        progress: Progress | None = None, restart: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.prompt, self.all_rows, self.restart = list(prompt), all_rows, restart
        self._find, self._progress, self._fed = find, progress, 0
        self._logits: list[F32] = []

    @property
    def generates(self) -> bool:
        return False

    @property
    def ready(self) -> bool:
        return True

    def place(self) -> Sequence | None:
        return self._find(self)

    def begin(self) -> None:
        assert self.sequence is not None
        if self.restart:
            self.sequence.clear()
        self.sequence.cache.check_room(len(self.prompt))

    def next_part(self, most: int) -> Part:
        ids = self.prompt[self._fed : self._fed + most]
        last = self._fed + len(ids) == len(self.prompt)
        return Part(ids, len(ids) if self.all_rows else int(last))

    def take(self, logits: F32, seconds: float) -> int:
        self._logits.append(logits)
        return 0

    def taken(self, n: int) -> None:
        self._fed += n
        self.done = self.done or self._fed == len(self.prompt)

    def run(self, scheduler: Scheduler) -> F32:
        """The logits, once all is computed. progress is called on this thread."""
        reported = 0

        def report() -> None:
            nonlocal reported
            if self._progress is not None and self._fed > reported:
                reported = self._fed
                self._progress(self._fed, len(self.prompt))

        scheduler.run([self], report)
        self.raise_error()
        return np.concatenate(self._logits) if self.all_rows else self._logits[-1]
