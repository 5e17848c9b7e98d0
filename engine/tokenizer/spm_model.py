"""Writes the sentencepiece model that an SPM vocabulary stands for, in sentencepiece's own file format.

Know before you change this room: the format is a protocol buffer (sentencepiece_model.proto); we write its few
fields by hand, because sentencepiece's Python classes for it need the protobuf package. Messages may end with any
number of fields in any order, so what is not written here keeps sentencepiece's default. Gemma's vocabulary has
262,000 pieces and every start of the program writes them, so little is done for each piece.

Normalisation is switched off but for turning spaces into U+2581: spaces in front are the tokenizer's business.
"""

from __future__ import annotations

import numpy as np

from mixkv.engine.tokenizer.vocab import TokenType, Vocabulary, byte_value, is_byte_text, text_of
from mixkv.kernels.errors import TokenizerError

_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types
# The tags of a piece: a message or text in field 1, the score in field 2, the type in field 3.
_BYTES_1, _FIXED32_2, _VARINT_3 = 1 << 3 | _BYTES, 2 << 3 | _FIXED32, 3 << 3 | _VARINT
_MODEL_TYPE_BPE = 2
# Names for pieces that must never match text; a private-use character keeps them apart from real tokens.
_HIDDEN = "\U0010fff0".encode() + b"%d"


def sentencepiece_model(vocab: Vocabulary) -> bytes:
    """The model, serialized. Piece i is token i; pieces from n_vocab on are what sentencepiece demands and the file
    lacks (bytes, one unknown piece) and mean "this text has no token".

    Raises TokenizerError where scores are missing or a byte token does not name a byte.
    """
    if vocab.scores is None:
        raise TokenizerError(
            "tokenizer.ggml.scores is missing, and a vocabulary of the kind 'llama' cannot be used without it; "
            "convert the model again"
        )
    pieces: list[bytes] = []
    bytes_seen: set[int] = set()
    unk_seen = False
    scores = np.asarray(vocab.scores, "<f4").tobytes()
    all_text = text_of(b"\0".join(vocab.tokens)) is not None  # most often, and then no token needs to be asked
    for i, (token, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
        score = scores[4 * i : 4 * i + 4]
        if kind == TokenType.NORMAL and all_text and token and not token.startswith(b"<"):
            pieces.append(_piece(token, score, kind))
            continue
        name = _HIDDEN % i
        written = TokenType.CONTROL
        if kind == TokenType.BYTE:
            value = _checked_byte(token, i)
            if value in bytes_seen:
                raise TokenizerError(f"the vocabulary holds two tokens for byte 0x{value:02X}; convert it again")
            bytes_seen.add(value)
            name, written = _byte_name(value), TokenType.BYTE
        elif kind == TokenType.UNKNOWN:
            written = TokenType.CONTROL if unk_seen else TokenType.UNKNOWN  # sentencepiece allows one
            unk_seen = True
        elif kind != TokenType.CONTROL and not is_byte_text(token) and text_of(token) is not None:
            # User-defined tokens are cut out beforehand; what is left of them merges like any other, by score.
            name, written = token, TokenType.UNUSED if kind == TokenType.UNUSED else TokenType.NORMAL
        pieces.append(_piece(name, score, written))
    pieces += [_piece(_byte_name(b), bytes(4), TokenType.BYTE) for b in range(256) if b not in bytes_seen]
    if not unk_seen:
        pieces.append(_piece(_HIDDEN % len(vocab.tokens), bytes(4), TokenType.UNKNOWN))
    return b"".join(pieces) + _trainer_spec() + _normalizer_spec()


def _checked_byte(token: bytes, token_id: int) -> int:
    if not is_byte_text(token):
        raise TokenizerError(
            f"token {token_id} is marked as a byte but reads {token[:20]!r} instead of '<0x00>' to '<0xFF>'; "
            "convert the model again"
        )
    return byte_value(token)


def _byte_name(value: int) -> bytes:
    return b"<0x%02X>" % value


def _piece(text: bytes, score: bytes, kind: int) -> bytes:
    """ModelProto.pieces: text, score (float32, little-endian), type."""
    size = len(text)
    if size < 119:  # both lengths are one byte
        return b"%c%c%c%c%b%c%b%c%c" % (_BYTES_1, size + 9, _BYTES_1, size, text, _FIXED32_2, score, _VARINT_3, kind)
    return _message(1, _message(1, text) + _tag(2, _FIXED32) + score + _number(3, kind))


def _trainer_spec() -> bytes:
    model_type, byte_fallback = _number(3, _MODEL_TYPE_BPE), _number(35, 1)
    return _message(2, model_type + byte_fallback)


def _normalizer_spec() -> bytes:
    dummy_prefix, extra_whitespace, escape = _number(3, 0), _number(4, 0), _number(5, 1)
    return _message(3, _message(1, b"identity") + dummy_prefix + extra_whitespace + escape)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
