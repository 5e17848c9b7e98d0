"""BatchStates: what the sequences of one batch keep of their past, as a model's layers see it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mixkv.engine.state.cache import KeyState, KVCache
from mixkv.engine.state.recurrent import RecurrentLayer
from mixkv.models.batch import F32, Run

Part = tuple[KVCache, Run]


class BatchStates:
    """The caches of a batch's sequences, each of which has begun as many tokens as its run has (models/batch.py)."""

    def __init__(self, caches: Iterable[KVCache], runs: Iterable[Run]) -> None:
        self._parts: list[Part] = list(zip(caches, runs, strict=True))

    def attend(self, layer: int, q: F32, k: F32 | None, v: F32 | None, sinks: F32 | None = None) -> F32:
        """See models/batch.py. Sequences that take their tokens in one piece do so in one call."""
        if len(self._parts) == 1:
            return self._parts[0][0].attend(layer, q, k, v, sinks)
        outs: list[F32] = []
        together: list[Part] = []
        for part in self._parts:
            if k is not None and _goes_with(layer, part, together):
                together.append(part)
                continue
            outs += self._steps(layer, together, q, k, v, sinks)
            together = [part]
        outs += self._steps(layer, together, q, k, v, sinks)
        return np.concatenate(outs) if len(outs) > 1 else outs[0]

    def _steps(
        self, layer: int, parts: list[Part], q: F32, k: F32 | None, v: F32 | None, sinks: F32 | None
    ) -> list[F32]:
        """What neighbours in the batch read, if there are any."""
        if not parts:
            return []
        mine = slice(parts[0][1].start, parts[-1][1].stop)
        q, k, v = q[mine], None if k is None else k[mine], None if v is None else v[mine]
        if len(parts) == 1 or k is None or v is None:
            return [parts[0][0].attend(layer, q, k, v, sinks)]
        places = [cache.place(layer) for cache, _ in parts]
        _, index, spec = places[0]
        states = [state for state, _, _ in places if isinstance(state, KeyState)]
        stores, orders = [state.store for state in states], [state.order(index) for state in states]
        step = parts[0][0].backend.step_batch
        return [step(index, stores, q, k, v, orders, **states[0].scores(spec, sinks))]

    def recurrent(self, layer: int) -> list[tuple[Run, RecurrentLayer]]:
        """See models/batch.py."""
        return [(run, cache.recurrent(layer)) for cache, run in self._parts]


def _goes_with(layer: int, part: Part, others: list[Part]) -> bool:
    """Whether a part's step can be one call with those before it: one piece each, and caches of one make."""
    if not others:
        return False
    mine, first = (cache.place(layer)[0] for cache, _ in (part, others[0]))
    if not (isinstance(mine, KeyState) and isinstance(first, KeyState)):
        return False
    return mine.in_one_piece and first.in_one_piece and (mine.formats, mine.group) == (first.formats, first.group)
