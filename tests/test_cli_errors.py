"""What goes wrong is one line on stderr and a status: 1 where the run failed, 2 where the command line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_process import DEMO, run

NAMES = {"DEMO": DEMO, "TESTS": str(Path(__file__).parent), "THIS": __file__}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "no-such.gguf", "-p", "Hello"), "no-such.gguf': cannot open the model file: No such file"),
        (("-m", "THIS", "-p", "Hello"), "test_cli_errors.py: is not a GGUF file"),
        (("-m", "TESTS", "-p", "Hello"), "is not a regular file"),
        (("-m", "DEMO", "-f", "no-such.txt"), "no-such.txt: No such file or directory"),
        (("-m", "DEMO", "-f", "DEMO"), "not UTF-8 text (byte"),
        (("-m", "DEMO", "-p", "one two three four five six seven", "-c", "4"), "tokens, but the context holds 4"),
        (("-m", "DEMO", "-p", "Hello", "-c", "2000000000"), "exceed the"),
        (("-m", "DEMO", "-p", "Hello", "-n", "1", "--prompt-cache", "/no/such/folder/file"), "/no/such/folder"),
    ],
)
def test_a_run_that_fails_says_what_and_where_in_one_line(words: tuple[str, ...], message: str) -> None:
    result = run("generate", *(NAMES.get(word, word) for word in words))
    assert (result.status, result.out) == (1, b"")
    assert message in result.complaint


def test_a_long_prompt_names_both_lengths() -> None:
    result = run("generate", "-m", DEMO, "-p", "x " * 300, "-c", "100")
    words = result.complaint.split()
    assert (result.status, words[words.index("holds") + 1]) == (1, "100:")
    assert int(words[words.index("has") + 1]) > 100


def test_a_full_disk_is_a_failed_run() -> None:
    with Path("/dev/full").open("wb") as full:
        result = run("generate", "-m", DEMO, "-p", "Hello", "-n", "1", stdout=full)
    assert result.status == 1
    assert "No space left on device" in result.complaint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "-p", "Hello", "--no-such-flag"), "no such option: --no-such-flag"),
        (("generate", "-p", "Hello", "--temperatur", "1"), "did you mean --temperature?"),
        (("generate", "-hx", "some/repo", "-p", "Hello"), "no such option: -hx;"),
        (("generate", "-fast", "-p", "Hello"), "no such option: -fast"),
        (("generate", "-n5", "-p", "Hello"), "no such option: -n5; did you mean -n 5?"),
        (("generate", "-n=5", "-p", "Hello"), "no such option: -n=5; did you mean -n 5?"),
        (("chat", "-hx", "some/repo"), "no such option: -hx;"),
        (("inspect", "-hx"), "no such option: -hx;"),
        (("bench", "-pg", "512,128"), "no such option: -pg"),
        (("perplexity", "-fx"), "no such option: -fx"),
        (("evaluate", "-qx"), "no such option: -qx"),
        (("-hf", "some/repo"), "no such option: -hf;"),
        (("generate", "-p", "Hello", "-ngl", "some"), "-ngl some: use N, auto, all"),
        (("generate", "--grammar", "root ::= x", "-p", "Hello"), "there is no rule 'x'"),
        (("generate", "-j", "{", "-p", "Hello"), "--json-schema: not JSON"),
        (("generate", "-j", '{"not": {}}', "-p", "Hello"), "json_schema (--json-schema): keywords that are not"),
        (("generate", "-j", "{}", "--grammar", "x", "-p", "Hello"), "--grammar and --json-schema both say"),
        (("chat", "--chat-template", "chatml", "--chat-template-file", "x"), "both give the template"),
        (("generate", "--reasoning", "some", "-p", "Hello"), "use on, off or auto"),
        (("generate", "--prio", "7", "-p", "Hello"), "--prio 7"),
        (("generate", "-C", "1" + "0" * 300, "-p", "Hello"), "none of these cores"),
        (("generate", "--override-kv", "llama.block_count=str:x", "-p", "Hello"), "override of 'llama.block_count'"),
        (("chat", "-f", "-"), "-f - is the standard input"),
        (("generate", "-p", "Hello", "-n", "many"), "-n"),
        (("generate", "-p", "Hello", "-ctk", "q9_9"), "unknown cache type 'q9_9'"),
        (("generate", "-p", "Hello", "--top-p", "3"), "top_p = 3.0"),
        (("generate", "-p", "Hello", "--hot-window", "32"), "--hot-window is of the mixed cache only"),
        (("generate", "-p", "Hello", "-no-cnv", "-cnv"), "-no-cnv contradicts -cnv"),
        (("inspect", "--families", "--cpu"), "give one of"),
        (("no-such-command",), "No such command"),
    ],
)
def test_a_wrong_command_line_is_status_2(words: tuple[str, ...], message: str) -> None:
    result = run(*words)
    assert (result.status, result.out) == (2, b"")
    assert message in result.complaint
