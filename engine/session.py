"""Save and restore a sequence (kv-cache.md section 8): the file is whole or absent, a restore is whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixkv.engine.sequence import Sequence
from mixkv.engine.session_file import MAGIC, Header, SessionReader, writing_session
from mixkv.engine.session_states import fill, header_of, rows_of
from mixkv.engine.state.cache import KVCache
from mixkv.kernels.errors import SessionError
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
        for group, section in header.sections():
            if section.stop > section.start:
                out.write(rows_of(cache.states[group], section))


def _header_of(cache: KVCache, model: Model) -> Header:
    return Header(model.fingerprint, cache.n, tuple(header_of(state) for state in cache.states))


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
        if len(header.groups) != len(mine.groups) or not all(
            theirs.same_shape(own) for theirs, own in zip(header.groups, mine.groups, strict=True)
        ):
            raise SessionError(f"session {path} contradicts its own model: it is damaged")
        n_ctx = current.cache.n_ctx
        if header.n > n_ctx:
            raise SessionError(
                f"session {path} has {header.n} tokens, but the context holds {n_ctx}: "
                f"load with {header.n} or more as n_ctx"
            )
        differences = [
            theirs.difference(own, state.group.layers)
            for theirs, own, state in zip(header.groups, mine.groups, current.cache.states, strict=True)
        ]
        if not convert and (difference := next(filter(None, differences), "")):
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
            for state, theirs, difference in zip(cache.states, header.groups, differences, strict=True):
                fill(reader, theirs, state, convert=bool(difference))
        cache.filled()
    restored = Sequence(current.scheduler, cache)
    restored.tokens = tokens.tolist()
    return restored
