"""Vocabularies of the kind `gpt2`: byte-level BPE (Llama 3, Qwen, GPT-2, StarCoder, SmolLM and most others).
raw_bpe.py has those that are like them but for how tokens are written.

Know before you change this room: tokens are written with one visible character per byte (GPT-2's alphabet, below),
so "Ġ" is a space. pretokenizers.py cuts text into words, merges.py cuts words into tokens. Neither sees special
tokens, which base.py cuts out, and no merge and no whole word gives one, so that nothing in a hostile or careless
file can turn a user's text into one.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

import numpy as np

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.merges import NO_TOKEN, Merges
from mixkv.engine.tokenizer.pretokenizers import PreTokenizerRule, pre_tokenizer
from mixkv.engine.tokenizer.vocab import Vocabulary

# Words that are remembered with their tokens: a novel has 15,000 different ones in 230,000. About 3 MB when full.
CACHE_WORDS, CACHE_WORD_CHARS = 1 << 14, 64


def _alphabet() -> list[str]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the rest moves up from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(b if b in visible else next(moved)) for b in range(256)]


ALPHABET = _alphabet()
_WRITTEN = [char.encode() for char in ALPHABET]
_BYTE_OF = {char: b for b, char in enumerate(ALPHABET)}


class BPETokenizer(Tokenizer):
    """A byte-level BPE vocabulary."""

    def __init__(self, vocab: Vocabulary, rule: PreTokenizerRule) -> None:
        """rule: how text is cut into words. Raises TokenizerError for missing merges and merges that build unknown
        tokens."""
        super().__init__(vocab, add_bos=rule.add_bos, add_eos=False)
        if rule.needs_bos:
            self.add_bos = self.bos_id is not None
        hidden = np.zeros(self.n_vocab, np.bool_)
        hidden[list(self._special)] = True
        self._merges = Merges(vocab, hidden)
        self._cutter = pre_tokenizer(rule)
        self._ignore_merges = rule.ignore_merges
        self._cache: dict[str, list[int]] = {}
        self._missing = {b for b in range(256) if self._plain_id(_WRITTEN[b]) is None}

    def _encode_plain(self, text: str, after_special: bool, missing: bytearray) -> list[int]:
        ids: list[int] = []
        cached = self._cache.get
        for word in self._words(text):
            ids += cached(word) or self._encode_word(word, missing)
        return ids

    def _words(self, text: str) -> Iterable[str]:
        """What merges do not cross the ends of; put together it is the text."""
        return map(itemgetter(0), self._cutter.pre_tokenize_str(text))

    def _written(self, word: str) -> bytes:
        """The word as the vocabulary writes it."""
        return b"".join(map(_WRITTEN.__getitem__, word.encode()))

    def _taken_whole(self, word: str) -> bool:
        """Whether the word, where it is a token, is taken without merging."""
        return self._ignore_merges

    def _encode_word(self, word: str, missing: bytearray) -> list[int]:
        written = self._written(word)
        whole = self._plain_id(written) if self._taken_whole(word) else None
        ids, absent = ([whole], b"") if whole is not None else self._complete(self._merges.split(written), word)
        if absent:
            missing += absent
            return ids  # not remembered: next time they are to be counted again
        if len(word) <= CACHE_WORD_CHARS:
            if len(self._cache) >= CACHE_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _complete(self, ids: list[int], word: str) -> tuple[list[int], bytes]:
        """What merging made of a word, without those ids that stand for no text, and the bytes in their places."""
        raw = word.encode() if self._missing else b""
        if not self._missing.intersection(raw):
            return ids, b""
        # They take part in merging, and only those that stand alone afterwards are left out.
        kept, absent, at = [], bytearray(), 0
        for token_id in ids:
            if token_id == NO_TOKEN or token_id in self._special:
                absent.append(raw[at])
                at += 1
            else:
                kept.append(token_id)
                at += len(self._tokens[token_id].decode())  # a character of the alphabet for each byte
        return kept, bytes(absent)

    def _plain_id(self, token: bytes) -> int | None:
        """Id of a token that may stand for text; None where there is none."""
        token_id = self._ids.get(token)
        return None if token_id in self._special else token_id

    def _plain_piece(self, token: bytes, kind: int) -> bytes:
        try:
            return bytes([_BYTE_OF[char] for char in token.decode("utf-8")])
        except (KeyError, UnicodeDecodeError):
            return token  # not written in the alphabet: print what stands there
