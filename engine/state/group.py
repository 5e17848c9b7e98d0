"""What a sequence keeps of its past, by groups of layers that keep the same thing; and what every kind of it can do.

Kinds: "mixed" (mixed.py: sinks, hot ring, cold tiles), "sliding" (sliding.py: a ring of the window), "chunked"
(chunked.py: the newest chunk), "recurrent" (recurrent.py: one state). A sequence's cache (cache.py) has one state for
each group and keeps them in step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mixkv.models.batch import F32
from mixkv.models.layers import Attention, LayerSpec, Recurrent, Shape


@dataclass(frozen=True)
class LayerGroup:
    """Layers that keep the same thing in the same shape.

    kind: "mixed", "sliding", "chunked" or "recurrent". layers: their numbers in the model. shape: `Attention.kv_shape`
    of a token; recurrent: those of the arrays. window: of sliding layers; of chunked ones the chunk. shared: whether
    other layers read their keys too (`Attention.kv_from`). v_in_k: numbers of a value where values are the beginning of
    keys, 0 where they are kept by themselves.
    """

    kind: str
    layers: tuple[int, ...]
    shape: tuple[int, ...] | tuple[Shape, ...]
    window: int = 0
    shared: bool = False
    v_in_k: int = 0

    @property
    def store_shape(self) -> dict[str, Any]:
        """What a backend's KVStore is told of a token."""
        n_kv_heads, head_dim_k, head_dim_v = cast(tuple[int, int, int], self.shape)
        sizes = {"n_kv_heads": n_kv_heads, "head_dim_k": head_dim_k, "head_dim_v": self.v_in_k or head_dim_v}
        return sizes | {"v_in_k": self.v_in_k > 0}


_Kept = tuple[str, tuple[int, ...] | tuple[Shape, ...], int, int]
"""Kind, shape, window and v_in_k of a group."""


def kind_of(mixer: Attention | Recurrent) -> str:
    """Which kind of state a mixer keeps."""
    if isinstance(mixer, Recurrent):
        return "recurrent"
    return "chunked" if mixer.chunk else "sliding" if mixer.window else "mixed"


def group_layers(layers: Iterable[LayerSpec]) -> list[LayerGroup]:
    """The groups of a model's layers, in the order of their first layers; layers that keep nothing are in none."""
    found: dict[_Kept, list[int]] = {}
    read = set()
    for i, layer in enumerate(layers):
        for mixer in (layer.mixer, layer.beside):
            if mixer is None:
                continue
            if isinstance(mixer, Attention) and mixer.kv_from is not None:
                read.add(mixer.kv_from)
                continue
            if isinstance(mixer, Recurrent):
                key: _Kept = kind_of(mixer), mixer.shapes, 0, 0
            else:
                key = kind_of(mixer), mixer.kv_shape, mixer.chunk or mixer.window, mixer.head_dim_v * mixer.v_in_k
            found.setdefault(key, []).append(i)
    return [
        LayerGroup(kind, tuple(at), shape, window, any(i in read for i in at), v_in_k)
        for (kind, shape, window, v_in_k), at in found.items()
    ]


@dataclass(frozen=True)
class KindStats:
    """Tokens and bytes of one group now; what its kind does not have is 0. elements: numbers that are stored of tokens.
    fp16_bytes: what a plain FP16 cache would hold for these layers."""

    sink_tokens: int = 0
    hot_tokens: int = 0
    cold_tokens: int = 0
    degraded_tokens: int = 0
    sink_bytes: int = 0
    hot_bytes: int = 0
    cold_bytes: int = 0
    scale_bytes: int = 0
    window_bytes: int = 0
    state_bytes: int = 0
    elements: int = 0
    fp16_bytes: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.sink_bytes + self.hot_bytes + self.cold_bytes + self.window_bytes

    @property
    def nbytes(self) -> int:
        return self.token_bytes + self.state_bytes


class Snapshot(Protocol):
    """A state as it was at some length; never changed."""

    @property
    def nbytes(self) -> int:
        """Bytes of its own."""

    @property
    def pages(self) -> Mapping[int, int]:
        """What it shares with stores, as KVStore.ring_pages gives it."""

    @property
    def exact(self) -> bool:
        """Whether no recent token in it was restored from its cold form."""


Order = tuple[int, NDArray[np.int64], int, int]
"""Position of the first token, from where on each one's query reads the hot form, and the tiles to quantize before."""


class State(Protocol):
    """What a group keeps of one sequence of `n` tokens. Layers are numbered within the group.

    `begin` prepares for more tokens, then every layer deals with them once (`attend`; or read and write, see
    recurrent.py), and `commit` stores them; until then the state of the n tokens before is not lost, and `mend` brings
    it back, after whatever went wrong in between.
    """

    group: LayerGroup

    @property
    def n(self) -> int:
        """Tokens stored."""

    def reserve(self, n: int) -> None:
        """Have the memory for n more tokens, which fit into the context. OutOfMemoryError, and nothing has changed."""

    def begin(self, n: int) -> None:
        """Prepare for the n tokens that there is memory for."""

    def attend(
        self, layer: int, q: F32, k: F32 | None, v: F32 | None, spec: Attention, sinks: F32 | None = None
    ) -> F32:
        """Store k, v (n, n_kv_heads, .) of the tokens begun, and return what q reads: (n, n_heads, head_dim_v). k and v
        None: they are there already, stored by the layer whose keys this one reads."""

    def commit(self, keep: int | None = None) -> int:
        """The tokens begun are stored, or the first `keep` of them; returns the most bytes that the step held."""

    def mend(self) -> bool:
        """Give up what was begun. May itself be interrupted, and called again. True where tokens were restored from
        their cold form."""

    def most_drafted(self) -> int:
        """Tokens that may be begun behind the next one and left out of `commit`."""

    def reaches(self, n: int) -> bool:
        """Whether `truncate(n)` can be done with what is stored."""

    def truncates_exactly(self, n: int) -> bool:
        """Whether it can, and what is then read is what a sequence that was never longer would read."""

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens; `reaches(n)` is true."""

    def snapshot(self) -> Snapshot | None:
        """What `restore` needs to come back to this length; None where `truncate` reaches every length exactly."""

    def restore(self, snapshot: Snapshot) -> None:
        """Be as the snapshot was, in this sequence or in one that was forked from it, which was never shorter since.
        Needs no memory of the pool's, and may be called again after an interrupt."""

    def pages(self) -> Mapping[int, int]:
        """Those in use that snapshots may share (KVStore.ring_pages)."""

    def clear(self) -> None:
        """Forget everything."""

    def fork(self) -> State:
        """An independent copy."""

    def stats(self) -> KindStats:
        """Tokens and bytes now."""
