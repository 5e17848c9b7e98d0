"""Vocabularies of the kind `gpt2`: byte-level BPE (Llama 3, Qwen, GPT-2, StarCoder, SmolLM and most others).

Know before you change this room: tokens are written with one visible character per byte (GPT-2's alphabet, below),
so "Ġ" is a space. pretokenizers.py cuts text into words, merges.py cuts words into tokens. Neither sees special
tokens, which base.py cuts out, and no merge and no whole word gives one, so that nothing in a hostile or careless
file can turn a user's text into one.
"""

from __future__ import annotations

import numpy as np

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.merges import NO_TOKEN, Merges
from mixkv.engine.tokenizer.pretokenizers import find_rule, pre_tokenizer
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

    def __init__(self, vocab: Vocabulary) -> None:
        """Raises TokenizerError for missing merges and merges that build unknown tokens; warns (MixkvWarning) where
        the file's pre-tokenizer is unknown."""
        rule = find_rule(vocab.pre)
        super().__init__(vocab, add_bos=rule.add_bos, add_eos=False)
        hidden = np.zeros(self.n_vocab, np.bool_)
        hidden[list(self._special)] = True
        self._merges = Merges(vocab, hidden)
        self._words = pre_tokenizer(rule)
        self._ignore_merges = rule.ignore_merges
        self._cache: dict[str, list[int]] = {}
        self._missing = {b for b in range(256) if self._plain_id(_WRITTEN[b]) is None}

    def _encode_plain(self, text: str, after_special: bool, missing: bytearray) -> list[int]:
        ids: list[int] = []
        cached = self._cache.get
        for word, _ in self._words.pre_tokenize_str(text):
            ids += cached(word) or self._encode_word(word, missing)
        return ids

    def _encode_word(self, word: str, missing: bytearray) -> list[int]:
        raw = word.encode()
        written = b"".join(map(_WRITTEN.__getitem__, raw))
        whole = self._plain_id(written) if self._ignore_merges else None
        ids = self._merges.split(written) if whole is None else [whole]
        if self._missing and self._missing.intersection(raw):
            # They take part in merging, and only those that stand alone afterwards are left out.
            ids, absent = self._without_missing(ids, raw)
            missing += absent
            if absent:
                return ids  # not remembered: next time they are to be counted again
        if len(word) <= CACHE_WORD_CHARS:
            if len(self._cache) >= CACHE_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _without_missing(self, ids: list[int], raw: bytes) -> tuple[list[int], bytes]:
        """The ids without those that stand for no text, and the bytes in their places."""
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
