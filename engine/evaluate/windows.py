"""A text file as windows of token ids, read and tokenized a piece at a time.

Memory does not grow with the text: at most `PIECE_CHARS` characters and one window of ids are held. A piece ends
where no tokenizer looks across, so the ids are those of the whole text: after a single line end between two visible
characters or, in a text without line ends, before a single space. (A text with neither is cut anywhere.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import InputError

PIECE_CHARS = 1 << 16
_LINE_END = re.compile(r"\S\n(?=\S)")
_SPACE = re.compile(r"\S(?= \S)")
Ids = NDArray[np.int32]


def text_pieces(path: Path) -> Iterator[str]:
    """The file's text in order, in pieces that can be tokenized one by one. InputError if it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            held = ""
            while block := file.read(PIECE_CHARS):
                held += block
                cut = _last_cut(held)
                if cut:
                    yield held[:cut]
                    held = held[cut:]
            if held:
                yield held
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}: {error.reason}); convert it first") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot read the text: {reason}; check the path") from None


def _last_cut(text: str) -> int:
    """Where to end a piece; 0 to read on first."""
    for pattern in (_LINE_END, _SPACE):
        cut = 0
        for match in pattern.finditer(text):
            cut = match.end()
        if cut:
            return cut
    return len(text) if len(text) >= 4 * PIECE_CHARS else 0


def token_pieces(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Ids of the text, piece by piece, without BOS."""
    pieces = text_pieces(path)
    for piece in islice(pieces, 1):
        yield tokenizer.encode(piece, add_special=False)
    for piece in pieces:
        yield encode_further(tokenizer, piece)


def encode_further(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on where another ended.

    Tokenizers may put a space in front of what they take for a beginning, so the text is tokenized behind a line
    end, whose ids are then taken off again.
    """
    lead = tokenizer.encode("\n", add_special=False)
    ids = tokenizer.encode("\n" + text, add_special=False)
    return ids[len(lead) :] if ids[: len(lead)] == lead else tokenizer.encode(text, add_special=False)


@dataclass(frozen=True)
class TextWindows:
    """Consecutive windows of n_ctx tokens of a file; the rest that fills no window is left out, as llama.cpp does.

    The text stands behind a BOS where the model wants one, and BOS replaces the first token of each later window.
    count: windows there are; digest: of all their ids, to know the same text again.
    """

    path: Path
    tokenizer: Tokenizer
    n_ctx: int
    count: int
    digest: str

    @classmethod
    def of(cls, path: Path, tokenizer: Tokenizer, n_ctx: int, most: int | None = None) -> TextWindows:
        """Measure the text: one pass of the tokenizer. most: windows wanted at most.

        InputError for an unreadable text and one shorter than a window (it says both lengths).
        """
        digest, count = hashlib.blake2b(digest_size=16), 0
        for window in islice(_windows(path, tokenizer, n_ctx), most):
            digest.update(window.tobytes())
            count += 1
        if count == 0:
            n_tokens = sum(len(ids) for ids in _with_bos(path, tokenizer))
            raise InputError(
                f"{path}: the text has {n_tokens} tokens, fewer than one window of {n_ctx}: "
                "give a longer text or a smaller n_ctx"
            )
        return cls(path, tokenizer, n_ctx, count, digest.hexdigest())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Ids]:
        """Windows (n_ctx,) int32, in order."""
        return islice(_windows(self.path, self.tokenizer, self.n_ctx), self.count)


def _windows(path: Path, tokenizer: Tokenizer, n_ctx: int) -> Iterator[Ids]:
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    held: list[int] = []
    for ids in _with_bos(path, tokenizer):
        held += ids
        start = 0
        while len(held) - start >= n_ctx:
            window = np.array(held[start : start + n_ctx], np.int32)
            if bos is not None:
                window[0] = bos
            start += n_ctx
            yield window
        del held[:start]


def _with_bos(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        yield [tokenizer.bos_id]
    yield from token_pieces(path, tokenizer)
