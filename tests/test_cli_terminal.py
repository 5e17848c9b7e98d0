"""At a pseudo-terminal: progress comes and goes, statistics stay, the prompt is shown before the text, Ctrl-C."""

from __future__ import annotations

import sys
import time

import pytest
from cli_process import DEMO, OnTerminal, Result, screen

LONG_PROMPT = "It was a bright cold day in April. " * 150


def with_delay(seconds: float, *words: str) -> Result:
    """`mixkv WORDS` at a terminal, the bar's delay set so that the machine's speed does not matter."""
    code = (
        f"import mixkv.cli.terminal as terminal; terminal.BAR_DELAY_SECONDS = {seconds}; "
        "from mixkv.cli.main import main; import sys; main(sys.argv[1:])"
    )
    return OnTerminal(line=[sys.executable, "-c", code, *words]).end()


@pytest.fixture(scope="module")
def long_run() -> Result:
    """A run whose prompt takes a while, stderr at a terminal, stdout a pipe."""
    words = ("generate", "-m", DEMO, "-p", LONG_PROMPT, "-n", "1", "--temp", "0", "-b", "64", "-t", "1")
    return with_delay(0.0, *words)


def test_progress_appears_and_is_gone_afterwards(long_run: Result) -> None:
    assert long_run.status == 0
    shown = long_run.err.decode()
    assert "prompt, " in shown
    assert "━" in shown
    left = screen(long_run.err)
    assert len(left) == 2, left
    assert "tokens/s" in left[0]
    assert "FP16" in left[1]


def test_the_text_is_not_mixed_with_the_progress(long_run: Result) -> None:
    assert long_run.out
    assert b"\x1b" not in long_run.out
    assert b"prompt" not in long_run.out


def test_quick_runs_show_no_bar_and_quiet_ones_nothing() -> None:
    quick = with_delay(30.0, "generate", "-m", DEMO, "-p", "Hello", "-n", "1")
    assert b"\x1b" not in quick.err
    assert len(screen(quick.err)) == 2
    quiet = OnTerminal("generate", "-m", DEMO, "-p", LONG_PROMPT, "-n", "1", "-q").end()
    assert (quiet.status, quiet.err) == (0, b"")
    assert quiet.out


def test_on_a_terminal_the_prompt_is_shown_before_the_text_unless_told_otherwise() -> None:
    words = ("generate", "-m", DEMO, "-p", "Once upon a time", "-n", "1", "--temp", "0", "-q")
    with_prompt = screen(OnTerminal(*words, whole=True).end().err)
    without = screen(OnTerminal(*words, "--no-display-prompt", whole=True).end().err)
    assert len(with_prompt) == len(without) == 1
    assert with_prompt[0] == "Once upon a time" + without[0]
    coloured = OnTerminal(*words, "--color", whole=True).end().err
    assert b"\x1b[33mOnce upon a time\x1b[0m" in coloured


def test_without_a_prompt_at_a_terminal_the_command_line_is_wrong() -> None:
    result = OnTerminal("generate", "-m", DEMO, whole=True).end()
    assert result.status == 2
    assert screen(result.err) == [
        "mixkv: there is no prompt: give -p TEXT or -f FILE, or pipe text in (-h shows all flags)"
    ]


def test_a_chat_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves() -> None:
    """Ctrl-C must not throw away the conversation, and not end the program."""
    chat = OnTerminal("chat", "-m", DEMO, "-c", "30000", "--ignore-eos", "--mixed-kv-cache", "--temp", "0", whole=True)
    chat.read(until="> ")
    chat.type("Hello\r")
    chat.read(until=r"Hello\r\n(\x1b\[\?2004l\r)?[A-Za-z ]{4}")  # text, not the line editor's own
    chat.type("\x03")
    chat.read(until=r"\n[^\n]*> ")
    time.sleep(0.5)  # readline draws its prompt a moment before it listens for signals
    chat.type("\x03")
    chat.read(until=r"/exit leaves[^>]*> ")
    time.sleep(0.5)
    chat.type("\x04")
    result = chat.end()
    assert result.status == 0
    assert any("tokens/s" in line for line in screen(result.err))


def test_interrupted_within_the_prompt_nothing_is_shown_but_how_far_it_came() -> None:
    run = OnTerminal("generate", "-m", DEMO, "-p", LONG_PROMPT * 20, "-c", "100000", "-b", "16", whole=True)
    run.read(until="prompt, ")
    run.type("\x03")
    result = run.end()
    assert result.status == 130
    left = screen(result.err)
    assert "bright cold day" not in "".join(left)
    assert "interrupted after " in left[-1]
