"""What a session file says of each group of layers: which arrays it holds of it, in which order, and how long they are.

Every number of a header is checked here before anything is read or allocated for it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from mixkv.engine.state.mixed_policy import Marks
from mixkv.kernels import TILE, LayerFormat, cache_type
from mixkv.kernels.errors import SessionError

MAX_TOKENS = 1 << 31
MAX_SIZE = 1 << 31
MAX_DIMS = 8


@dataclass(frozen=True)
class Section:
    """One array of the payload. layer: its number in the group. side: "k", "v", or the number of a recurrent layer's
    array. Positions [start, stop), cold or not, as `kind` (a cache type) writes them; shape has a row for each."""

    layer: int
    side: str
    cold: bool
    start: int
    stop: int
    kind: str
    shape: tuple[int, ...]
    n_bytes: int


class GroupHeader(Protocol):
    """What the file says of one group; n tokens are those of the whole file."""

    kind: ClassVar[str]

    def sections(self, n: int) -> list[Section]:
        """Every array of the payload, in order."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, for the header."""

    def difference(self, mine: GroupHeader, numbers: tuple[int, ...]) -> str:
        """Where the settings of this one and of a cache's own, of the same shape, differ, both named; empty where they
        do not. numbers: of the group's layers in the model."""

    def same_shape(self, mine: GroupHeader) -> bool:
        """Whether both are of layers that keep the same thing."""


@dataclass(frozen=True)
class KeyShape:
    """(n_kv_heads, head_dim_k, head_dim_v) of layers that keep keys."""

    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int

    def section(self, layer: int, side: str, cold: bool, start: int, stop: int, kind: str) -> Section:
        head_dim = self.head_dim_k if side == "k" else self.head_dim_v
        row = cache_type(kind).row_bytes(head_dim)
        shape = (stop - start, self.n_kv_heads, row if cold else head_dim)
        return Section(layer, side, cold, start, stop, kind, shape, (stop - start) * self.n_kv_heads * row)

    def head_dim(self, side: str) -> int:
        return self.head_dim_k if side == "k" else self.head_dim_v


@dataclass(frozen=True)
class MixedHeader:
    """Of each layer K then V of the sinks (hot type), of [S, quant_end) (cold type, GGML's block bytes) and of
    [hot_start, n) (hot type). hot_window None: nothing ever turns cold."""

    kind: ClassVar[str] = "mixed"
    shape: KeyShape
    layers: tuple[LayerFormat, ...]
    sink_tokens: int
    hot_window: int | None
    marks: Marks

    def sections(self, n: int) -> list[Section]:
        spans = (
            (False, 0, min(n, self.sink_tokens)),
            (True, self.sink_tokens, self.marks.quant_end),
            (False, self.marks.hot_start, max(n, self.marks.hot_start)),
        )
        return [
            self.shape.section(i, side, cold, start, stop, kind if cold else hot)
            for i, f in enumerate(self.layers)
            for cold, start, stop in spans
            for side, kind, hot in (("k", f.type_k, f.hot_k), ("v", f.type_v, f.hot_v))
        ]

    def to_json(self) -> dict[str, Any]:
        marks = asdict(self.marks)
        del marks["n"]  # the file's own
        fields = {"kind": self.kind, **asdict(self.shape), "layers": [asdict(f) for f in self.layers]}
        return fields | {"sink_tokens": self.sink_tokens, "hot_window": self.hot_window} | marks

    @classmethod
    def from_json(cls, fields: dict[str, Any], n: int) -> MixedHeader:
        window = fields.get("hot_window")
        if window is not None:
            whole(fields, "hot_window")
        hot_start, quant_end, degraded_end = (whole(fields, k) for k in ("hot_start", "quant_end", "degraded_end"))
        sinks = whole(fields, "sink_tokens")
        aligned = all((mark - sinks) % TILE == 0 for mark in (hot_start, quant_end))
        end = max(n, sinks)
        if not (aligned and sinks <= hot_start <= quant_end <= end and degraded_end <= end):
            raise SessionError("its marks contradict each other")
        marks = Marks(n, hot_start, quant_end, degraded_end)
        return cls(_key_shape(fields), _layers(fields), sinks, window, marks)

    def difference(self, mine: GroupHeader, numbers: tuple[int, ...]) -> str:
        assert isinstance(mine, MixedHeader)
        for name in ("hot_window", "sink_tokens"):
            a, b = getattr(self, name), getattr(mine, name)
            if a != b:
                return f"{name} = {a}, and this cache has {b}"
        return _layers_differ(self.layers, mine.layers, numbers)

    def same_shape(self, mine: GroupHeader) -> bool:
        return isinstance(mine, MixedHeader) and (self.shape, len(self.layers)) == (mine.shape, len(mine.layers))


