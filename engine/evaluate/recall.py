"""Needle recall: is a fact that stands far back in a long text still found through a cache?

A sentence that says a password of three random words is put into the text at some depth, and at the end the text
asks for it. The answer is teacher-forced: each of its tokens is scored with those before it given, so one slip does
not hide the rest. The same question without the needle shows what the model would guess anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixkv.engine.evaluate.divergence import score_rows
from mixkv.engine.evaluate.variants import BASE_VARIANT, Variant
from mixkv.engine.evaluate.windows import Ids, encode_further, text_pieces
from mixkv.engine.llm import LLM
from mixkv.engine.sequence import Sequence as TokenSequence
from mixkv.kernels.errors import InputError

STATEMENT = '\n"Remember this well," said the old man; "the password of the castle is{}."\n'
QUESTION = '\n"Tell me what I said," said the old man. "The password of the castle is'
_WORD = re.compile(r"\b[a-z]{5,9}\b")


@dataclass(frozen=True)
class RecallRow:
    """One cache with the needle at one depth (0: the beginning, 1: the end of the text; None: no needle).

    recall: share of the answer's tokens that the model finds most probable. logprob: mean natural log probability of
    an answer token.
    """

    kv: str
    depth: float | None
    recall: float
    logprob: float
    n_tokens: int


def needle_recall(
    llm: LLM, windows: Sequence[Ids], text: Path, depths: Sequence[float], variants: Sequence[Variant], *,
    seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> list[RecallRow]:  # fmt: skip
    """Rows variant by variant, depth by depth, each over all windows; first FP16 without the needle.

    windows: ids (n,) to hide the needle in, all of one length, which with needle and question is what the model
    reads; each has a password of its own, words of `text`'s beginning drawn with `seed`.
    InputError where the text has too few words or the windows are too short.
    """
    passwords = draw_passwords(text, len(windows), seed)
    cases = [_Case.of(llm, window, password) for window, password in zip(windows, passwords, strict=True)]
    jobs: list[tuple[Variant, float | None]] = [(BASE_VARIANT, None), *((v, d) for v in variants for d in depths)]
    rows, n_ctx = [], max(len(ids) for ids in windows)
    for done, (variant, depth) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs))
        sequence = llm.new_sequence(variant.config, n_ctx)
        scored = [_score(sequence, case, depth) for case in cases]
        top, logprob = (np.concatenate(column) for column in zip(*scored, strict=True))
        rows.append(RecallRow(variant.name, depth, float(top.mean()), float(logprob.mean()), top.size))
    if progress is not None:
        progress(len(jobs), len(jobs))
    return rows


@dataclass(frozen=True)
class _Case:
    """Ids of a haystack that leaves room for the needle, of statement, question and answer."""

    hay: list[int]
    statement: list[int]
    question: list[int]
    answer: list[int]

    @classmethod
    def of(cls, llm: LLM, window: Ids, password: str) -> _Case:
        statement = encode_further(llm.tokenizer, STATEMENT.format(password))
        question = encode_further(llm.tokenizer, QUESTION)
        answer = encode_further(llm.tokenizer, QUESTION + password)[len(question) :]
        room = len(window) - len(statement) - len(question) - len(answer)
        if room < len(statement):
            raise InputError(f"a window of {len(window)} tokens is too short to hide a needle in: use a larger n_ctx")
        return cls(window[:room].tolist(), statement, question, answer)

    def prompt(self, depth: float | None) -> list[int]:
        """Text with the needle, up to the answer's first token; the first token (BOS) stays first."""
        if depth is None:
            return self.hay + self.question
        at = 1 + round(depth * (len(self.hay) - 1))
        return self.hay[:at] + self.statement + self.hay[at:] + self.question


def _score(sequence: TokenSequence, case: _Case, depth: float | None) -> tuple[np.ndarray, np.ndarray]:
    """For each answer token: was it the most probable, and its log probability."""
    sequence.clear()
    logits = sequence.feed(case.prompt(depth))
    if len(case.answer) > 1:
        logits = np.concatenate([logits, sequence.feed(case.answer[:-1], all_rows=True)])
    answer = np.array(case.answer)
    return logits.argmax(axis=1) == answer, -score_rows(logits, logits, answer).nll


def draw_passwords(text: Path, n: int, seed: int) -> list[str]:
    """n passwords, each three words with a space before each, from the first piece of `text`."""
    beginning = next(text_pieces(text), "")
    words = sorted(set(_WORD.findall(beginning)))
    if len(words) < 3:
        raise InputError(f"{text}: has fewer than three plain words to make a password of; use a longer English text")
    rng = np.random.default_rng(seed)
    return ["".join(f" {word}" for word in rng.choice(words, 3, replace=False)) for _ in range(n)]
