"""Names of models on the hub: USER/REPO, USER/REPO:QUANT, USER/REPO/FILE.gguf, with or without `hf://` before them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mixkv.kernels.errors import ConfigError

SCHEME = "hf://"
WORD = r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*"
"""What a user's or a repository's name looks like: dots and dashes stand alone, between other characters."""
REPO = re.compile(f"{WORD}/{WORD}")
QUANT = re.compile(r"[A-Za-z0-9_.-]+")
MAX_NAME = 255
"""Bytes of a file's name, as file systems have it."""


@dataclass(frozen=True)
class Reference:
    """A model on the hub. quant: which quantization; file: which file instead. Neither: the usual choice."""

    repo: str
    quant: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ConfigError for what cannot be a model's name."""
        user, _, rest = text.removeprefix(SCHEME).partition("/")
        name, slash, file = rest.partition("/")
        name, colon, quant = name.partition(":")
        repo = f"{user}/{name}"
        wrong = (
            (not REPO.fullmatch(repo) or len(repo) > MAX_NAME - len("models--"))
            or (colon and not QUANT.fullmatch(quant))
            or (slash and (colon or not is_safe(file) or not is_gguf(file)))
        )
        if wrong:
            raise ConfigError(
                f"{text!r} is no model of the hub: write USER/REPO, USER/REPO:QUANT or USER/REPO/FILE.gguf"
            )
        return cls(repo, quant if quant and quant.lower() != "latest" else None, file or None)

    def __str__(self) -> str:
        if self.file is not None:
            return f"{self.repo}/{self.file}"
        return self.repo if self.quant is None else f"{self.repo}:{self.quant}"


def is_gguf(name: str) -> bool:
    """Whether a file's name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def is_safe(name: str) -> bool:
    """Whether a name with slashes stays within the folder that it is put into, on any file system."""
    parts = name.split("/")
    return (
        name.isprintable()  # neither control characters nor halves of characters, which no path can hold
        and "\\" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) <= MAX_NAME for part in parts)
    )