@dataclass(frozen=True)
class SlidingHeader:
    """Of each layer K then V of [oldest, n), in its one type; a query reads the last `window` of them."""

    kind: ClassVar[str] = "sliding"
    shape: KeyShape
    layers: tuple[LayerFormat, ...]
    window: int
    oldest: int

    def sections(self, n: int) -> list[Section]:
        return [
            self.shape.section(i, side, False, self.oldest, n, kind)
            for i, f in enumerate(self.layers)
            for side, kind in (("k", f.hot_k), ("v", f.hot_v))
        ]

    def to_json(self) -> dict[str, Any]:
        fields = {"kind": self.kind, **asdict(self.shape), "layers": [asdict(f) for f in self.layers]}
        return fields | {"window": self.window, "oldest": self.oldest}

    @classmethod
    def from_json(cls, fields: dict[str, Any], n: int) -> SlidingHeader:
        window, oldest = whole(fields, "window"), whole(fields, "oldest")
        if window == 0 or oldest % TILE or oldest > max(0, n - window + 1):
            raise SessionError("its window and its oldest token contradict each other")
        return cls(_key_shape(fields), _layers(fields), window, oldest)

    def difference(self, mine: GroupHeader, numbers: tuple[int, ...]) -> str:
        assert isinstance(mine, SlidingHeader)
        return _layers_differ(self.layers, mine.layers, numbers)

    def same_shape(self, mine: GroupHeader) -> bool:
        return isinstance(mine, SlidingHeader) and (self.shape, len(self.layers), self.window) == (
            mine.shape, len(mine.layers), mine.window,
        )  # fmt: skip


@dataclass(frozen=True)
class ChunkedHeader:
    """Of each layer K then V of [start, n), which are of one chunk, in its one type."""

    kind: ClassVar[str] = "chunked"
    shape: KeyShape
    layers: tuple[LayerFormat, ...]
    chunk: int
    start: int

    def sections(self, n: int) -> list[Section]:
        return [
            self.shape.section(i, side, False, self.start, n, kind)
            for i, f in enumerate(self.layers)
            for side, kind in (("k", f.hot_k), ("v", f.hot_v))
        ]

    def to_json(self) -> dict[str, Any]:
        fields = {"kind": self.kind, **asdict(self.shape), "layers": [asdict(f) for f in self.layers]}
        return fields | {"chunk": self.chunk, "start": self.start}

    @classmethod
    def from_json(cls, fields: dict[str, Any], n: int) -> ChunkedHeader:
        chunk, start = whole(fields, "chunk"), whole(fields, "start")
        if chunk == 0 or start % chunk or not start <= n <= start + chunk:
            raise SessionError("its chunk and its tokens contradict each other")
        return cls(_key_shape(fields), _layers(fields), chunk, start)

    def difference(self, mine: GroupHeader, numbers: tuple[int, ...]) -> str:
        assert isinstance(mine, ChunkedHeader)
        return _layers_differ(self.layers, mine.layers, numbers)

    def same_shape(self, mine: GroupHeader) -> bool:
        return isinstance(mine, ChunkedHeader) and (self.shape, len(self.layers), self.chunk) == (
            mine.shape, len(mine.layers), mine.chunk,
        )  # fmt: skip


@dataclass(frozen=True)
class RecurrentHeader:
    """Of each layer the arrays of its state after n tokens, float32; nothing for an empty sequence."""

    kind: ClassVar[str] = "recurrent"
    shapes: tuple[tuple[int, ...], ...]
    n_layers: int

    def sections(self, n: int) -> list[Section]:
        return [
            Section(layer, str(i), False, 0, n, "f32", shape, 4 * math.prod(shape))
            for layer in range(self.n_layers if n else 0)
            for i, shape in enumerate(self.shapes)
        ]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "shapes": self.shapes, "n_layers": self.n_layers}

    @classmethod
    def from_json(cls, fields: dict[str, Any], n: int) -> RecurrentHeader:
        shapes = fields.get("shapes")
        if not isinstance(shapes, list) or len(shapes) > MAX_DIMS:
            raise SessionError("its header has no valid shapes")
        for shape in shapes:
            good = isinstance(shape, list) and 0 < len(shape) <= MAX_DIMS and all(type(size) is int for size in shape)
            if not good or min(shape) < 1 or math.prod(shape) > MAX_SIZE:
                raise SessionError("its header has no valid shapes")
        return cls(tuple(map(tuple, shapes)), whole(fields, "n_layers", most=1 << 16))

    def difference(self, mine: GroupHeader, numbers: tuple[int, ...]) -> str:
        return ""

    def same_shape(self, mine: GroupHeader) -> bool:
        return self == mine


GROUPS: dict[str, type[MixedHeader] | type[SlidingHeader] | type[ChunkedHeader] | type[RecurrentHeader]] = {
    group.kind: group for group in (MixedHeader, SlidingHeader, ChunkedHeader, RecurrentHeader)
}


def group_from_json(fields: Any, n: int) -> GroupHeader:
    """A group's header, checked field by field: types, ranges, and how the marks stand to the n tokens of the file."""
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in GROUPS:
        raise SessionError("it keeps layers of a kind that this version does not know")
    return GROUPS[kind].from_json(fields, n)


def whole(fields: dict[str, Any], name: str, most: int = MAX_TOKENS) -> int:
    """A field that is a number of something."""
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise SessionError(f"its header has no valid {name}")
    return value


def _key_shape(fields: dict[str, Any]) -> KeyShape:
    return KeyShape(*(whole(fields, name) for name in ("n_kv_heads", "head_dim_k", "head_dim_v")))


def _layers(fields: dict[str, Any]) -> tuple[LayerFormat, ...]:
    if not isinstance(fields.get("layers"), list):
        raise SessionError("its header is incomplete")
    return tuple(LayerFormat(**layer) for layer in fields["layers"])


def _layers_differ(theirs: tuple[LayerFormat, ...], mine: tuple[LayerFormat, ...], numbers: tuple[int, ...]) -> str:
    for i, a, b in zip(numbers, theirs, mine, strict=True):
        if a != b:
            return f"layer {i} = {a}, and this cache has {b}"
    return ""
