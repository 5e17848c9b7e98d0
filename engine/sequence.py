"""Sequence: one cache, and which tokens it holds. What computes on it is the scheduler's (scheduler.py)."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

from mixkv.engine.state.cache import KVCache
from mixkv.models.batch import F32
from mixkv.models.protocol import Model

if TYPE_CHECKING:
    from mixkv.engine.jobs import Job
    from mixkv.engine.scheduler import Scheduler

Progress = Callable[[int, int], None]
"""(tokens done, tokens in all)"""


class Sequence:
    """`tokens` are those in the cache. `job` is what is being computed on it, None if nothing is.

    `cuts` counts how often tokens were taken back: who finds it changed no longer continues its own text.
    """

    def __init__(self, scheduler: Scheduler, cache: KVCache) -> None:
        self.scheduler, self.cache = scheduler, cache
        self.tokens: list[int] = []
        self.cuts = 0
        self.job: Job | None = None

    @property
    def model(self) -> Model:
        """What computes on it."""
        return self.scheduler.model

    def feed(self, ids: Ids[int], *, all_rows: bool = False, progress: Progress | None = None) -> F32:
        """Append `ids` (at least one, in range) and return logits: (n, n_vocab) for all_rows, else (1, n_vocab).

        An exception in the middle leaves the chunks before it stored, and `tokens` true. ContextFullError, before
        anything is written, if they do not fit.
        """
        from mixkv.engine.scoring import Scoring

        return Scoring(ids, lambda job: self, all_rows=all_rows, progress=progress).run(self.scheduler)

    def keep_prefix(self, ids: Ids[int], exact: bool = False) -> int:
        """Cut the cache back to the longest common prefix with `ids`, less its last token; returns its length.

        The last token is left out because somebody has to compute the logits after it. exact: go back to
        a checkpoint, or start over, rather than keep a cache whose recent tokens would be dequantized ones.
        """
        return self.truncate(self.kept_prefix(ids, exact))

    def kept_prefix(self, ids: Ids[int], exact: bool = False) -> int:
        """How many tokens `keep_prefix` will keep."""
        return self.cache.kept(common_prefix(self.tokens, ids[:-1]), exact)

    def truncate(self, n: int) -> int:
        """Forget all but the first n tokens; returns how many are left, which are fewer where the cache cannot be cut
        there (KVCache.truncate)."""
        left = self.cache.truncate(n)
        del self.tokens[left:]
        self.cuts += 1
        return left

    def clear(self) -> None:
        """Forget every token, and the cache's peak with them."""
        self.truncate(0)
        self.cache.clear()

    def fork(self) -> Sequence:
        """An independent continuation of the same tokens."""
        twin = Sequence(self.scheduler, self.cache.fork())
        twin.tokens = list(self.tokens)
        return twin

    def replace_by(self, other: Sequence) -> None:
        """Take over the tokens and the cache of another sequence of the same model, which must not be used again."""
        self.cuts += 1
        self.cache, self.tokens = other.cache, other.tokens


def common_prefix(a: Ids[int], b: Ids[int]) -> int:
    """How many ids the two begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared in C, so long prompts cost little
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
