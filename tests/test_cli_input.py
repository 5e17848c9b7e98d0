"""Where the prompt comes from: stdin only where nothing else gives it, special tokens, BOS, -p "", one turn."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import DEMO, command, generate, run, start
from gguf_tools import tiny_llama, write_gguf

import mixkv

HELLO = "Once upon a time"


def found(*words: str, text: bytes | None = None) -> dict[str, Any]:
    """The JSON object of a run."""
    result = generate("--json", *words, text=text)
    assert result.status == 0, result
    loaded = json.loads(result.out)
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def llm() -> mixkv.LLM:
    return mixkv.load(DEMO, n_ctx=64)


def test_piped_text_is_the_prompt_where_nothing_else_is(llm: mixkv.LLM) -> None:
    """A line end that closes the pipe is not part of the prompt."""
    expected = llm.generate(HELLO, max_tokens=2, temperature=0.0)
    assert found(text=b"Once upon a time\n")["tokens"] == expected.tokens
    assert found("-f", "-", text=b"Once upon a time\n")["tokens"] == expected.tokens


def test_f_dash_puts_piped_text_before_that_of_p(llm: mixkv.LLM) -> None:
    joined = found("-f", "-", "-p", "a time", text=b"Once upon\n")
    assert joined["stats"]["prompt_tokens"] == len(llm.tokenize("Once upon\na time"))
    assert joined["tokens"] == llm.generate("Once upon\na time", max_tokens=2, temperature=0.0).tokens


def test_a_loop_around_the_command_keeps_its_input() -> None:
    """`while read -r line; do mixkv-cli -p "$line"; done` lost all but its first line to the first run."""
    call = " ".join(f"'{word}'" for word in command("generate", "-m", DEMO, "-n", "1", "--temp", "0"))
    script = f'while read -r line; do echo "[$line]"; {call} -p "$line"; {call} -f "$PROMPT"; echo; done'
    prompt = Path(__file__).with_name("prose.py")
    done = subprocess.run(
        ["sh", "-c", script], input=b"Once upon\nOne day\nThe cat\n", capture_output=True, cwd="/",
        env={"PROMPT": str(prompt), "PATH": "/usr/bin:/bin"}, check=True,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith(b"[")] == [
        b"[Once upon]",
        b"[One day]",
        b"[The cat]",
    ]


def test_a_pipe_that_nobody_closes_is_not_waited_for() -> None:
    """Services and subprocesses leave stdin open: with -p the run must end all the same."""
    process = start("generate", "-m", DEMO, "-p", HELLO, "-n", "1", stdin=subprocess.PIPE)
    assert process.wait(timeout=60) == 0
    assert process.stdin is not None
    process.stdin.close()


def test_no_prompt_at_all_is_a_wrong_command_line() -> None:
    result = generate()
    assert (result.status, result.out) == (2, b"")
    assert "there is no prompt" in result.complaint


def test_an_empty_prompt_starts_from_bos(llm: mixkv.LLM) -> None:
    """As in llama-cli: the model says what it likes."""
    expected = llm.generate([llm.tokenizer.bos_id], max_tokens=2, temperature=0.0)
    from_nothing = found("-p", "")
    assert (from_nothing["text"], from_nothing["stats"]["prompt_tokens"]) == (expected.text, 1)


def test_special_tokens_of_the_prompt_count_as_such_unless_told_otherwise(llm: mixkv.LLM, tmp_path: Path) -> None:
    """llama-cli parses them always; with a chat's text laid out by hand, characters in their place are nonsense."""
    text = f"{HELLO}</s>"
    parsed, plain = (len(llm.tokenize(text, parse_special=special)) for special in (True, False))
    assert parsed != plain
    (tmp_path / "prompt").write_text(text)
    for words in (("-p", text), ("-f", str(tmp_path / "prompt"))):
        assert found(*words)["stats"]["prompt_tokens"] == parsed
        assert found(*words, "--no-parse-special")["stats"]["prompt_tokens"] == plain
    assert llm.generate(text, max_tokens=1).stats.prompt_tokens == plain, "Python parses when it is asked to"


def test_two_bos_and_a_context_beyond_the_training_are_said(llm: mixkv.LLM) -> None:
    lines = generate("-p", "<s>Once", "-c", "30000", "-v", "--no-perf").err.decode().splitlines()
    assert ["a context of 30000 tokens" in lines[0], "two BOS tokens" in lines[1], len(lines)] == [True, True, 2]
    assert generate("-p", "Once", "-c", "2048", "-v", "--no-perf").err == b""


@pytest.mark.parametrize("n", ["0", "-1"])
def test_no_threads_are_the_usable_cores(n: str) -> None:
    """Scripts pass 0 for "as many as there are"."""
    assert generate("-p", HELLO, "-t", n).status == 0
    assert run("perplexity", "-f", __file__, "-t", n, "-c", "64", "--kv", "f16", "--chunks", "1").status == 0


def test_special_tokens_are_printed_on_request_the_last_one_too() -> None:
    """-sp shows how the model ends a text, and what control tokens it puts into it."""
    ends = ("-p", HELLO, "-l", "2+1000")  # </s>
    assert generate(*ends).out == b""
    for flag in ("-sp", "--special"):
        assert generate(*ends, flag).out == b"</s>"
        assert generate("-p", HELLO, "-l", "1+1000", flag).out == b"<s><s>"
    assert found(*ends, "-sp")["text"] == "</s>"


def test_one_turn_of_a_chat_is_p_or_one_line() -> None:
    words = ("-m", DEMO, "-n", "3", "--temp", "0")
    chat = run("chat", *words, text=b"Who are you?\n")
    for command_words in (("generate", "-st"), ("generate", "-cnv", "--single-turn"), ("chat", "-st")):
        assert run(*command_words, *words, "-p", "Who are you?", text=b"And you?\n").out == chat.out
        assert run(*command_words, *words, text=b"\nWho are you?\nAnd you?\n").out == chat.out
    plain = generate("-p", "Who are you?", "-n", "3")
    assert generate("-p", "Who are you?", "-n", "3", "-st", "-no-cnv") == plain


def test_one_turn_that_fails_is_a_failed_run() -> None:
    result = run("chat", "-st", "-m", DEMO, "-n", "2", "-c", "64", "-p", "very " * 100)
    assert (result.status, result.out) == (1, b"")
    assert "the context holds 64" in result.complaint


def test_the_model_file_can_be_overruled(tmp_path: Path) -> None:
    """--rope-* and --override-kv act as if the file said so."""
    metadata, tensors = tiny_llama()
    plain = str(write_gguf(tmp_path / "plain.gguf", metadata, tensors))
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": np.float32(4.0)}
    scaled = str(write_gguf(tmp_path / "scaled.gguf", metadata | scaling, tensors))
    words = ("generate", "-p", "the ten nets", "--temp", "0", "-n", "8", "--json", "--logprobs", "2", "-m")

    def logprobs(*more: str) -> Any:
        return json.loads(run(*words, *more).out)["logprobs"]

    wanted = logprobs(scaled)
    assert logprobs(plain) != wanted
    assert logprobs(plain, "--rope-scaling", "linear", "--rope-scale", "4") == wanted
    assert logprobs(plain, "--rope-scaling", "linear", "--rope-freq-scale", "0.25") == wanted
    by_key = "llama.rope.scaling.type=str:linear,llama.rope.scaling.factor=float:4"
    assert logprobs(plain, "--override-kv", by_key) == wanted
    assert logprobs(scaled, "--rope-scaling", "none") == logprobs(plain)
