"""What a line that begins with a slash does in a chat.

Know before you change this room: a command that goes wrong is one line, and changes nothing. /clear and /load put what
was said aside, and /undo brings it back until the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mixkv.cli.chat_files import Json, edited, load_conversation, save_conversation
from mixkv.cli.chat_options import REASONING
from mixkv.cli.chat_session import Session
from mixkv.cli.chat_tools import load_tools
from mixkv.kernels.errors import InputError

LEAVE = ("exit", "quit", "bye")
HELP = """\
/help               this
/exit               leave, as Ctrl-D does
/undo               take back the last turn; after /clear and /load: bring back what was said before
/regenerate         another reply to the last turn
/edit               change the last message in $EDITOR, and ask again; with none: write the first
/clear              forget what was said; the system prompt stays
/system [TEXT]      show or set the system prompt; off: none
/save FILE          write the conversation as JSON
/load FILE          go on from such a file
/think              show the last thought
/reasoning MODE     whether to think first: on, off, auto
/tools [FILE.py]    offer the functions of a Python file to the model; off: none
/stats              speed, cache and context
A line that ends in \\ goes on in the next one; so does all between two lines of \"\"\".
Ctrl-C stops an answer."""


class Commands:
    """Commands on a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._aside: list[Json] | None = None
        self._file: Path | None = None
        self._known: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._tell(HELP), "undo": self._undo, "regenerate": self._regenerate, "edit": self._edit,
            "clear": self._clear, "system": self._system, "save": self._save, "load": self._load, "think": self._think,
            "reasoning": self._reasoning, "tools": self._tools, "stats": self._stats,
        }  # fmt: skip
        self._known["?"] = self._known["help"]

    def run(self, turn: str) -> bool:
        """Do what the turn asks for; False if it is no command. MixkvError if it cannot be done."""
        found = re.fullmatch(r"/([a-z?]+)(?:[ \t]+(.*))?", turn.rstrip(), re.DOTALL)
        if found is None:
            return False
        command = self._known.get(found[1])
        if command is None:
            raise InputError(f"there is no command /{found[1]}: /help lists them, a blank before it sends it as text")
        command((found[2] or "").strip())
        return True

    def said(self) -> None:
        """A turn was: what /clear and /load put aside is gone."""
        self._aside = None

    def _tell(self, text: str) -> None:
        self.session.view.tell(text)

    def _put_aside(self, messages: list[Json]) -> None:
        talk = self.session.talk
        self._aside, talk.messages = talk.messages, messages

    def _undo(self, _: str) -> None:
        talk = self.session.talk
        if self._aside is not None:
            talk.messages, self._aside = self._aside, None
            self._tell(f"back to the conversation of before, {_count(talk.messages)}")
            return
        if talk.begin == len(talk.messages):
            raise InputError("there is no turn to take back")
        gone = str(talk.messages[talk.begin]["content"])
        talk.messages = talk.messages[: talk.begin]
        self._tell(f"taken back: {_short(gone)}")

    def _regenerate(self, _: str) -> None:
        if self.session.talk.begin == len(self.session.talk.messages):
            raise InputError("there is no turn to reply to again")
        self.session.again()
        self.said()

    def _edit(self, _: str) -> None:
        talk = self.session.talk
        begin = talk.begin
        old = talk.messages[begin]["content"] if begin < len(talk.messages) else ""
        new = edited(str(old))
        if not new.strip() or new == old:
            self._tell("nothing was changed")
            return
        self.session.ask(new, talk.messages[:begin])
        self.said()

    def _clear(self, _: str) -> None:
        talk = self.session.talk
        self._put_aside(talk.messages[:1] if talk.system is not None else [])

    def _system(self, text: str) -> None:
        talk = self.session.talk
        if not text:
            self._tell(f"system prompt: {talk.system}" if talk.system is not None else "there is no system prompt")
            return
        rest = talk.messages[1:] if talk.system is not None else talk.messages
        talk.messages = rest if text == "off" else [{"role": "system", "content": text}, *rest]

    def _save(self, name: str) -> None:
        path = Path(name).expanduser() if name else self._file
        if path is None:
            raise InputError("/save FILE: give the file's name")
        messages = self.session.talk.messages
        if not messages:
            raise InputError("nothing was said yet: there is nothing to save")
        save_conversation(path, messages, self.session.talk.llm.path.name)
        self._file = path
        self._tell(f"saved: {path}, {_count(messages)}")

    def _load(self, name: str) -> None:
        if not name:
            raise InputError("/load FILE: give the file's name")
        path = Path(name).expanduser()
        messages = load_conversation(path)
        self._put_aside(messages)
        self._file = path
        self._tell(f"loaded: {path}, {_count(messages)}")

    def _think(self, _: str) -> None:
        talk, view = self.session.talk, self.session.view
        thoughts = [m["reasoning_content"] for m in talk.messages if m.get("reasoning_content")]
        if not thoughts and not view.thought:
            raise InputError("there is no thought to show")
        view.tell(str(view.thought or thoughts[-1]).strip(), dim=True)

    def _reasoning(self, mode: str) -> None:
        if mode not in REASONING:
            now = next(name for name, value in REASONING.items() if value == self.session.talk.thinking)
            raise InputError(f"/reasoning on, off or auto (it is {now})")
        self.session.talk.thinking = REASONING[mode]

    def _tools(self, name: str) -> None:
        session = self.session
        if name == "off":
            session.talk.tools = {}
        elif name:
            if not session.input.at_terminal:
                raise InputError("/tools is for a terminal: each call is asked about")
            session.offer(load_tools(Path(name).expanduser()))
        if not session.talk.tools:
            self._tell("no tools are offered: /tools FILE.py offers the functions of a Python file")
        for tool in session.talk.tools.values():
            function = tool.schema["function"]
            self._tell(
                f"{function['name']}({', '.join(function['parameters']['properties'])}): {function['description']}"
            )

    def _stats(self, _: str) -> None:
        talk = self.session.talk
        if talk.last is None:
            raise InputError("there was no reply yet")
        stats, usage = talk.last
        share = usage.cached_tokens / max(1, usage.prompt_tokens)
        self._tell(
            f"prompt {usage.prompt_tokens} tokens, {share:.0%} of them from the cache, the others at "
            f"{stats.prompt_tokens_per_second:.1f} tokens/s | reply {usage.completion_tokens} tokens, "
            f"{stats.decode_tokens_per_second:.1f} tokens/s"
        )
        used, cache = usage.total_tokens, talk.llm.cache.stats()
        self._tell(
            f"context {used} of {talk.llm.n_ctx} tokens ({used / talk.llm.n_ctx:.0%}), {_count(talk.messages)} | cache "
            f"{cache.nbytes / (1 << 20):.2f} MiB"
        )


def _count(messages: list[Json]) -> str:
    return f"{len(messages)} message{'s' if len(messages) != 1 else ''}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
