"""The templates that one model can use: those of its file, the built-in ones, and what a caller brings."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

from mixkv.engine.chat.builtin import PLAIN, builtin_source, builtin_stops, names
from mixkv.engine.chat.reuse import Replies
from mixkv.engine.chat.template import ChatTemplate
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import ConfigError, InputError, MixkvWarning
from mixkv.models.gguf import GGUFFile

KEY = "tokenizer.chat_template"
TOOL_USE = "tool_use"
"""The name under which files keep a template of their own for tools."""
_REMEMBERED = 16
_ENGINE = str(Path(__file__).parents[1])


class ChatTemplates:
    """Finds templates, and keeps those that were used: what was found out about them holds for the next time. `replies`
    are those that were given."""

    def __init__(self, gguf: GGUFFile, tokenizer: Tokenizer) -> None:
        self._gguf, self._tokenizer = gguf, tokenizer
        self.replies = Replies(tokenizer)
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], ChatTemplate] = {}
        self._told = False

    @property
    def of_file(self) -> list[str]:
        """The names of the file's templates; its main one is "default"."""
        main = ["default"] if KEY in self._gguf.metadata else []
        return main + [key.removeprefix(f"{KEY}.") for key in self._gguf.metadata if key.startswith(f"{KEY}.")]

    def choose(self, wanted: str | Path | None, *, tools: bool = False) -> ChatTemplate:
        """wanted: a name (of the file's, or a built-in one), a template's text, or the path of one; None: the file's,
        that for tools where there are some, and plain turns, with one MixkvWarning, where the file has none.

        ConfigError for a name that is not there, InputError for a file that cannot be read.
        """
        if isinstance(wanted, Path):
            return self._template(str(wanted), _read(wanted))
        if wanted is None:
            return self._default(tools)
        if not isinstance(wanted, str):
            raise ConfigError(f"chat_template must be a name, a template's text or a Path, not {type(wanted).__name__}")
        if any(mark in wanted for mark in ("{{", "{%", "{#")):
            return self._template("chat_template", wanted)
        if wanted in self.of_file:
            return self._of_file(wanted)
        if wanted not in names():
            known = ", ".join([*self.of_file, *names()])
            raise ConfigError(f"no chat template is called {wanted[:60]!r}: known are {known}; or give one as text")
        return self._template(wanted, builtin_source(wanted), builtin_stops(wanted, self._tokenizer.control_tokens))

    def _default(self, tools: bool) -> ChatTemplate:
        here = self.of_file
        if tools and TOOL_USE in here:
            return self._of_file(TOOL_USE)
        if here:
            return self._of_file(here[0])
        with self._lock:
            told, self._told = self._told, True
        if not told:
            warn_caller(
                f'{self._gguf.path} has no chat template: chats are plain turns ("User:", "Assistant:"); '
                "chat_template names another"
            )
        return self.choose(PLAIN)

    def _of_file(self, name: str) -> ChatTemplate:
        key = KEY if name == "default" and KEY in self._gguf.metadata else f"{KEY}.{name}"
        return self._template(name, self._gguf.metadata.str(key))

    def _template(self, name: str, source: str, stop: tuple[str, ...] = ()) -> ChatTemplate:
        with self._lock:
            template = self._known.get((name, source))
            if template is None:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                template = self._known[name, source] = ChatTemplate(source, self._tokenizer, name=name, stop=stop)
            return template


def warn_caller(text: str) -> None:
    """A MixkvWarning at the line, outside this package, that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_ENGINE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, MixkvWarning, stacklevel=level)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"the chat template {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"the chat template {path} is not UTF-8 text") from None
