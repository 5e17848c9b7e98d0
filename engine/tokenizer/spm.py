"""Vocabularies of the kind `llama`: sentencepiece with byte fallback (Llama 2, Mistral, Gemma 1 to 3, Phi-3, ours).

Know before you change this room: sentencepiece does the merging, on a model that spm_model.py writes in memory.
A space is put in front of text that begins or that follows a special or user-defined token, unless the file says
no; that is llama.cpp's reading of the flag and models were measured with it.
"""

from __future__ import annotations

import sentencepiece

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.spm_model import sentencepiece_model
from mixkv.engine.tokenizer.vocab import TokenType, Vocabulary, byte_value
from mixkv.kernels.errors import TokenizerError

_SPACE = "\u2581".encode()  # how pieces write a space


class SPMTokenizer(Tokenizer):
    """A sentencepiece vocabulary; merges by score, unknown characters byte by byte, bytes without a token as the
    unknown token, where there is one."""

    def __init__(self, vocab: Vocabulary) -> None:
        """Raises TokenizerError for missing scores and byte tokens that name no byte."""
        super().__init__(vocab, add_bos=True, add_eos=False)
        self.add_space_prefix = vocab.add_space_prefix is not False
        unknown = vocab.types.find(TokenType.UNKNOWN)
        self._fallback = unknown if unknown >= 0 else None
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(sentencepiece_model(vocab))
        except RuntimeError as error:
            raise TokenizerError(
                f"sentencepiece rejects the vocabulary ({str(error).strip()}); convert the model again"
            ) from None

    def _encode_plain(self, text: str, after_special: bool, missing: bytearray) -> list[int]:
        spaced = " " + text if self.add_space_prefix and after_special else text
        ids: list[int] = self._processor.encode(spaced, out_type=int)
        if max(ids, default=0) < self.n_vocab:
            return ids
        if self._fallback is not None:
            return [i if i < self.n_vocab else self._fallback for i in ids]
        missing += bytes(byte_value(self._processor.IdToPiece(i)) for i in ids if i >= self.n_vocab)
        return [i for i in ids if i < self.n_vocab]

    def _plain_piece(self, token: bytes, kind: int) -> bytes:
        if kind == TokenType.BYTE:
            return bytes([byte_value(token)])
        return token.replace(_SPACE, b" ")
