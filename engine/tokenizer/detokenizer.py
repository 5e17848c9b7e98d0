"""Text from tokens as they are generated: a character is printed when its last byte is there, never earlier."""

from __future__ import annotations

import codecs

from mixkv.engine.tokenizer.base import Tokenizer


class StreamDetokenizer:
    """Turns ids into text one at a time. All that `push` and `flush` return, put together, is `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """skip_special: control and unknown tokens print nothing, as in `Tokenizer.decode`."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is unfinished. Raises InputError for bad ids."""
        piece = self._tokenizer.piece(token_id)
        if self._skip_special and self._tokenizer.is_control(token_id):
            return ""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left, with U+FFFD for an unfinished character; afterwards a new text may begin."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
