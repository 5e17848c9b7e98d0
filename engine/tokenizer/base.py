"""What all tokenizers share: special tokens are cut out first, the rest is left to the model's own method.

Know before you change this room: text from a user must never become a control token unless the caller asks
(`parse_special`); user-defined tokens are ordinary text that is always cut out whole. The order in which tokens
are cut out (longest first over the whole text, not leftmost first) decides overlaps and follows llama.cpp.
Decoding is plain concatenation of bytes, so texts may be decoded in pieces and put together again.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from mixkv.engine.tokenizer.vocab import TokenType, Vocabulary, text_of
from mixkv.kernels.errors import InputError, MixkvWarning

_SPECIAL_TYPES = [TokenType.CONTROL, TokenType.UNKNOWN]
_CUT_TYPES = [*_SPECIAL_TYPES, TokenType.USER_DEFINED]
_WHITE_SPACE = " \t\n\v\f\r"
_STRIPS_NOTHING = (b"<unk>", b"<s>", b"<|endoftext|>")  # the exceptions among tokens that take white space away


class Tokenizer(ABC):
    """Text <-> ids for one vocabulary. Subclasses encode text without special tokens and say what a token prints.

    `n_vocab`, `bos_id`, `eos_id` (None where the model has none), `eog_ids` (any of them ends a generation).
    """

    def __init__(self, vocab: Vocabulary, *, add_bos: bool, add_eos: bool) -> None:
        """`add_bos`, `add_eos`: the tokenizer model's defaults, for a file that does not say."""
        # Not the vocabulary itself, whose merges are large and of no use once the subclass has read them.
        self._tokens, self._types, self._ids = vocab.tokens, vocab.types, vocab.ids
        self.n_vocab = len(vocab.tokens)
        self.bos_id, self.eos_id, self.eog_ids = vocab.bos_id, vocab.eos_id, vocab.eog_ids
        self.add_bos = (add_bos if vocab.add_bos is None else vocab.add_bos) and vocab.bos_id is not None
        self.add_eos = (add_eos if vocab.add_eos is None else vocab.add_eos) and vocab.eos_id is not None
        types = np.frombuffer(vocab.types, np.uint8)
        self._special = frozenset(np.flatnonzero(np.isin(types, _SPECIAL_TYPES)).tolist())
        self._strips: frozenset[int] = frozenset()
        if vocab.strips:
            keep = {vocab.ids.get(text) for text in _STRIPS_NOTHING}
            self._strips = frozenset(np.flatnonzero(np.isin(types, _CUT_TYPES)).tolist()) - keep
        self._user_cuts = self._cuts(np.flatnonzero(types == TokenType.USER_DEFINED).tolist())

    @abstractmethod
    def _encode_plain(self, text: str, after_special: bool, missing: bytearray) -> list[int]:
        """Ids of non-empty text that holds no special token; `after_special`: nothing or one stands before it.

        Bytes that the vocabulary has no token for are left out and appended to `missing`.
        """

    @abstractmethod
    def _plain_piece(self, token: bytes, kind: int) -> bytes:
        """The bytes that a token of the vocabulary prints, for tokens that are neither special nor user-defined."""

    def encode(
        self, text: str, *, add_special: bool = True, add_eos: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Ids of a text.

        add_special: put BOS in front and EOS behind where the model wants them; add_eos=False: no EOS, for a text that
        is to be continued.
        parse_special: control tokens written out in the text (`<|im_end|>`) become those tokens; otherwise they
        are text like any other.
        Lone surrogates, which no UTF-8 text can hold, count as U+FFFD. What the vocabulary has no token for is left
        out, with one MixkvWarning for the text.
        """
        ids = self.encode_parts(self.split(text, parse_special=parse_special))
        if add_special and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and add_eos and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of a text in parts, as `split` gives them: ids stay as they are, each text is encoded by itself."""
        missing = bytearray()
        ids = self._encode_parts(parts, True, missing)
        if missing:
            count = "a byte" if len(missing) == 1 else f"{len(missing)} bytes"
            text = next(part for part in parts if isinstance(part, str))
            warnings.warn(
                f"the vocabulary has no token for {count} of the text (the first is 0x{missing[0]:02X}, in "
                f"{text[:40]!r}): left out",
                MixkvWarning,
                stacklevel=3,
            )
        return ids

    def encode_on(self, text: str) -> list[int]:
        """Ids of text behind other text: no BOS, no space put in front, nothing in it is a control token. What the
        vocabulary has no token for is left out."""
        return self._encode_parts(self.split(text, parse_special=False), False, bytearray())

    def _encode_parts(self, parts: Sequence[str | int], begins: bool, missing: bytearray) -> list[int]:
        """begins: the first part begins a text, and one behind a special token does so again (`after_special`)."""
        ids: list[int] = []
        after_special = begins
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_plain(part, after_special, missing)
            after_special = begins and isinstance(part, int)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD.

        skip_special: control and unknown tokens print nothing. A space that `encode` put in front stays, so that
        decode(a + b) is decode(a) + decode(b) wherever no character is torn. Raises InputError for unknown ids.
        """
        data = b"".join(self.piece(i) for i in ids if not (skip_special and i in self._special))
        return data.decode("utf-8", "replace")

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token prints, which may be part of a character. Raises InputError for unknown ids."""
        if not 0 <= token_id < self.n_vocab:
            raise InputError(f"token id {token_id} is outside the vocabulary (0 .. {self.n_vocab - 1})")
        token, kind = self._tokens[token_id], self._types[token_id]
        if token_id in self._special or kind == TokenType.USER_DEFINED:
            return token
        return self._plain_piece(token, kind)

    @cached_property
    def pieces(self) -> list[bytes]:
        """`piece` of every id, computed at the first use."""
        return [self.piece(i) for i in range(self.n_vocab)]

    def is_control(self, token_id: int) -> bool:
        """Whether the token steers the model and prints nothing (unknown tokens count as such)."""
        return token_id in self._special

    def token_to_id(self, text: str) -> int | None:
        """Id of the token with this text, written as the vocabulary writes it; None where there is none."""
        return self._ids.get(text.encode("utf-8", "surrogatepass"))

    @cached_property
    def _all_cuts(self) -> list[tuple[str, int]]:
        return self._cuts([*self._special, *(i for _, i in self._user_cuts)])

    def _cuts(self, ids: Iterable[int]) -> list[tuple[str, int]]:
        """Texts to cut out with their ids, in the order in which they are looked for."""
        cuts = [(text, i) for i in ids if (text := text_of(self._tokens[i])) is not None]
        return sorted(cuts, key=lambda cut: (-len(self._tokens[cut[1]]), cut[1]))

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """The texts that become control tokens where `parse_special` is set, longest first, and their ids."""
        return {text: i for text, i in self._all_cuts if i in self._special}

    def split(self, text: str, *, parse_special: bool) -> list[str | int]:
        """The text in order, as stretches of plain text (never empty, never two in a row) and ids of the tokens that
        are cut out: user-defined ones always, control tokens for parse_special. Lone surrogates become U+FFFD."""
        text = _without_surrogates(text)
        parts: list[str | int] = [text] if text else []
        present = set(text)  # most texts hold no "<": that skips nearly all special tokens
        for wanted, token_id in self._all_cuts if parse_special else self._user_cuts:
            if wanted[0] in present and wanted in text:
                strip = _WHITE_SPACE if token_id in self._strips else None
                parts = [piece for part in parts for piece in _cut(part, wanted, token_id, strip)]
        return parts


def _cut(part: str | int, wanted: str, token_id: int, strip: str | None) -> list[str | int]:
    """A part with a token cut out; `strip`: what is taken away behind the token."""
    if isinstance(part, int):
        return [part]
    out: list[str | int] = []
    for i, stretch in enumerate(part.split(wanted)):
        if i:
            out.append(token_id)
            stretch = stretch.lstrip(strip) if strip else stretch
        out += [stretch] if stretch else []
    return out


def _without_surrogates(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
