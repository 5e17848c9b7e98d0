"""A model's vocabulary as llguidance sees it: the bytes of each token, which are special, and which end a text."""

from __future__ import annotations

import re
import threading
from typing import Any

from mixkv.engine.grammar.source import llguidance
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import ConfigError

SPECIAL = b"\xff"
"""In front of a token that is no text: no UTF-8 begins with it."""


class GrammarVocabulary:
    """Makes matchers. What they share is built for the first one (0.7 s for 150k tokens), once. For any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._built: Any = None
        self._overshoots: dict[tuple[bytes, bytes], list[int]] = {}

    def matcher(self, setting: str, grammar: str) -> Any:
        """llguidance's LLMatcher at the beginning of a text. setting: whose grammar it is, for errors.

        ConfigError for a grammar that is wrong or uses what is not supported.
        """
        package = llguidance()
        with self._lock:
            if self._built is None:
                self._built = _build(package, self.tokenizer)
        limits = package.LLParserLimits(verbose_errors=False)
        matcher = package.LLMatcher(self._built, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConfigError(f"{setting}: {_one_line(matcher.get_error())}")
        return matcher

    def overshooting(self, before: bytes, tag: bytes) -> list[int]:
        """Tokens that, put behind `before`, complete `tag` and go on with more than blanks."""
        found: list[int] = []
        for n in range(min(len(before), len(tag) - 1) + 1):
            if before.endswith(tag[:n]):
                found += self._going_on(tag, tag[n:])
        return found

    def _going_on(self, tag: bytes, missing: bytes) -> list[int]:
        if (tag, missing) not in self._overshoots:
            pieces = self.tokenizer.pieces
            self._overshoots[tag, missing] = [
                i for i, piece in enumerate(pieces)
                if missing in piece and (missing == tag or piece.startswith(missing))
                and piece.split(missing, 1)[1].strip()
            ]  # fmt: skip
        return self._overshoots[tag, missing]


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        n = tokenizer.n_vocab
        self._tokenizer = tokenizer
        self.ends = sorted(tokenizer.eog_ids)
        self.special_token_ids = [i for i in range(n) if tokenizer.is_control(i) or i in tokenizer.eog_ids]
        self.tokens = list(tokenizer.pieces)
        for i in self.special_token_ids:
            self.tokens[i] = SPECIAL + self.tokens[i]
        if not self.ends:  # it wants one: a token that the model does not have, and cannot draw
            self.ends = [n]
            self.special_token_ids.append(n)
            self.tokens.append(SPECIAL + b"<end>")
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id in self.ends else self.ends[0]
        self.bos_token_id = tokenizer.bos_id
        self.greedy: Any = None

    def __call__(self, data: bytes) -> list[int]:
        """Tokens for forced text, as the model would read it; where those leave something out, any that print it."""
        text = data.decode("utf-8")
        ids = self._tokenizer.encode_on(text)
        if self.greedy is None or b"".join(map(self._tokenizer.piece, ids)) == data:
            return ids
        found: list[int] = self.greedy(text)
        return found


def _build(package: Any, tokenizer: Tokenizer) -> Any:
    tokens = _Tokens(tokenizer)
    wrapper = package.TokenizerWrapper(tokens)
    built = package.LLTokenizer(wrapper, n_vocab=len(tokens.tokens), eos_token=tokens.ends)
    tokens.greedy = built.greedy_tokenize
    return built


def _one_line(error: str) -> str:
    """Its error without the lines that only point, and in our words where it names options that nobody can reach."""
    lines = [line.strip() for line in error.splitlines()]
    text = " ".join(line for line in lines if line.strip("^~ ") and not re.match(r"\d+ \| ", line))
    text = text.replace(" Enable 'coerce_one_of' option to approximate oneOf with anyOf", "; use anyOf")
    return re.sub(r"Unimplemented keys: \[(.*)\]", r"keywords that are not supported: \1; leave them out", text)
