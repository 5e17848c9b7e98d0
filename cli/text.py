"""The prompt, from flags, files and pipes."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from pathlib import Path

from mixkv.cli.options import PromptFlags
from mixkv.cli.terminal import Terminal
from mixkv.kernels.errors import ConfigError, InputError

PATIENCE_SECONDS = 2.0
_ESCAPE = re.compile(rb"\\(?:([nrt'\"\\])|x([0-9a-fA-F]{2}))")
_MEANING = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def unescape(text: str) -> str:
    r"""`text` with \n \r \t \' \" \\ and \xHH (a byte of UTF-8) read as characters; other backslashes stay."""

    def character(match: re.Match[bytes]) -> bytes:
        if match[2] is not None:
            return bytes([int(match[2], 16)])
        return _MEANING.get(match[1], match[1])

    return _ESCAPE.sub(character, text.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


def read_prompt(flags: PromptFlags, terminal: Terminal) -> str | None:
    """System prompt, piped text and -p or -f, joined in this order; None if none of the last two was given.

    ConfigError for both -p and -f, InputError for bytes that are not UTF-8, OSError for a file that cannot be read.
    """
    own = own_prompt(flags)
    piped = _piped(terminal, patient=own is None)
    parts = [part for part in (piped, own) if part]
    if own is None and piped is None:
        return None
    return with_system(flags, "\n".join(parts))


def own_prompt(flags: PromptFlags) -> str | None:
    """The text of -p or -f; None if there is neither."""
    if flags.prompt is not None and flags.file is not None:
        raise ConfigError("-p and -f both give the prompt: leave one out (piped text goes before either)")
    if flags.file is not None:
        return _decoded(Path(flags.file).read_bytes(), flags.file)
    if flags.prompt is not None and flags.escape:
        return unescape(flags.prompt)
    return flags.prompt


def with_system(flags: PromptFlags, text: str) -> str:
    """`text` after the system prompt, an empty line between them."""
    if not flags.system or not text:
        return text
    return f"{unescape(flags.system) if flags.escape else flags.system}\n\n{text}"


def _piped(terminal: Terminal, *, patient: bool) -> str | None:
    """What stdin holds; None if it is a terminal. patient: there is no other prompt, so waiting surprises nobody."""
    if sys.stdin.isatty():
        return None
    source = sys.stdin.buffer
    kind = os.fstat(source.fileno()).st_mode
    if (
        not patient
        and (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind))
        and not select.select([source], [], [], PATIENCE_SECONDS)[0]
    ):
        terminal.note("waiting for piped text that goes before the prompt; without it, run with < /dev/null")
    return _decoded(source.read(), "the piped text")


def _decoded(data: bytes, where: str) -> str:
    """UTF-8 text; the line end that closes a file is not part of the prompt, as in llama-cli."""
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
