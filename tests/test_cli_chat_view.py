"""How a chat looks: markdown without a change to the text, thoughts folded, nothing that steers the terminal."""

from __future__ import annotations

import re
import stat
import time
from pathlib import Path

import pytest
from chat_cases import CHATML, TAGS, chat_model
from cli_process import DEMO, OnTerminal, run, screen
from hypothesis import given
from hypothesis import strategies as st

from mixkv.cli.chat_markdown import HELD, Markdown

B, D, C, U, E = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[4m", "\x1b[0m"


def shown(text: str, size: int = 1) -> str:
    """A text that comes in pieces of this size."""
    markdown = Markdown()
    return "".join(markdown.feed(text[i : i + size]) for i in range(0, len(text), size)) + markdown.flush()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain text", "plain text"),
        ("a **bold** b", f"a {B}bold{E} b"),
        ("a `code` b\n", f"a {C}code{E} b\n"),
        ("``a`b``", f"{C}a`b{E}"),
        ("**b `c`**", f"{B}b c{E}"),
        ("# Title\ntext", f"{B}{U}Title{E}\ntext"),
        ("## The **second**\n", f"{B}The second{E}\n"),
        ("```py\na ** b # `x`\n```\n`c`", f"{D}```py{E}\na ** b # `x`\n{D}```{E}\n{C}c{E}"),
        ("~~~\n```\n~~~\n**b**", f"{D}~~~{E}\n```\n{D}~~~{E}\n{B}b{E}"),
        ("```one `` line```", f"{C}one `` line{E}"),
        ("2*3*4, 2 ** 3 and x**2 y", "2*3*4, 2 ** 3 and x**2 y"),
        ("#include <x>\n#5 is", "#include <x>\n#5 is"),
        ("a ` b\nc ` d", "a ` b\nc ` d"),
        ("**open\n* item **x**", f"**open\n* item {B}x{E}"),
        ("```\nnever closed", f"{D}```{E}\nnever closed"),
    ],
)
def test_marks_in_pairs_are_shown_and_all_else_is_as_it_was(text: str, result: str) -> None:
    assert shown(text) == result
    assert shown(text, len(text)) == result


@given(st.text("ab `*#~\n_", max_size=60), st.integers(1, 7))
def test_nothing_but_pairs_of_marks_is_lost_however_the_text_comes(text: str, size: int) -> None:
    """What is copied from the terminal is what was written."""
    left = re.sub(r"\x1b\[\d+m", "", shown(text, size))
    assert shown(text, size) == shown(text, 1)
    assert [c for c in left if c not in "`*# "] == [c for c in text if c not in "`*# "]
    assert left.count("\n") == text.count("\n")


def test_a_lone_mark_does_not_hold_the_text_back() -> None:
    markdown = Markdown()
    assert markdown.feed("a `" + "b" * HELD) != ""


def chat(*words: str, template: str, tmp_path: Path, environment: dict[str, str] | None = None) -> OnTerminal:
    path = tmp_path / "t.jinja"
    path.write_text(template)
    line = ("chat", "-m", DEMO, "--temp", "0", "--chat-template-file", str(path), *words)
    return OnTerminal(*line, whole=True, environment=environment)


LONG = " ".join(f"word{i}" for i in range(120))
THINKS = ("--grammar", f'root ::= "<think>{LONG}</think>\\n\\n# Yes\\n**hello**"')


def said_hi(talk: OnTerminal) -> str:
    """What the terminal showed for a turn."""
    talk.read(until="> ")
    talk.type("hi\r")
    found = talk.read(until=r"hello[^>]*> ")
    talk.type("/think\r")
    talk.read(until="word119[^>]*> ")
    talk.type("\x04")
    return found


def test_thoughts_come_dimmed_and_are_folded_to_one_line(tmp_path: Path) -> None:
    talk = chat(*THINKS, template=CHATML, tmp_path=tmp_path)
    found = said_hi(talk)
    assert f"{D}word0 word1" in found
    shown = screen(talk.end().err)
    assert re.fullmatch(r"thought for \d+ tokens \(/think shows it\)", shown[1])
    assert shown[2:4] == ["Yes", "hello"], "nothing of it is left above the answer"
    assert LONG in "".join(shown), "/think shows it again"


def test_a_terminal_that_can_do_little_gets_plain_text(tmp_path: Path) -> None:
    for words, environment in ((("--simple-io",), {}), ((), {"TERM": "dumb"})):
        talk = chat(*THINKS, *words, template=CHATML, tmp_path=tmp_path, environment=environment)
        said_hi(talk)
        seen = talk.end().err.decode().replace("\r", "")
        assert f"[thinking]\n{LONG}\n[thought]\n\n# Yes\n**hello**\n" in seen
        assert "\x1b" not in seen
    talk = chat(*THINKS, "--no-markdown", template=CHATML, tmp_path=tmp_path)
    assert "**hello**" in said_hi(talk)
    talk.end()


