"""Perplexity of a text and the KL divergence that each cache adds to it.

Each window is fed to every cache side by side, a chunk at a time: FP16 first, then the others on the same tokens,
each scored against FP16's logits of that chunk. So no more than two chunks of logits exist at any time, however
long the window and the text. The first half of a window is context alone; the second is scored, as llama.cpp's
perplexity tool does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixkv.engine.evaluate.divergence import Quality, Scores, score_rows, summarize
from mixkv.engine.evaluate.resume import Progress, ResumeFile, RunKey
from mixkv.engine.evaluate.variants import BASE_VARIANT, Variant
from mixkv.engine.evaluate.windows import Ids, TextWindows
from mixkv.engine.llm import LLM
from mixkv.kernels.errors import ConfigError

MIN_CTX = 4


@dataclass(frozen=True)
class PerplexityRow:
    """One cache's result. Bytes are those of a full window: stored at its end, and at the fullest moment.

    tokens_per_second: of feeding whole windows, scoring left out. by_depth: (position, mean KL divergence) over the
    scored half of the windows.
    """

    kv: str
    n_ctx: int
    n_windows: int
    quality: Quality
    kv_bytes: int
    kv_peak_bytes: int
    bits_per_element: float
    tokens_per_second: float
    by_depth: tuple[tuple[float, float], ...]


class PerplexityRun:
    """A measurement that can be stopped after any window and taken up again.

    windows: the text. variants: caches to compare; FP16 is computed in any case, as the base.
    resume: a file that holds what was measured so far; it is read if it is there and replaced after each window.
    """

    def __init__(self, llm: LLM, windows: TextWindows, variants: Sequence[Variant], resume: Path | None = None) -> None:
        if windows.n_ctx < MIN_CTX:
            raise ConfigError(f"n_ctx {windows.n_ctx} is too short to score: use {MIN_CTX} or more")
        if not variants:
            raise ConfigError("there is no cache to measure: name some, as in f16,mixed")
        self.windows, self.variants = windows, list(variants)
        self._measured = [BASE_VARIANT, *(v for v in self.variants if not v.is_base)]
        self._sequences = [llm.new_sequence(v.config, windows.n_ctx) for v in self._measured]
        key = RunKey(
            model=llm.sequence.model.fingerprint, text=windows.digest, n_ctx=windows.n_ctx, kernels=llm.backend.name,
            caches=tuple(repr(v.config) for v in self._measured),
        )  # fmt: skip
        self._file = None if resume is None else ResumeFile(resume, key)
        scored = windows.n_ctx - windows.n_ctx // 2 - 1
        found = self._file.read() if self._file else None
        self.done = Progress.empty(len(self._measured), scored) if found is None else found

    def run(self, progress: Callable[[int, int], None] | None = None) -> list[PerplexityRow]:
        """Measure the windows that are left and return a row for each variant, in their order.

        progress(windows done, windows in all). SessionError where the resume file cannot be written.
        """
        total = len(self.windows)
        for i, window in enumerate(self.windows):
            if i < self.done.n_windows:
                continue
            if progress is not None:
                progress(i, total)
            self._window(window)
            if self._file:
                self._file.write(self.done)
        if progress is not None:
            progress(total, total)
        return self.rows()

    def _window(self, ids: Ids) -> None:
        """Feed one window to every cache and add its scores."""
        first, n = len(ids) // 2, len(ids)
        seconds = np.zeros(len(self._sequences))
        parts: list[list[Scores]] = [[] for _ in self._sequences]

        def feed(i: int, chunk: Ids, all_rows: bool) -> np.ndarray:
            start = time.perf_counter()
            logits = self._sequences[i].feed(chunk.tolist(), all_rows=all_rows)
            seconds[i] += time.perf_counter() - start
            return logits

        for i, sequence in enumerate(self._sequences):
            sequence.clear()
            feed(i, ids[:first], all_rows=False)
        n_batch = self._sequences[0].scheduler.n_batch
        for start in range(first, n, n_batch):
            chunk, targets = ids[start : start + n_batch], ids[start + 1 : start + n_batch + 1]
            base = feed(0, chunk, all_rows=True)[: len(targets)]
            parts[0].append(score_rows(base, base, targets))
            for i in range(1, len(self._sequences)):
                logits = feed(i, chunk, all_rows=True)[: len(targets)]
                parts[i].append(score_rows(base, logits, targets))
        stats = [sequence.cache.stats() for sequence in self._sequences]
        self.done = self.done.plus(
            parts,
            seconds,
            [s.nbytes for s in stats],
            [s.peak_bytes for s in stats],
            [s.bits_per_element for s in stats],
        )

    def rows(self) -> list[PerplexityRow]:
        """Results of the windows measured so far (at least one)."""
        return [self._row(v, 0 if v.is_base else self._measured.index(v)) for v in self.variants]

    def _row(self, variant: Variant, i: int) -> PerplexityRow:
        done, n_ctx = self.done, self.windows.n_ctx
        scores = done.scores(i)
        return PerplexityRow(
            kv=variant.name,
            n_ctx=n_ctx,
            n_windows=done.n_windows,
            quality=summarize(scores, done.scores(0)),
            kv_bytes=int(done.nbytes[i]),
            kv_peak_bytes=int(done.peak_bytes[i]),
            bits_per_element=float(done.bits[i]),
            tokens_per_second=done.n_windows * n_ctx / float(done.seconds[i]),
            by_depth=_by_depth(scores, n_ctx),
        )


def _by_depth(scores: Scores, n_ctx: int, bins: int = 16) -> tuple[tuple[float, float], ...]:
    """(position, mean KL divergence) in at most `bins` stretches of the scored half; scores (n_windows, n_scored)."""
    at_depth = scores.kld.astype(np.float64).mean(axis=0)
    pieces = np.array_split(np.arange(len(at_depth)), min(bins, len(at_depth)))
    return tuple((float(n_ctx // 2 + piece.mean()), float(at_depth[piece].mean())) for piece in pieces)
