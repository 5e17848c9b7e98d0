"""Sequence: a model and one cache, and which tokens the cache holds. The only room that runs a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids

import numpy as np

from mixkv.engine.kv import KVCache
from mixkv.models.llama import F32, Llama

Progress = Callable[[int, int], None]
"""(tokens done, tokens in all)"""


class Sequence:
    """Feeds tokens to the model, a chunk of at most n_batch at a time. `tokens` are those in the cache.

    `cuts` counts how often tokens were taken back: who finds it changed no longer continues its own text.
    """

    def __init__(self, model: Llama, cache: KVCache, *, n_batch: int) -> None:
        self.model, self.cache, self.n_batch = model, cache, n_batch
        self.tokens: list[int] = []
        self.cuts = 0

    def feed(self, ids: Ids[int], *, all_rows: bool = False, progress: Progress | None = None) -> F32:
        """Append `ids` (at least one, in range) and return logits: (n, n_vocab) for all_rows, else (1, n_vocab).

        An exception in the middle leaves the chunks before it stored, and `tokens` true. ContextFullError, before
        anything is written, if they do not fit.
        """
        self.cache.policy.check_room(len(ids))
        logits: list[F32] = []
        for start in range(0, len(ids), self.n_batch):
            chunk = ids[start : start + self.n_batch]
            last = start + len(chunk) == len(ids)
            rows = slice(0, None) if all_rows else slice(len(chunk) - 1 if last else len(chunk), None)
            with self.cache.step(len(chunk)) as (pos, attend):
                logits.append(self.model.forward(np.asarray(chunk, np.int32), pos, attend, rows))
            self.tokens += chunk
            if progress is not None:
                progress(start + len(chunk), len(ids))
        return np.concatenate(logits) if all_rows else logits[-1]

    def keep_prefix(self, ids: Ids[int], exact: bool = False) -> int:
        """Cut the cache back to the longest common prefix with `ids`, less its last token; returns its length.

        The last token is left out because somebody has to compute the logits after it. exact: start over rather
        than keep a cache whose recent tokens would be dequantized ones.
        """
        n = 0
        for mine, wanted in zip(self.tokens, ids[:-1], strict=False):
            if mine != wanted:
                break
            n += 1
        if exact and not self.cache.policy.truncates_exactly(n):
            n = 0
        self.truncate(n)
        return n

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens."""
        self.cache.truncate(n)
        del self.tokens[n:]
        self.cuts += 1
