"""KVCache: what one sequence keeps of its past, a state for each group of layers, kept in step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

from mixkv.engine.cache_config import CachePlan
from mixkv.engine.state.checkpoints import Checkpoints
from mixkv.engine.state.chunked import ChunkedState
from mixkv.engine.state.group import LayerGroup, State, group_layers
from mixkv.engine.state.mixed import MixedState
from mixkv.engine.state.recurrent import RecurrentLayer, RecurrentState
from mixkv.engine.state.sliding import SlidingState
from mixkv.engine.state.stats import CacheStats
from mixkv.kernels import Backend
from mixkv.kernels.contract import PagePool
from mixkv.kernels.errors import ContextFullError, InputError, OutOfMemoryError
from mixkv.models.batch import F32
from mixkv.models.config import ModelConfig
from mixkv.models.layers import Attention

KeyState = MixedState | SlidingState | ChunkedState
"""Of layers that attend."""
CHECKPOINT_BYTES = 256 << 20
"""What the checkpoints of one sequence may take together, beside the pages that the sequence has in use."""


class KVCache:
    """The cache of one sequence. `n` tokens are stored; `begin` and `commit` add more; `truncate` takes some back.

    backend: that of the model whose keys it keeps. chunk: tokens to attend to at once (see CachePolicy); more may be
    begun at a time, if no layer sees a window. pool: where its memory is from, with forks and other sequences; None:
    one of its own. `states`: of each group of layers; to be read after a `mend`. `checkpoints`: see `checkpoint`.
    """

    def __init__(
        self, model: ModelConfig, plan: CachePlan, backend: Backend, *, n_ctx: int, chunk: int,
        pool: PagePool | None = None, checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> None:  # fmt: skip
        plan = plan.within(n_ctx)
        self.plan, self.n_ctx, self._model = plan, n_ctx, model

        self.backend, self.pool = backend, backend.page_pool() if pool is None else pool

        def state_of(group: LayerGroup) -> State:
            if group.kind == "recurrent":
                return RecurrentState(group)
            kinds: dict[str, type[KeyState]] = {"sliding": SlidingState, "chunked": ChunkedState, "mixed": MixedState}
            return kinds[group.kind](group, plan, backend, n_ctx=n_ctx, chunk=chunk, pool=self.pool)

        self.states = [state_of(group) for group in group_layers(model.layers)]
        self._places = self._find_places()
        self._n = self._begun = self._peak = 0
        self.checkpoints = Checkpoints(checkpoint_bytes)
        self._checkpoint_bytes = 0  # since pages changed last

    def _find_places(self) -> list[tuple[State, int, Attention] | None]:
        """Of each layer: the state that holds its keys, its number there, and how it attends."""
        keep_keys = [s for s in self.states if not isinstance(s, RecurrentState)]
        at = {layer: (s, i) for s in keep_keys for i, layer in enumerate(s.group.layers)}
        places: list[tuple[State, int, Attention] | None] = []
        for layer, spec in enumerate(self._model.layers):
            mixer = spec.mixer
            if isinstance(mixer, Attention):
                places.append((*at[layer if mixer.kv_from is None else mixer.kv_from], mixer))
            else:
                places.append(None)
        return places

    @property
    def n(self) -> int:
        """Tokens stored."""
        return self._n

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self.stats().nbytes

    @property
    def bits_per_element(self) -> float:
        """Average bits of a stored number."""
        return self.stats().bits_per_element

    @property
    def peak_nbytes(self) -> int:
        """The most bytes there ever were."""
        return self._peak

    def check_room(self, n: int) -> None:
        """ContextFullError if n more tokens exceed the context."""
        if self.n + n > self.n_ctx:
            raise ContextFullError(
                f"{n} more tokens after {self.n} exceed the context of {self.n_ctx}: load with a larger n_ctx"
            )

    def begin(self, n: int) -> int:
        """Prepare for n more tokens and return the first one's position; each layer then calls `attend` once, and
        `commit` ends it, or `abandon`. Nothing has changed after a ContextFullError, if the tokens do not fit, or an
        OutOfMemoryError, if the pool has no memory for them; checkpoints are given up before that."""
        self.mend()
        self.check_room(n)
        self._with_room(partial(state.reserve, n) for state in self.states)
        self._begun = n
        for state in self.states:
            state.begin(n)
        return self._n

    def attend(self, layer: int, q: F32, k: F32 | None, v: F32 | None, sinks: F32 | None = None) -> F32:
        """Store a layer's k, v (n, n_kv_heads, .) of the tokens begun, and return what their q reads:
        (n, n_heads, head_dim_v). k and v are None in layers that read another one's. sinks: see models/batch.py."""
        state, index, spec = self.place(layer)
        return state.attend(index, q, k, v, spec, sinks)

    def place(self, layer: int) -> tuple[State, int, Attention]:
        """The state that holds an attending layer's keys, the layer's number there, and how it attends."""
        place = self._places[layer]
        assert place is not None, "this layer does not attend"
        return place

    def recurrent(self, layer: int) -> RecurrentLayer:
        """What a recurrent layer keeps."""
        state = next(s for s in self.states if isinstance(s, RecurrentState) and layer in s.group.layers)
        return RecurrentLayer(state, state.group.layers.index(layer))

    def commit(self, keep: int | None = None) -> None:
        """The tokens begun are stored; or the first `keep` of them, where the rest was a draft that was rejected."""
        assert self._begun, "nothing was begun"
        self._n += self._begun if keep is None else keep  # an interrupt from here on: `mend` goes on with it
        self._begun = 0
        most = 0
        for state in self.states:
            most += state.commit(None if keep is None else keep)
        if any(isinstance(state, ChunkedState) for state in self.states):  # a chunk left behind is its checkpoint's
            self._checkpoint_bytes = self.checkpoints.fit(self.states)
        self._peak = max(self._peak, most + self._checkpoint_bytes)

    def abandon(self) -> None:
        """Give the tokens begun up. Those before stay as they were: but where so many were begun that they overwrote
        hot tokens, these are restored from their cold form, and count as degraded."""
        self.mend()

    def most_drafted(self) -> int:
        """Tokens that may be begun behind the next one and left out of `commit`."""
        return max(0, min(self.n_ctx - self._n - 1, *(state.most_drafted() for state in self.states)))

    def mend(self) -> None:
        """Make the tokens stored before an unfinished step whole again, and finish a `commit` or `truncate` that was
        interrupted. May itself be interrupted, and called again. The methods here call it."""
        changed = self._begun > 0
        for i, state in enumerate(self.states):
            if state.n != self._n:
                self._settle(i)
            if state.mend():
                changed, before = True, self.checkpoints.of(self._n, i)
                if before is not None and before.exact:
                    state.restore(before)
        self._begun = 0
        self.checkpoints.cut(self._n)
        if changed:
            self._fit_checkpoints()

    def _settle(self, i: int) -> None:
        """Bring a state to this cache's length."""
        n, state = self._n, self.states[i]
        if state.n < n:
            state.commit(n - state.n)
            return
        state.mend()
        snapshot = None if state.truncates_exactly(n) else self.checkpoints.of(n, i)
        if snapshot is None:
            state.truncate(n)
        else:
            state.restore(snapshot)

    @property
    def needs_checkpoints(self) -> bool:
        """Whether there may be lengths that `truncate` reaches by way of a checkpoint alone."""
        return any(not isinstance(state, MixedState) for state in self.states)

    def kept(self, n: int, exact: bool = False) -> int:
        """How many tokens `truncate(n)` will keep; or with exact, the most up to n that it keeps exactly."""

        def allowed(at: int) -> bool:
            return not exact or self.checkpoints.exact_at(at, self.states)

        if all(state.reaches(n) for state in self.states) and allowed(n):
            return n
        return max((at for at in self.checkpoints if at <= n and allowed(at)), default=0)

    def truncates_exactly(self, n: int) -> bool:
        """Whether after `truncate(n)` every recent token is exact: none restored by it, and none before it."""
        return self.kept(n) == n and self.checkpoints.exact_at(n, self.states)

    def truncate(self, n: int) -> int:
        """Forget all but the first n tokens; returns how many are left.

        These are n where all layers keep keys that are still there (CachePolicy.truncate says when that is exact);
        fewer where a layer cannot go back so far: then as many as the last checkpoint before n has, or none. At a
        checkpoint everything is as it was, bit for bit. Where tokens must be restored and there is no memory for them,
        an OutOfMemoryError, and no token has changed.
        """
        if not 0 <= n <= self.n:
            raise InputError(f"cannot truncate a cache of {self.n} tokens to {n}")
        self.mend()
        kept = self.kept(n)
        for i, state in enumerate(self.states):
            if isinstance(state, MixedState) and self.checkpoints.of(kept, i) is None:
                self._with_room([partial(state.reserve_truncation, kept)])
        self._n = kept
        self.mend()
        self._fit_checkpoints()
        return self._n

    def checkpoint(self) -> None:
        """Make `truncate` able to come back to this length; does nothing where it always is, and where there is no
        memory for it. Checkpoints take at most `checkpoint_bytes` together; which ones go says checkpoints.py."""
        self.mend()
        if self._n == 0 or self._n in self.checkpoints or not self.needs_checkpoints:
            return
        try:
            self.checkpoints.add(self._n, tuple(state.snapshot() for state in self.states))
        except MemoryError:
            return
        self._fit_checkpoints()

    def _fit_checkpoints(self) -> None:
        self._checkpoint_bytes = self.checkpoints.fit(self.states)
        self._peak = max(self._peak, self.nbytes)

    def _with_room(self, takes: Iterable[Callable[[], None]]) -> None:
        """Calls that take pages from the pool; checkpoints go where it has too few."""
        for take in takes:
            while True:
                try:
                    take()
                    break
                except OutOfMemoryError:
                    if not self.checkpoints.have_pages:
                        raise
                    self.checkpoints.drop_one()
        self._checkpoint_bytes = self.checkpoints.fit(self.states)

    def filled(self) -> None:
        """The states were set from outside, all to one length: that is this cache's."""
        self._n = self.states[0].n
        assert all(state.n == self._n for state in self.states), "states of one sequence have one length"

    def clear(self) -> None:
        """Forget everything, the peak included."""
        self._n = self._begun = self._peak = 0
        self.checkpoints.cut(0)
        self._checkpoint_bytes = 0
        for state in self.states:
            state.clear()

    def fork(self) -> KVCache:
        """An independent copy of the sequence. What checkpoints keep is shared."""
        self.mend()
        twin = copy.copy(self)
        twin.states = [state.fork() for state in self.states]
        twin._places, twin.checkpoints = twin._find_places(), self.checkpoints.fork()
        return twin

    def stats(self) -> CacheStats:
        """Tokens and bytes now."""
        kinds = [state.stats() for state in self.states]
        checkpoint_bytes = self.checkpoints.nbytes(self.states)
        return CacheStats.of(
            kinds, n_tokens=self._n, n_ctx=self.n_ctx, peak_bytes=self._peak, checkpoint_bytes=checkpoint_bytes
        )
