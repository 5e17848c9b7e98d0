"""Constraint: holds one generation to a grammar, token by token."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Any

import numpy as np

from mixkv.engine.decode import Processor
from mixkv.engine.grammar.source import grammar_of
from mixkv.engine.grammar.vocabulary import GrammarVocabulary
from mixkv.engine.sampling.params import SamplingParams
from mixkv.kernels import Backend
from mixkv.kernels.errors import InputError
from mixkv.models.batch import F32


class Constraint(Processor):
    """A generation's place in its grammar.

    Tokens that end a text are allowed exactly where the grammar is complete; where nothing can follow, `ended` is true.
    Where the grammar leaves one text only, it goes on with the tokens that the tokenizer makes of that text, which are
    `forced`. starts_after: a text, such as "</think>"; up to it anything goes, and the grammar begins behind it (behind
    the blanks that its last token may bring along). What goes on too far in the grammar's eyes is an InputError.
    """

    def __init__(
        self, vocabulary: GrammarVocabulary, setting: str, grammar: str, backend: Backend,
        starts_after: str | None = None,
    ) -> None:  # fmt: skip
        """setting, grammar: see `grammar_of`. ConfigError for a grammar that is wrong."""
        self.ended = False
        self._vocabulary, self._backend, self._setting = vocabulary, backend, setting
        self._matcher: Any = vocabulary.matcher(setting, grammar)
        self._awaited = (starts_after or "").encode()
        self._before = b""
        self._forced: list[int] = []
        if not self._awaited:
            self._look_ahead()

    def mask(self, logits: F32) -> F32:
        """See `Processor`."""
        if self._awaited:
            return self._without(logits, self._vocabulary.overshooting(self._before, self._awaited))
        if self._forced:
            only = np.full(len(logits), -np.inf, np.float32)
            only[self._forced[0]] = logits[self._forced[0]]
            return only
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        self._check()
        if not bits.any():
            raise InputError(f"{self._setting}: no token of this vocabulary can go on here")
        return self._backend.apply_token_mask(logits, bits)

    def accept(self, token: int) -> None:
        """See `Processor`."""
        if self._awaited:
            self._wait(self._vocabulary.tokenizer.piece(token))
            return
        self._matcher.consume_token(token)
        self._check()
        self._forced = self._forced[1:]
        self.ended = self._matcher.is_stopped()
        if not self._forced and not self.ended:
            self._look_ahead()

    def forced(self) -> Ids[int]:
        """See `Processor`."""
        return self._forced

    def _wait(self, piece: bytes) -> None:
        self._before += piece
        if self._awaited in self._before:
            self._awaited = self._before = b""
            self._look_ahead()
        else:
            self._before = self._before[-(len(self._awaited) - 1) :] if len(self._awaited) > 1 else b""

    def _look_ahead(self) -> None:
        found: list[int] = self._matcher.compute_ff_tokens()
        self._forced = found[: self._matcher.validate_tokens(found)]
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"{self._setting}: {' '.join(self._matcher.get_error().split())}")

    @staticmethod
    def _without(logits: F32, tokens: list[int]) -> F32:
        if not tokens:
            return logits
        out = logits.copy()
        out[tokens] = -np.inf
        return out


def constraint_of(
    params: SamplingParams, vocabulary: GrammarVocabulary, backend: Backend, starts_after: str | None = None
) -> Constraint:
    """The constraint of settings that have one (`params.constraint`). Errors: see Constraint."""
    return Constraint(vocabulary, *grammar_of(params), backend, starts_after)
