"""BaseJob: what all jobs of the scheduler share (see `Job` in scheduler.py)."""

from __future__ import annotations

from mixkv.engine.sequence import Sequence


class BaseJob:
    """The scheduler's own fields, and `fail`."""

    def __init__(self) -> None:
        self.sequence: Sequence | None = None
        self.done = False
        self.error: BaseException | None = None
        self.steps = 0
        self.waiting = 0

    def fail(self, error: BaseException) -> None:
        """End the job with an error, unless it has ended already."""
        if not self.done:
            self.done, self.error = True, error

    def raise_error(self) -> None:
        """Raise what ended the job, once: an error kept here would keep all that its traceback leads to."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
