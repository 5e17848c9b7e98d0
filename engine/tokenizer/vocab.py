"""The vocabulary of a model file: what each id is, and which ids begin, end and cut a text.

Know before you change this room: everything here comes from a file that a stranger made, so it is checked here
and nowhere else; the tokenizers rely on it. Token texts stay bytes, because a file may hold texts that are not
UTF-8; such a token can be printed but never be found in a text. Files of 128k tokens are common and every start of
the program waits for them, so no loop here runs over all tokens in Python unless something is wrong with them.
special.py knows which tokens begin, end and steer a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.tokenizer.special import DEFAULT_IDS, read_special_ids, steering_ids
from mixkv.kernels.errors import TokenizerError
from mixkv.models.gguf import GGUFFile


class TokenType(IntEnum):
    """What a token is, with the numbers that files use (`tokenizer.ggml.token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and the rules around them. Built by `make_vocabulary` or `read_vocabulary`, which check it."""

    model: str  # "llama" (SPM), "gpt2" (BPE) or "gemma4" (BPE on text as it is)
    tokens: list[bytes]  # text of each id as the file writes it; b"" where the file has none
    types: bytes  # TokenType of each id; 0 for a number that is none
    ids: dict[bytes, int]  # text of a token -> its id; no b""
    scores: np.ndarray | None  # (n_vocab,) float32; SPM merges the pair with the highest score first
    merges: list[bytes] | None  # b"left right", most important first; BPE only
    pre: str | None  # name of the pre-tokenizer; BPE only
    bos_id: int | None
    eos_id: int | None
    eog_ids: frozenset[int]  # any of these ends a generation
    add_bos: bool | None  # None: what the tokenizer model does by default
    add_eos: bool | None
    add_space_prefix: bool | None
    strips: bool = False  # whether special tokens take the white space behind them away, as Phi-3's do


def make_vocabulary(
    model: str,
    tokens: list[bytes],
    *,
    types: NDArray[np.integer] | None = None,
    scores: np.ndarray | None = None,
    merges: list[bytes] | None = None,
    pre: str | None = None,
    special: Mapping[str, int] | None = None,
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    add_space_prefix: bool | None = None,
    strips: bool = False,
) -> Vocabulary:
    """Check and complete what a file says. special: what a token is for (a key of special.KEYS) -> its id.

    Raises TokenizerError for duplicate tokens, lists that are too short, scores that are not numbers, and special
    ids outside the vocabulary.
    """
    n_vocab = len(tokens)
    if n_vocab == 0:
        raise TokenizerError("the vocabulary is empty (tokenizer.ggml.tokens); download or convert the model again")
    ids = _index(tokens)
    for name, values in (("token_type", types), ("scores", scores)):
        if values is not None and len(values) < n_vocab:
            raise TokenizerError(
                f"tokenizer.ggml.{name} has {len(values)} entries for {n_vocab} tokens; the file is damaged: "
                "download or convert it again"
            )
    if scores is not None and np.isnan(scores[:n_vocab]).any():
        raise TokenizerError("tokenizer.ggml.scores holds values that are not numbers (NaN); convert the model again")
    special = special or {}
    for role, special_id in special.items():
        if not 0 <= special_id < n_vocab:
            raise TokenizerError(
                f"the {role} token has id {special_id}, but the vocabulary has {n_vocab} tokens; choose one of them"
            )
    if types is None:
        known = bytearray([TokenType.NORMAL]) * n_vocab
        for role, kind in (("bos", TokenType.CONTROL), ("eos", TokenType.CONTROL), ("unknown", TokenType.UNKNOWN)):
            # The default of BPE is the id of a comma in GPT-2's vocabulary, which stays text.
            if role in special and (model != "gpt2" or special[role] != DEFAULT_IDS["gpt2"].get(role)):
                known[special[role]] = kind
    else:
        valid = np.isin(types[:n_vocab], list(TokenType))
        known = bytearray(np.where(valid, types[:n_vocab], 0).astype(np.uint8).tobytes())
    if model != "gpt2":
        _mark_bytes(ids, known)
    user_defined = frozenset(np.flatnonzero(np.frombuffer(known, np.uint8) == TokenType.USER_DEFINED).tolist())
    control, ending = steering_ids(ids, special, user_defined)
    for token_id in control:
        known[token_id] = TokenType.CONTROL
    return Vocabulary(
        model=model,
        tokens=tokens,
        types=bytes(known),
        ids=ids,
        scores=None if scores is None else np.asarray(scores[:n_vocab], dtype=np.float32),
        merges=merges,
        pre="gemma4" if model == "gemma4" else pre,
        bos_id=special.get("bos"),
        eos_id=special.get("eos"),
        eog_ids=ending,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=add_space_prefix,
        strips=strips,
    )


def read_vocabulary(gguf: GGUFFile) -> Vocabulary:
    """The vocabulary in a model file's metadata. Raises GGUFError for missing or mistyped keys, TokenizerError for
    values that contradict each other; a special id outside the vocabulary is a MixkvWarning."""
    meta, key = gguf.metadata, "tokenizer.ggml.{}".format

    def flag(name: str) -> bool | None:
        return gguf.bool(key(name)) if key(name) in meta else None

    model, tokens = gguf.str(key("model")), gguf.strings(key("tokens"))
    pre = gguf.str(key("pre")) if key("pre") in meta else None
    return make_vocabulary(
        model,
        tokens,
        types=gguf.array(key("token_type"), np.int32, np.uint32) if key("token_type") in meta else None,
        scores=gguf.array(key("scores"), np.float32, np.int32) if key("scores") in meta else None,
        merges=gguf.strings(key("merges")) if key("merges") in meta else None,
        pre=pre,
        special=read_special_ids(gguf, model, pre, len(tokens)) if tokens else None,
        add_bos=flag("add_bos_token"),
        add_eos=flag("add_eos_token"),
        add_space_prefix=flag("add_space_prefix"),
        # Phi-4, of the same architecture, has a vocabulary of its own and does not.
        strips=model == "llama" and gguf.str("general.architecture") == "phi3",
    )


def is_byte_text(token: bytes) -> bool:
    """Whether this is how SPM vocabularies write a byte, as in `<0x0A>`."""
    return len(token) == 6 and token.startswith(b"<0x") and token.endswith(b">") and _is_hex(token[3:5])


def byte_value(token: bytes | str) -> int:
    """The byte that a token with such a text stands for."""
    return int(token[3:5], 16)


def _is_hex(digits: bytes) -> bool:
    return all(d in b"0123456789abcdefABCDEF" for d in digits)


def text_of(token: bytes) -> str | None:
    """A token as text; None for one that is empty or not UTF-8 and so never stands in a text."""
    try:
        return token.decode("utf-8") or None
    except UnicodeDecodeError:
        return None


def _index(tokens: list[bytes]) -> dict[bytes, int]:
    """Text of a token -> its id. Raises TokenizerError for a text that stands there twice."""
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    ids.pop(b"", None)
    if len(ids) + tokens.count(b"") == len(tokens):
        return ids
    twice = next(i for i, token in enumerate(tokens) if token and ids[token] != i)
    raise TokenizerError(
        f"the vocabulary holds the token {tokens[twice][:60]!r} twice (ids {twice} and {ids[tokens[twice]]}); convert "
        "the model again"
    )


def _mark_bytes(ids: dict[bytes, int], types: bytearray) -> None:
    """Make `<0x41>` and its like bytes, in place: some files mark them as ordinary tokens."""
    for digits in product(b"0123456789abcdefABCDEF", repeat=2):
        i = ids.get(b"<0x%c%c>" % digits)
        if i is not None and types[i] in (TokenType.NORMAL, TokenType.UNUSED):
            types[i] = TokenType.BYTE
