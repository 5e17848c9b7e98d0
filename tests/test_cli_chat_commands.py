"""What begins with a slash in a chat: /undo, /regenerate, /edit, /system, /save, /load and the others."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_process import DEMO, Result, run

from mixkv.cli.chat_files import edited, load_conversation, save_conversation
from mixkv.kernels.errors import InputError


def chat(*lines: str, words: tuple[str, ...] = (), **options: Any) -> Result:
    """A chat over a pipe, greedy, three tokens a reply."""
    text = "".join(f"{line}\n" for line in lines).encode()
    return run("chat", "-m", DEMO, "-n", "3", "--temp", "0", *words, text=text, **options)


def said(path: Path) -> list[str]:
    """Who said what in a saved conversation, the model's own words left out."""
    messages = json.loads(path.read_text())["messages"]
    return [m["content"] if m["role"] != "assistant" else "..." for m in messages]


def complaints(result: Result) -> list[str]:
    return [line.removeprefix("mixkv: ") for line in result.err.decode().splitlines() if line.startswith("mixkv: ")]


def test_undo_takes_back_turns_and_what_clear_forgot(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    result = chat("one", "two", "/undo", "three", f"/save {file}", words=("-sys", "Be kind."))
    assert said(file) == ["Be kind.", "one", "...", "three", "..."]
    assert "taken back: two" in result.err.decode()
    result = chat("one", "/clear", "/undo", "two", f"/save {file}", "/undo", "/undo", "/undo")
    assert said(file) == ["one", "...", "two", "..."]
    assert complaints(result) == ["there is no turn to take back"]
    chat("one", "/clear", "two", "/undo", "/undo", "three", f"/save {file}")
    assert said(file) == ["three", "..."], "a turn was since then: what was cleared is gone"


def test_regenerate_replies_again_to_the_same_turn(tmp_path: Path) -> None:
    """With a seed as well, which alone would say the same again."""
    file = tmp_path / "talk.json"
    greedy = chat("one", "two", "/regenerate", f"/save {file}")
    assert said(file) == ["one", "...", "two", "..."]
    assert greedy.out.splitlines()[1] == greedy.out.splitlines()[2]
    words = ("--temp", "3", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", "1", "-n", "12")
    first, second, third = chat("one", "/regenerate", "/regenerate", words=words).out.splitlines()
    assert len({first, second, third}) == 3
    assert complaints(chat("/regenerate")) == ["there is no turn to reply to again"]


def test_a_reply_that_fails_again_leaves_the_old_one(tmp_path: Path) -> None:
    """/regenerate after tools were offered that make the prompt too long, for example: nothing is lost."""
    file = tmp_path / "talk.json"
    result = chat("one", "/system " + "very " * 100, "/regenerate", "/system off", f"/save {file}", words=("-c", "64"))
    assert said(file) == ["one", "..."]
    assert len(complaints(result)) == 1 and "the context holds 64" in complaints(result)[0]


def test_edit_asks_again_in_other_words(tmp_path: Path) -> None:
    file, editor = tmp_path / "talk.json", tmp_path / "editor"
    editor.write_text('#!/bin/sh\ncp "$1" "$1.seen"; mv "$1.seen" seen; printf "changed\\nlines\\n" > "$1"\n')
    editor.chmod(0o755)
    environment = {**os.environ, "VISUAL": f"{editor}", "EDITOR": "false"}
    chat("one", "two", "/edit", f"/save {file}", env=environment, cwd=tmp_path)
    assert said(file) == ["one", "...", "changed\nlines", "..."]
    assert (tmp_path / "seen").read_text() == "two"
    chat("/edit", f"/save {file}", env=environment, cwd=tmp_path)
    assert said(file) == ["changed\nlines", "..."], "nothing to change: the first turn is written"


def test_an_editor_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for editor, why in (("false", "ended with status 1"), ("/none/such", "cannot be started"), ("'", "cannot be")):
        monkeypatch.setenv("VISUAL", editor)
        with pytest.raises(InputError, match=why):
            edited("text")
    monkeypatch.setenv("VISUAL", "")
    monkeypatch.setenv("EDITOR", "true")
    assert edited("one\ntwo") == "one\ntwo"
    assert list(tmp_path.iterdir()) == [], "nobody's messages stay in a folder for temporary files"


def test_a_conversation_goes_on_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat("Who are you?", f"/save {file}")
    later = chat(f"/load {file}", "And your sister?", "/save", "/undo", "/undo", words=("-v",))
    assert (later.status, len(later.out.splitlines())) == (0, 1)
    assert said(file) == ["Who are you?", "...", "And your sister?", "..."]
    chat("one", f"/load {file}", "/undo", "two", f"/save {file}")
    assert said(file) == ["one", "...", "two", "..."], "/load must not lose what was said before it"


def test_a_saved_conversation_keeps_everything(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "é \ud800"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "name": "f", "content": "1"},
    ]
    save_conversation(file, messages, "m.gguf")
    assert load_conversation(file)[1:] == messages[1:]
    assert stat.S_IMODE(file.stat().st_mode) & 0o600 == 0o600
    file.write_text(json.dumps(messages[:1]))
    assert load_conversation(file) == [{"role": "user", "content": "é \ud800"}], "a list of messages is one, too"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is not there"),
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[1]", "holds no conversation"),
        ('{"a": []}', "holds no conversation"),
        ('{"version": 7, "messages": []}', "of version 7"),
        ('[{"role": "bot", "content": "x"}]', "message 0 has the role 'bot'"),
        ('[{"role": "user"}]', "message 0 .user. has no content"),
    ],
)
def test_a_file_that_is_no_conversation(text: str | None, why: str, tmp_path: Path) -> None:
    """One line says what is wrong with it, and it is not written over by /save."""
    file = tmp_path / "talk.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=why):
        load_conversation(file)
    if text is not None:
        with pytest.raises(InputError, match="choose another name"):
            save_conversation(file, [{"role": "user", "content": "x"}], "m.gguf")
        assert file.read_text() == text


