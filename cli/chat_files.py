"""Conversations as files, and messages in an editor."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixkv.engine.atomic_file import writing
from mixkv.kernels.errors import InputError

KIND, VERSION = "mixkv conversation", 1
Json = dict[str, Any]


def save_conversation(path: Path, messages: Sequence[Json], model: str) -> None:
    """Write a conversation as JSON: messages as OpenAI's API has them, with `reasoning_content` and `tool_calls`.

    InputError where a file is in the way that is no conversation, or cannot be written: nothing is changed then.
    """
    if path.exists():
        try:
            load_conversation(path)
        except InputError as error:
            raise InputError(
                f"{path} is there already and no saved conversation ({error}): choose another name"
            ) from None
    value = {"kind": KIND, "version": VERSION, "model": model, "messages": list(messages)}
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with writing(path, "conversation", InputError) as file:
        file.write(text.encode("utf-8", "replace"))


def load_conversation(path: Path) -> list[Json]:
    """The messages of a saved conversation, or of a plain JSON list of messages. InputError where it is neither."""
    from mixkv.engine.chat.messages import checked_messages

    try:
        if not path.is_file():
            raise InputError(f"{path} is {'not a file' if path.exists() else 'not there'}")
        value = json.loads(path.read_bytes())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {str(error) or 'nested too deep'}") from None
    version = value.get("version", VERSION) if isinstance(value, dict) else VERSION
    if version != VERSION:
        raise InputError(f"{path} is of version {version!r} of conversations, which this program does not know")
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(
            f'{path} holds no conversation: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}'
        )
    try:
        if messages:
            checked_messages(messages)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return messages


def edited(text: str) -> str:
    """`text` after the user's editor ($VISUAL, $EDITOR, vi). InputError where there is none or it fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    descriptor, name = tempfile.mkstemp(prefix="mixkv-", suffix=".md")  # of mode 600
    path = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
        before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the editor's
        try:
            status = subprocess.run([*shlex.split(editor), name], check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)
        if status:
            raise InputError(f"the editor {editor!r} ended with status {status}: nothing was changed")
        return path.read_bytes().decode("utf-8", "replace").removesuffix("\n")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"the editor {editor!r} cannot be started ({error}): set EDITOR") from None
    finally:
        path.unlink(missing_ok=True)
