"""Writes the sentencepiece model that an SPM vocabulary stands for, in sentencepiece's own file format.

Know before you change this room: the format is a protocol buffer (sentencepiece_model.proto); we write its few
fields by hand, because sentencepiece's Python classes for it need the protobuf package. Messages may end with any
number of fields in any order, so what is not written here keeps sentencepiece's default.

Normalisation is switched off but for turning spaces into U+2581: spaces in front are the tokenizer's business.
"""

from __future__ import annotations

from struct import Struct

from mixkv.engine.tokenizer.vocab import TokenType, Vocabulary, byte_value, is_byte_text, text_of
from mixkv.kernels.errors import TokenizerError

_FLOAT = Struct("<f")
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types
_MODEL_TYPE_BPE = 2
# Names for pieces that must never match text; a private-use character keeps them apart from real tokens.
_HIDDEN = "\U0010fff0{}"


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
    for i, (token, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
        name = _HIDDEN.format(i)
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
        elif kind != TokenType.CONTROL and not is_byte_text(token) and (text := text_of(token)) is not None:
            # User-defined tokens are cut out beforehand; what is left of them merges like any other, by score.
            name, written = text, TokenType.UNUSED if kind == TokenType.UNUSED else TokenType.NORMAL
        pieces.append(_piece(name, float(vocab.scores[i]), written))
    pieces += [_piece(_byte_name(b), 0.0, TokenType.BYTE) for b in range(256) if b not in bytes_seen]
    if not unk_seen:
        pieces.append(_piece(_HIDDEN.format("unknown"), 0.0, TokenType.UNKNOWN))
    return b"".join(pieces) + _trainer_spec() + _normalizer_spec()


def _checked_byte(token: bytes, token_id: int) -> int:
    if not is_byte_text(token):
        raise TokenizerError(
            f"token {token_id} is marked as a byte but reads {token[:20]!r} instead of '<0x00>' to '<0xFF>'; "
            "convert the model again"
        )
    return byte_value(token)


def _byte_name(value: int) -> str:
    return f"<0x{value:02X}>"


def _piece(text: str, score: float, kind: TokenType) -> bytes:
    """ModelProto.pieces: text, score, type."""
    score_field = _tag(2, _FIXED32) + _FLOAT.pack(score)
    return _message(1, _message(1, text.encode()) + score_field + _number(3, kind))


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
