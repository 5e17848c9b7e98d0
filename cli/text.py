"""The prompt, from flags, files and pipes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mixkv.cli.options import PromptFlags
from mixkv.kernels.errors import ConfigError, InputError

STDIN = "-"
"""The name of a file that is standard input."""
_ESCAPE = re.compile(rb"\\(?:([nrt'\"\\])|x([0-9a-fA-F]{2}))")
_MEANING = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def unescape(text: str) -> str:
    r"""`text` with \n \r \t \' \" \\ and \xHH (a byte of UTF-8) read as characters; other backslashes stay."""

    def character(match: re.Match[bytes]) -> bytes:
        if match[2] is not None:
            return bytes([int(match[2], 16)])
        return _MEANING.get(match[1], match[1])

    return _ESCAPE.sub(character, text.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


def read_prompt(flags: PromptFlags) -> str | None:
    """System prompt, text from stdin, and -p or -f, joined in this order; None if there is no prompt.

    stdin is read where `-f -` asks for it, and where there is neither -p nor -f: a `while read` loop around a command
    must not lose its input to it. ConfigError for both -p and a file, InputError for bytes that are not UTF-8, OSError
    for a file that cannot be read.
    """
    asked = flags.file == STDIN
    own = own_prompt(flags)
    piped = _piped() if asked or (own is None and not sys.stdin.isatty()) else None
    if not asked and not piped and own is None:
        return None
    return with_system(flags, "\n".join(part for part in (piped, own) if part))


def own_prompt(flags: PromptFlags) -> str | None:
    """The text of -p or of the file of -f; None if there is neither."""
    if flags.file is not None and flags.file != STDIN:
        if flags.prompt is not None:
            raise ConfigError("-p and -f both give the prompt: leave one out (-f - puts piped text before that of -p)")
        return _decoded(Path(flags.file).read_bytes(), flags.file)
    if flags.prompt is not None and flags.escape:
        return unescape(flags.prompt)
    return flags.prompt


def with_system(flags: PromptFlags, text: str) -> str:
    """`text` after the system prompt, an empty line between them."""
    system = system_prompt(flags)
    return f"{system}\n\n{text}" if system else text


def system_prompt(flags: PromptFlags) -> str:
    """The text of -sys; "" where there is none."""
    system = flags.system or ""
    return unescape(system) if flags.escape else system


def _piped() -> str:
    """What stdin holds, to its end."""
    return _decoded(sys.stdin.buffer.read(), "the piped text")


def _decoded(data: bytes, where: str) -> str:
    """UTF-8 text; the line end that closes a file is not part of the prompt, as in llama-cli."""
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
