"""Between the states of a cache and the arrays of a session file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.session_file import SessionReader
from mixkv.engine.session_group import (
    ChunkedHeader,
    GroupHeader,
    KeyShape,
    MixedHeader,
    RecurrentHeader,
    Section,
    SlidingHeader,
)
from mixkv.engine.state.cache import KeyState
from mixkv.engine.state.chunked import ChunkedState, ChunkMarks
from mixkv.engine.state.group import State
from mixkv.engine.state.mixed import MixedState
from mixkv.engine.state.recurrent import ArraysSnapshot, RecurrentState
from mixkv.engine.state.sliding import SlidingState
from mixkv.engine.state.sliding_policy import RingMarks
from mixkv.kernels import TILE
from mixkv.kernels.errors import SessionError
from mixkv.kernels.formats import decode
from mixkv.kernels.numeric import hadamard


def header_of(state: State) -> GroupHeader:
    """What a session says of a state as it is now."""
    if isinstance(state, RecurrentState):
        return RecurrentHeader(cast(tuple[tuple[int, ...], ...], state.group.shape), len(state.group.layers))
    shape = KeyShape(*cast(tuple[int, int, int], state.group.shape))
    if isinstance(state, SlidingState):
        return SlidingHeader(shape, state.formats, state.group.window, state.policy.marks.oldest)
    if isinstance(state, ChunkedState):
        return ChunkedHeader(shape, state.formats, state.group.window, state.marks.start)
    assert isinstance(state, MixedState)
    return MixedHeader(shape, state.formats, state.plan.sink_tokens, state.plan.hot_window, state.policy.marks)


def rows_of(state: State, section: Section) -> NDArray[Any]:
    """The array of a section of this state's header."""
    if isinstance(state, RecurrentState):
        return state.read(section.layer)[int(section.side)]
    assert isinstance(state, KeyState)
    get = state.store.get_cold if section.cold else state.store.get_hot
    first = state.marks.start if isinstance(state, ChunkedState) else 0  # the position that is the store's first one
    return get(section.layer, section.start - first, section.stop - first)["kv".index(section.side)]


def fill(reader: SessionReader, header: GroupHeader, state: State, *, convert: bool) -> None:
    """Read the next group of the file, whose header is this, into an empty state of the same shape.

    convert: its settings are others, and every row is written into this state's forms.
    """
    if isinstance(state, RecurrentState):
        assert isinstance(header, RecurrentHeader)
        _fill_recurrent(reader, header, state)
    elif isinstance(state, SlidingState):
        assert isinstance(header, SlidingHeader)
        _fill_sliding(reader, header, state)
    elif isinstance(state, ChunkedState):
        assert isinstance(header, ChunkedHeader)
        _fill_chunked(reader, header, state)
    else:
        assert isinstance(state, MixedState) and isinstance(header, MixedHeader)
        (_convert_mixed if convert else _fill_mixed)(reader, header, state)


def _fill_recurrent(reader: SessionReader, header: RecurrentHeader, state: RecurrentState) -> None:
    arrays = [reader.section(section) for section in header.sections(reader.header.n)]
    per_layer = len(header.shapes)
    if arrays:
        layers = tuple(tuple(arrays[i : i + per_layer]) for i in range(0, len(arrays), per_layer))
        state.restore(ArraysSnapshot(layers, reader.header.n))


def _fill_sliding(reader: SessionReader, header: SlidingHeader, state: SlidingState) -> None:
    """Of a ring that was longer the newest tokens."""
    n, policy = reader.header.n, state.policy
    oldest = max(header.oldest, TILE * max(0, -(-n // TILE) - policy.tiles))
    sections = header.sections(n)
    for key, value in zip(sections[::2], sections[1::2], strict=True):
        rows = [
            reader.section(section)[oldest - header.oldest :].astype(np.float32 if kind == "f32" else np.float16)
            for section, kind in zip((key, value), _hot_types(state, key.layer), strict=True)
        ]
        if oldest < n:
            state.store.set_hot(key.layer, oldest, *rows)
    policy.marks = RingMarks(n, oldest)


def _fill_chunked(reader: SessionReader, header: ChunkedHeader, state: ChunkedState) -> None:
    n, sections = reader.header.n, header.sections(reader.header.n)
    for key, value in zip(sections[::2], sections[1::2], strict=True):
        rows = [
            reader.section(section).astype(np.float32 if kind == "f32" else np.float16)
            for section, kind in zip((key, value), _hot_types(state, key.layer), strict=True)
        ]
        if header.start < n:
            state.store.set_hot(key.layer, 0, *rows)
    state.marks = ChunkMarks(n, header.start)


def _hot_types(state: SlidingState | ChunkedState, layer: int) -> tuple[str, str]:
    return state.formats[layer].hot_k, state.formats[layer].hot_v


def _fill_mixed(reader: SessionReader, header: MixedHeader, state: MixedState) -> None:
    """Copy the stored forms as they are. Hot rows that only the file's rollback reserve kept are left out."""
    policy, n = state.policy, reader.header.n
    hot_start = max(header.marks.hot_start, policy.cold_end(max(0, n - policy.reserve)))
    if policy.cold_end(n) > header.marks.quant_end or hot_start > policy.cold_end(n):
        raise SessionError(f"session {reader.path} lacks rows that its own settings need: it is damaged")
    sections = header.sections(n)
    for key, value in zip(sections[::2], sections[1::2], strict=True):
        k, v = reader.section(key), reader.section(value)
        start, stop = key.start, key.stop
        if not key.cold and start >= header.sink_tokens:
            start = min(max(start, hot_start), stop)
            k, v = (rows[len(rows) - (stop - start) :] for rows in (k, v))
        if stop > start:
            (state.store.set_cold if key.cold else state.store.set_hot)(key.layer, start, k, v)
    policy.marks = replace(header.marks, hot_start=hot_start)


def _convert_mixed(reader: SessionReader, header: MixedHeader, state: MixedState) -> None:
    """Write every token anew, in this state's formats, from the best form that the file has of it."""
    policy, marks, n_layers = state.policy, header.marks, len(header.layers)
    pieces: list[list[NDArray[Any]]] = [[] for _ in range(2 * n_layers)]
    for section in header.sections(reader.header.n):
        rows = reader.section(section)
        if section.cold:  # positions that are hot as well are taken from there
            rows = rows[: max(0, marks.hot_start - section.start)]
            rows = decode(np.ascontiguousarray(rows), section.kind, header.shape.head_dim(section.side))
        rows = rows.astype(np.float32)
        rotated = getattr(header.layers[section.layer], f"rotate_{section.side}")
        pieces[2 * section.layer + "kv".index(section.side)].append(hadamard(rows) if rotated and rows.size else rows)
    sides = [np.concatenate(piece) for piece in pieces]
    while policy.n < marks.n:
        step = policy.step(min(policy.chunk, marks.n - policy.n))
        for layer in range(n_layers):
            k, v = (rows[step.pos : step.pos + step.n] for rows in sides[2 * layer : 2 * layer + 2])
            state.store.write(layer, k, v, step.pos)
            state.store.quantize(layer, step.cold_from, step.cold_to)
        policy.commit(step)
    degraded_end = max(marks.degraded_end, marks.hot_start if marks.hot_start > header.sink_tokens else 0)
    policy.marks = replace(policy.marks, degraded_end=min(marks.n, degraded_end))
