"""Slots: the sequences of one LLM, and which of them a generation continues.

A finished sequence stays until its place is needed: the next prompt continues the one that it has most in common with.
Prompts that wait together and begin alike compute their common beginning once: the first to get there leaves a fork of
its sequence behind (`Shared`), which holds the same pages, and the others start from that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from mixkv.engine.decode import Decode
from mixkv.engine.scoring import Scoring
from mixkv.engine.sequence import Sequence, common_prefix
from mixkv.engine.state.cache import KVCache

LEAST_SHARED = 32
"""Tokens of a common beginning from which on prompts wait for each other."""


@dataclass
class Shared:
    """A sequence as it stood after a beginning that several prompts have in common. users: those still to come."""

    tokens: list[int]
    cache: KVCache
    users: list[Decode]


class Slots:
    """new_sequence makes an empty one; most: how many there may be. `in_hand` is the one that was worked on last."""

    def __init__(self, new_sequence: Callable[[], Sequence], most: int, first: Sequence | None = None) -> None:
        self._new, self._most = new_sequence, most
        self._sequences = [first or new_sequence()]  # the one used last stands last
        self._shared: list[Shared] = []
        self._group: list[Decode] = []
        self.in_hand.scheduler.spare.add(self)

    @property
    def in_hand(self) -> Sequence:
        return self._sequences[-1]

    def give_up_one(self) -> bool:
        """See `Spare`: the sequence that was used longest ago, but never the one in hand; then what prompts share."""
        for sequence in self._sequences[:-1]:
            if sequence.job is None and sequence.tokens:
                sequence.clear()
                return True
        if self._shared:
            del self._shared[0]
            return True
        return False

    def all(self) -> list[Sequence]:
        """Every sequence, the one used last at the end."""
        return list(self._sequences)

    def together(self, jobs: list[Decode]) -> None:
        """These are queued together: where their prompts begin alike, the beginning is computed once.

        In sorted order each prompt has its longest common beginning with a neighbour, so these are the cuts.
        """
        self._group = [job for job in jobs if not job.done]
        ordered = sorted(self._group, key=lambda job: job.prompt)
        for a, b in pairwise(ordered):
            n = _shared_length(a, b)
            if n >= LEAST_SHARED:
                a.cuts.add(n)
                b.cuts.add(n)

    def place(self, job: Decode | Scoring) -> Sequence | None:
        """A sequence for the job, put in hand; None if there is none now, or it pays to wait."""
        self._group = [other for other in self._group if not other.done]
        if isinstance(job, Decode) and job in self._group and self._worth_waiting(job):
            return None
        free = [s for s in self._sequences if s.job is None]
        best = max(free, key=lambda s: self._kept(s, job), default=None)
        if len(self._sequences) < self._most and (best is None or 2 * self._kept(best, job) < len(best.tokens)):
            best = self._new()
        elif best is None:
            best = next((s for s in self._sequences if s.job is not None and s.job.waiting == 0), None)
        if best is not None:
            self._sequences = [s for s in self._sequences if s is not best] + [best]
        return best

    def begin(self, job: Decode) -> int:
        sequence = job.sequence
        assert sequence is not None
        if job.prefix_reuse == "off":
            sequence.clear()
            return 0
        shared = max(self._shared, key=lambda s: _shared_tokens(s, job), default=None)
        n = 0 if shared is None else _shared_tokens(shared, job)
        if shared is not None and n > self._kept(sequence, job):
            sequence.cuts += 1
            sequence.cache, sequence.tokens = shared.cache.fork(), list(shared.tokens)
        else:
            n = sequence.keep_prefix(job.prompt, job.prefix_reuse == "exact")
        for entry in self._shared:
            if job in entry.users:
                entry.users.remove(job)
        self._shared = [entry for entry in self._shared if entry.users]
        return n

    def reached(self, job: Decode) -> None:
        assert job.sequence is not None
        n = job.fed
        users = [other for other in self._group if other is not job and not other.done and other.sequence is None
                 and other.prompt[:n] == job.prompt[:n] and len(other.prompt) > n]  # fmt: skip
        if users:
            self._shared.append(Shared(list(job.sequence.tokens), job.sequence.cache.fork(), users))

    def _worth_waiting(self, job: Decode) -> bool:
        """Whether another one of its group is about to compute more of the job's beginning than there is of it now."""
        have = max(
            [*(_shared_tokens(s, job) for s in self._shared), *(self._kept(s, job) for s in self._sequences)], default=0
        )
        for other in self._group:
            if other is job or other.sequence is None or other.done or other.waiting == 0:
                continue
            n = max((cut for cut in other.cuts if cut > other.fed and cut <= _shared_length(other, job)), default=0)
            if n > have:
                return True
        return False

    @staticmethod
    def _kept(sequence: Sequence, job: Decode | Scoring) -> int:
        """Tokens of the job's prompt that the sequence has, as `Sequence.keep_prefix` counts them."""
        if sequence.job is not None or isinstance(job, Scoring) or job.prefix_reuse == "off":
            return 0
        return sequence.kept_prefix(job.prompt, job.prefix_reuse == "exact")


def _shared_length(a: Decode, b: Decode) -> int:
    """Tokens that both prompts begin with, less the last of each, after which both want logits."""
    return common_prefix(a.prompt[:-1], b.prompt[:-1])


def _shared_tokens(shared: Shared, job: Decode) -> int:
    n = len(shared.tokens)
    return n if n < len(job.prompt) and job.prompt[:n] == shared.tokens else 0