def test_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """In thoughts, answers and what commands show again."""
    evil = '"<think>" [\\x1b] "[2Jhm</think>x" [\\x1b] "]0;title" [\\x07] "hello"'
    talk = chat("--grammar", f"root ::= {evil}", template=CHATML, tmp_path=tmp_path)
    talk.read(until="> ")
    talk.type("hi\r")
    talk.read(until="hello[^>]*> ")
    talk.type("/think\r")
    talk.read(until="hm[^>]*> ")
    talk.type("\x04")
    seen = talk.end().err.decode()
    assert "\x1b[2J" not in seen and "\x1b]0" not in seen and "\x07" not in seen
    assert "\ufffd]0;title\ufffdhello" in seen


def test_the_history_is_kept_for_nobody_else(tmp_path: Path) -> None:
    """Turns of one chat are there in the next; answers to questions are no turns."""
    state = tmp_path / "state"
    for typed in ("first turn\r", "\x1b[A\r"):
        talk = OnTerminal("chat", "-m", DEMO, "-n", "1", whole=True, environment={"XDG_STATE_HOME": str(state)})
        talk.read(until="> ")
        talk.type(typed)
        talk.read(until=r"first turn[\s\S]*\n[^>]*> ")
        talk.type("\x04")
        assert talk.end().status == 0
    file = state / "mixkv" / "chat_history"
    assert file.read_text() == "first turn\nfirst turn\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_history_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mixkv").write_text("a file in the way")
    talk = OnTerminal("chat", "-m", DEMO, "-n", "1", whole=True, environment={"XDG_STATE_HOME": str(tmp_path)})
    talk.read(until=r"the history is not kept: .*\n[\s\S]*> ")
    talk.type("hi\r")
    talk.read(until=r"\n[^>]*> ")
    talk.type("\x04")
    assert talk.end().status == 0


def test_ctrl_c_twice_leaves() -> None:
    talk = OnTerminal("chat", "-m", DEMO, whole=True)
    for until in ("> ", "Ctrl-C again.*leaves[^>]*> "):
        talk.read(until=until)
        time.sleep(0.5)  # readline draws its prompt a moment before it listens for signals
        talk.type("\x03")
    assert talk.end().status == 0


def test_stopped_before_anything_was_said_the_turn_is_taken_back(tmp_path: Path) -> None:
    """An empty answer would stand in the conversation for ever."""
    (tmp_path / "long.txt").write_text("It was a bright cold day in April. " * 4000)
    words = ("-c", "100000", "-b", "16", "-f", str(tmp_path / "long.txt"))
    talk = OnTerminal("chat", "-m", DEMO, *words, whole=True)
    talk.read(until="reading")
    talk.type("\x03")
    talk.read(until="the turn is taken back[^>]*> ")
    talk.type("/undo\r")
    talk.read(until="there is no turn to take back[^>]*> ")
    talk.type("\x04")
    assert talk.end().status == 0


def test_generate_is_a_chat_by_itself_at_a_terminal_where_there_is_a_template(tmp_path: Path) -> None:
    """As llama-cli is; never in a pipe, and not where something else was asked for."""
    model = str(chat_model(tmp_path / "chat.gguf", CHATML, TAGS))
    words = ("generate", "-m", model, "-n", "2", "-p", "hello")
    for script in ((), ("--chat-template", "chatml")):
        line = words if not script else ("generate", "-m", DEMO, "-n", "2", "-p", "hello", *script)
        talk = OnTerminal(*line, whole=True)
        talk.read(until="> ")
        talk.type("/exit\r")
        assert talk.end().status == 0
    for more in (("-no-cnv",), ("--json",), ("--prompt-cache", str(tmp_path / "c"))):
        assert OnTerminal(*words, *more, whole=True).end().status == 0, "it waits for nobody"
    greedy = (*words, "--temp", "0", "-v")
    piped, text, talk_piped = run(*greedy), run(*greedy, "-no-cnv"), run(*greedy, "-cnv")
    assert piped.out == text.out and piped.err.startswith(b"prompt 6 tokens")
    assert "prompt 6 tokens" not in talk_piped.err.decode()
    assert "there is no prompt" in screen(OnTerminal("generate", "-m", model, "-no-cnv", whole=True).end().err)[0]
