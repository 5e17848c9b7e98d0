"""BatchStates: what the sequences of one batch keep of their past, as a model's layers see it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mixkv.engine.state.cache import KVCache
from mixkv.engine.state.recurrent import RecurrentLayer
from mixkv.models.batch import F32, Run


class BatchStates:
    """The caches of a batch's sequences, each of which has begun as many tokens as its run has (models/batch.py)."""

    def __init__(self, caches: Iterable[KVCache], runs: Iterable[Run]) -> None:
        self._parts = list(zip(caches, runs, strict=True))

    def attend(self, layer: int, q: F32, k: F32 | None, v: F32 | None) -> F32:
        """See models/batch.py."""
        if len(self._parts) == 1:
            return self._parts[0][0].attend(layer, q, k, v)

        def part(x: F32 | None, run: Run) -> F32 | None:
            return None if x is None else x[run.start : run.stop]

        outs = [cache.attend(layer, q[r.start : r.stop], part(k, r), part(v, r)) for cache, r in self._parts]
        return np.concatenate(outs)

    def recurrent(self, layer: int) -> list[tuple[Run, RecurrentLayer]]:
        """See models/batch.py."""
        return [(run, cache.recurrent(layer)) for cache, run in self._parts]
