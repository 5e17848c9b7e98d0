"""The model under test: loaded once; each cache that is measured on it gets a sequence of its own."""

from __future__ import annotations

from pathlib import Path

from mixkv.engine.llm import LLM
from mixkv.engine.load import demo_model, load

DENSE_UP_TO = 64 << 20
"""Bytes of a model file whose weights the reference kernels hold as float32: minutes instead of hours."""


def load_subject(path: Path | None, *, n_ctx: int, n_batch: int, n_threads: int, exact: bool) -> LLM:
    """`load` as an evaluation wants it; None is the demo model. Raises what `load` raises."""
    file = demo_model() if path is None else path
    small = file.is_file() and file.stat().st_size <= DENSE_UP_TO
    return load(file, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads, exact=exact, dense=small)