def test_files_that_cannot_be_written_or_are_not_named() -> None:
    result = chat("/save", "/load", "/save x", "one", "/save", "/save /none/such/file", "/load /", "two")
    assert [line[:30] for line in complaints(result)] == [
        "/save FILE: give the file's na", "/load FILE: give the file's na", "nothing was said yet: there is",
        "/save FILE: give the file's na", "cannot write the conversation ", "/ is not a file",
    ]  # fmt: skip
    assert len(result.out.splitlines()) == 2


def test_system_prompts_are_shown_set_and_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    result = chat("/system", "one", "/system Be kind.", "/system", "/clear", "two", f"/save {file}")
    assert said(file) == ["Be kind.", "two", "..."]
    assert result.err.decode().splitlines()[:2] == ["there is no system prompt", "system prompt: Be kind."]
    chat("one", "/system off", f"/save {file}", words=("-sys", r"Be\nkind."))
    assert said(file) == ["one", "..."]


def test_stats_help_and_what_is_no_command(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = ["/stats", "one", "two", "/stats", "/help", "/foo", "/usr/bin is what?", " /foo", f"/save {file}", "/think"]
    result = chat(*lines, "/reasoning", "/reasoning off", "/reasoning")
    err = result.err.decode()
    assert complaints(result) == [
        "there was no reply yet",
        "there is no command /foo: /help lists them, a blank before it sends it as text",
        "there is no thought to show",
        "/reasoning on, off or auto (it is auto)",
        "/reasoning on, off or auto (it is off)",
    ]
    assert said(file)[4::2] == ["/usr/bin is what?", " /foo"]
    assert " of them from the cache" in err and " 0% of them" not in err
    assert "context " in err and "4 messages" in err
    for command in ("undo", "regenerate", "edit", "clear", "system", "save", "load", "think", "tools", "stats"):
        assert f"\n/{command} " in err
    assert b"/undo" not in result.out


def test_tools_are_not_called_without_asking() -> None:
    """In a pipe nobody can be asked."""
    assert "each call is asked about" in complaints(chat("/tools /none.py"))[0]
    assert "no tools are offered" in chat("/tools").err.decode()
