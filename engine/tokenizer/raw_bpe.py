"""Vocabularies of BPE on text as it is: the kind `gemma4`, and `gpt2` where the pre-tokenizer says so (sarvam-moe ...).

Know before you change this room: tokens are written as SPM writes them, in UTF-8 with U+2581 for a space and `<0x41>`
for a byte, but merges decide and not scores. Such a model merges over whole lines. Lines are never the same, words
are, and remembering those is what makes encoding fast: so a line is cut before each U+2581 that no merge can join to
the character in front of it, which changes no id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mixkv.engine.tokenizer.bpe import BPETokenizer
from mixkv.engine.tokenizer.merges import NO_TOKEN
from mixkv.engine.tokenizer.pretokenizers import PreTokenizerRule
from mixkv.engine.tokenizer.vocab import TokenType, Vocabulary, byte_value, is_byte_text

_SPACE = "\u2581"


class RawBPETokenizer(BPETokenizer):
    """A BPE vocabulary whose tokens are text; characters without a token are encoded byte by byte."""

    def __init__(self, vocab: Vocabulary, rule: PreTokenizerRule) -> None:
        """As BPETokenizer."""
        super().__init__(vocab, rule)
        self._whole_lines = rule.whole_lines
        self._byte_ids = {b: self._plain_id(b"<0x%02X>" % b) for b in range(256)}
        self._joined_words = _joined_words(self._merges.built())

    def _words(self, text: str) -> Iterable[str]:
        return self._joined_words.findall(text.replace(" ", _SPACE))

    def _written(self, word: str) -> bytes:
        return word.encode()

    def _taken_whole(self, word: str) -> bool:
        return self._ignore_merges or (self._whole_lines and word[0] == "\n")

    def _complete(self, ids: list[int], word: str) -> tuple[list[int], bytes]:
        if NO_TOKEN not in ids and self._special.isdisjoint(ids):
            return ids, b""
        complete: list[int] = []
        absent, at = bytearray(), 0
        for token_id in ids:
            if token_id != NO_TOKEN and token_id not in self._special:
                complete.append(token_id)
                at += len(self._tokens[token_id].decode())
                continue
            for byte in word[at].encode():
                byte_id = self._byte_ids[byte]
                if byte_id is None:
                    absent.append(byte)
                else:
                    complete.append(byte_id)
            at += 1
        return complete, bytes(absent)

    def _plain_piece(self, token: bytes, kind: int) -> bytes:
        if is_byte_text(token) and kind in (TokenType.BYTE, TokenType.NORMAL):
            return bytes([byte_value(token)])
        return token.replace(_SPACE.encode(), b" ")


def _joined_words(built: list[bytes]) -> re.Pattern[str]:
    """Finds line ends and words with the spaces in front of them; words that a merge may join are one.

    built: the tokens that merges build.
    """
    text = "\n".join(token.decode("utf-8", "replace") for token in built)
    joining = "".join(map(re.escape, sorted(set(re.findall(f"([^{_SPACE}\n])(?={_SPACE})", text)))))
    word = f"{_SPACE}*[^{_SPACE}\n]+"
    if joining:
        word += f"(?:(?<=[{joining}]){_SPACE}+[^{_SPACE}\n]*)*"
    return re.compile(f"{word}|{_SPACE}+|\n+")
