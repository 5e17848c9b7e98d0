"""Save and restore a sequence (kv-cache.md section 8): the file is whole or absent, a restore is whole or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.kv import KVCache
from mixkv.engine.sequence import Sequence
from mixkv.engine.session_file import MAGIC, Header, SessionReader, writing_session
from mixkv.kernels.errors import SessionError
from mixkv.kernels.formats import decode
from mixkv.kernels.numeric import hadamard
from mixkv.models.protocol import Model


def save_session(path: str | Path, sequence: Sequence) -> None:
    """Write `sequence` to `path`. SessionError if it cannot be written; an older file then stays as it was."""
    cache = sequence.cache
    cache.mend()
    header = _header_of(cache, sequence.model)
    text = header.to_json()
    with writing_session(Path(path)) as out:
        out.write(MAGIC + len(text).to_bytes(8, "little") + text)
        out.write(np.asarray(sequence.tokens, np.int32))
        for layer, side, cold, start, stop, _ in header.sections():
            if stop > start:
                get = cache.store.get_cold if cold else cache.store.get_hot
                out.write(get(layer, start, stop)["kv".index(side)])


def _header_of(cache: KVCache, model: Model) -> Header:
    plan, config = cache.plan, model.config
    return Header(
        model.fingerprint, config.n_kv_heads, config.head_dim_k, config.head_dim_v, plan.layers, plan.sink_tokens,
        plan.hot_window, cache.policy.marks,
    )  # fmt: skip


def restore_session(path: str | Path, current: Sequence, *, convert: bool = False) -> Sequence:
    """The sequence stored at `path`, for the model and cache settings of `current`, which is left alone.

    SessionError for a damaged file, another model, too long a sequence, or other cache settings; these last are
    accepted with `convert`, which rewrites every row into the new forms (quantized rows are quantized afresh).
    """
    model = current.model.config
    with SessionReader(Path(path)) as reader:
        header = reader.header
        mine = _header_of(current.cache, current.model)
        if header.fingerprint != mine.fingerprint:
            raise SessionError(
                f"session {path} belongs to another model ({header.fingerprint}, this is {mine.fingerprint}): weights, "
                "hyper-parameters (RoPE's, too) and vocabulary must all be those it was saved with"
            )
        if (header.n_kv_heads, header.head_dim_k, header.head_dim_v, len(header.layers)) != (
            mine.n_kv_heads, mine.head_dim_k, mine.head_dim_v, len(mine.layers),
        ):  # fmt: skip
            raise SessionError(f"session {path} contradicts its own model: it is damaged")
        n_ctx = current.cache.policy.n_ctx
        if header.marks.n > n_ctx:
            raise SessionError(
                f"session {path} has {header.marks.n} tokens, but the context holds {n_ctx}: "
                f"load with -c {header.marks.n} or more"
            )
        if not convert and (difference := _difference(header, mine)):
            raise SessionError(
                f"session {path} was saved with {difference}: load with the same settings, or convert it (convert=True)"
            )
        tokens = reader.tokens()
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < model.n_vocab):
            raise SessionError(f"session {path} holds token ids that this model does not have: it is damaged")
        cache = KVCache(
            model, current.cache.plan, current.model.backend, n_ctx=n_ctx, chunk=min(current.scheduler.n_batch, n_ctx),
            pool=current.cache.pool,
        )  # fmt: skip
        with np.errstate(all="ignore"):  # NaN and infinity among the rows are data
            (_convert if _difference(header, mine) else _fill)(reader, cache)
    restored = Sequence(current.scheduler, cache)
    restored.tokens = tokens.tolist()
    return restored


def _difference(theirs: Header, mine: Header) -> str:
    """Where the cache settings differ, both sides named; empty where they do not."""
    for name in ("hot_window", "sink_tokens", "layers"):
        a, b = getattr(theirs, name), getattr(mine, name)
        if a != b:
            if name == "layers":
                layer = next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
                name, a, b = f"layer {layer}", a[layer], b[layer]
            return f"{name} = {a}, and this cache has {b}"
    return ""


def _fill(reader: SessionReader, cache: KVCache) -> None:
    """Copy the stored forms as they are. Hot rows that only the file's rollback reserve kept are left out."""
    header, policy = reader.header, cache.policy
    hot_start = max(header.marks.hot_start, policy.cold_end(max(0, header.marks.n - policy.reserve)))
    if policy.cold_end(header.marks.n) > header.marks.quant_end or hot_start > policy.cold_end(header.marks.n):
        raise SessionError(f"session {reader.path} lacks rows that its own settings need: it is damaged")
    pending: list[NDArray[Any]] = []
    for section in header.sections():
        layer, side, cold, start, stop, _ = section
        rows = reader.section(section)
        if not cold and start >= header.sink_tokens:
            start = min(max(start, hot_start), stop)
            rows = rows[len(rows) - (stop - start) :]
        pending.append(rows)
        if side == "v":
            k, v = pending
            pending = []
            if stop > start:
                (cache.store.set_cold if cold else cache.store.set_hot)(layer, start, k, v)
    policy.marks = replace(header.marks, hot_start=hot_start)


def _convert(reader: SessionReader, cache: KVCache) -> None:
    """Write every token anew, in this cache's formats, from the best form that the file has of it."""
    header, policy = reader.header, cache.policy
    marks, n_layers = header.marks, len(header.layers)
    pieces: list[list[NDArray[Any]]] = [[] for _ in range(2 * n_layers)]
    for section in header.sections():
        layer, side, cold, start, _, kind = section
        rows = reader.section(section)
        if cold:  # positions that are hot as well are taken from there
            rows = rows[: max(0, marks.hot_start - start)]
            rows = decode(np.ascontiguousarray(rows), kind, header.head_dim(side))
        rows = rows.astype(np.float32)
        rotated = getattr(header.layers[layer], f"rotate_{side}")
        pieces[2 * layer + "kv".index(side)].append(hadamard(rows) if rotated and rows.size else rows)
    sides = [np.concatenate(piece) for piece in pieces]
    while policy.n < marks.n:
        step = policy.step(min(policy.chunk, marks.n - policy.n))
        for layer in range(n_layers):
            k, v = (rows[step.pos : step.pos + step.n] for rows in sides[2 * layer : 2 * layer + 2])
            cache.store.write(layer, k, v, step.pos)
            cache.store.quantize(layer, step.cold_from, step.cold_to)
        policy.commit(step)
    degraded_end = max(marks.degraded_end, marks.hot_start if marks.hot_start > header.sink_tokens else 0)
    policy.marks = replace(policy.marks, degraded_end=min(marks.n, degraded_end))
