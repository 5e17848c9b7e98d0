"""Jobs: what the scheduler computes, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mixkv.engine.sequence import Sequence
from mixkv.models.batch import F32

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


class BaseJob:
    """The scheduler's own fields, `fail`, and raising what that left."""

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
