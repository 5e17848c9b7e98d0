"""`mixkv generate` as a process: stdout holds the text alone, exit statuses, prompts from everywhere, JSON, Ctrl-C."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from cli_process import DEMO, SCRIPTS, Result, generate, interrupt, run, start

import mixkv

HELLO = "Once upon a time"
ENDLESS = ("-n", "-1", "--ignore-eos", "-c", "30000", "--mixed-kv-cache")


@pytest.fixture(scope="module")
def hello() -> mixkv.Completion:
    """What two greedy tokens after HELLO are, by the library."""
    return mixkv.generate(DEMO, HELLO, max_tokens=2, temperature=0.0)


def test_stdout_holds_the_text_alone_and_stderr_nothing(hello: mixkv.Completion) -> None:
    """A trailing newline, the prompt or a progress bar would spoil every script that reads the output."""
    assert generate("-p", HELLO) == Result(0, hello.text.encode(), b"")


@pytest.mark.skipif(not (SCRIPTS / "mixkv-cli").exists(), reason="the scripts are not installed beside this Python")
def test_the_two_lines_that_llama_cli_users_type_run_unchanged(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(DEMO)
    first = 'mixkv-cli -m model.gguf -p "Hello" --mixed-kv-cache -ngl 0 -fa -t 8 -no-cnv -n 1'
    second = 'mixkv-cli -m model.gguf -p "Hello" --mixed-kv-cache -ctk q4_0 -ctv q4_0 --seed 1024'
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        first, shell=True, cwd=tmp_path, env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
    # The second has no -n: it goes on until the context is full, so it is stopped once it has said something.
    process = start(*second.split()[1:4], "Hello", *second.split()[5:], script="mixkv-cli", cwd=tmp_path)
    assert process.stdout is not None
    said = process.stdout.read(12)
    done_second = interrupt(process)
    assert done_second.status in (0, 130)
    options = {"mixed_kv_cache": True, "type_k": "q4_0", "type_v": "q4_0"}
    expected = mixkv.generate(DEMO, "Hello", max_tokens=12, seed=1024, **options).text.encode()
    assert said == expected[:12]


def test_one_json_object_with_text_tokens_statistics_and_log_probabilities(hello: mixkv.Completion) -> None:
    result = generate("-p", HELLO, "--json", "--logprobs", "3", "--preset", "low-memory", "--sink-tokens", "2")
    assert (result.status, result.err) == (0, b"")
    found = json.loads(result.out)
    assert (found["text"], found["tokens"], found["finish_reason"]) == (hello.text, hello.tokens, "length")
    assert [entry["token"] for entry in found["logprobs"]] == hello.tokens
    assert all(entry["logprob"] <= 0 and len(entry["top"]) == 3 for entry in found["logprobs"])
    stats = found["stats"]
    assert (stats["prompt_tokens"], stats["generated_tokens"]) == (hello.stats.prompt_tokens, 2)
    assert stats["prompt_tokens_per_second"] > 0
    assert stats["cache"]["sink_tokens"] == 2, "the flag wins over the preset, whose sinks are 4"
    assert stats["cache"]["n_tokens"] == hello.stats.prompt_tokens + 1
    assert 0 < stats["cache"]["nbytes"] <= stats["cache"]["fp16_bytes"]


def test_escapes_are_read_in_the_prompt_and_left_alone_in_files(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("said\\n", encoding="utf-8")

    def prompt_tokens(*words: str) -> int:
        found = json.loads(generate("-n", "1", "--json", *words).out)["stats"]["prompt_tokens"]
        assert isinstance(found, int)
        return found

    llm = mixkv.load(DEMO, n_ctx=64)
    as_newline, as_typed = len(llm.tokenize("said\n")), len(llm.tokenize("said\\n"))
    assert as_newline != as_typed
    assert prompt_tokens("-p", "said\\n") == as_newline
    assert prompt_tokens("-p", "said\\n", "--no-escape") == as_typed
    assert prompt_tokens("-f", str(file)) == as_typed


def test_a_reverse_prompt_ends_the_text_before_it() -> None:
    text = mixkv.generate(DEMO, HELLO, max_tokens=8, temperature=0.0).text
    stop = text[5:8]
    found = json.loads(generate("-p", HELLO, "-n", "8", "-r", stop, "--json").out)
    assert (found["text"], found["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_minus_two_and_minus_one_generate_until_the_context_is_full() -> None:
    for n in ("-1", "-2"):
        found = json.loads(generate("-p", HELLO, "-n", n, "-c", "12", "--ignore-eos", "--json").out)
        assert (found["finish_reason"], found["stats"]["cache"]["n_tokens"]) == ("length", 12)


def test_text_is_utf8_whatever_the_locale_says() -> None:
    tokenizer = mixkv.load(DEMO, n_ctx=16).tokenizer
    token, text = next(
        (i, text)
        for i in range(tokenizer.n_vocab)
        if not (text := tokenizer.decode([i])).isascii() and "\ufffd" not in text
    )
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONIOENCODING"] = "ascii"
    result = generate("-p", HELLO, "-l", f"{token}+1000", env=environment)
    assert result == Result(0, (2 * text).encode(), b"")


def test_statistics_are_for_terminals_or_on_request() -> None:
    lines = generate("-p", HELLO, "-v", "-t", "600").err.decode().splitlines()
    assert lines[0].startswith("mixkv: warning: 600 threads")
    assert "tokens/s" in lines[-2]
    assert "FP16" in lines[-1]


def test_perf_decides_about_statistics_and_nothing_else() -> None:
    """Scripts for llama-cli ask for timings with --perf, and for silence about them with --no-perf."""
    assert b"tokens/s" in generate("-p", HELLO, "--perf").err
    lines = generate("-p", HELLO, "-v", "-t", "600", "--no-perf").err.decode().splitlines()
    assert [line.partition(": 600")[0] for line in lines] == ["mixkv: warning"]


def test_flags_without_effect_are_accepted_and_say_so_once() -> None:
    words = ("-ngl", "99", "-nr", "--no-mmap", "-tb", "3", "-ub", "64", "--keep", "5", "-fa", "off", "--no-jinja")
    result = generate("-p", HELLO, "-n", "1", *words)
    assert result.status == 0
    for name in ("-ngl 99", "--no-repack", "--no-mmap", "-tb 3", "-ub 64", "--keep 5", "-fa off", "--no-jinja"):
        assert result.err.decode().count(f"mixkv: {name} has no effect") == 1
    for silent in ("-q", "--log-disable"):
        assert generate("-p", HELLO, "-n", "1", *words, silent).err == b""


def test_interrupted_after_some_text_the_text_is_there_and_the_status_130() -> None:
    process = start("generate", "-m", DEMO, "-p", HELLO, "--temp", "0", *ENDLESS)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    result = interrupt(process)
    said = first + result.out
    assert (result.status, result.err) == (130, b"")
    expected = mixkv.generate(DEMO, HELLO, max_tokens=2, temperature=0.0, mixed_kv_cache=True).text.encode()
    assert said.startswith(expected[: len(said)])
    assert said.decode().strip()


def test_interrupted_json_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "computed"  # is there as soon as the prompt is computed: from then on text is generated
    process = start("generate", "-m", DEMO, "-p", HELLO, "--json", "--prompt-cache", str(file), *ENDLESS)
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    result = interrupt(process)
    found = json.loads(result.out)
    assert (result.status, found["finish_reason"]) == (130, "interrupted")
    assert len(found["tokens"]) == found["stats"]["generated_tokens"] > 0


def test_a_reader_that_has_seen_enough_ends_the_run_quietly() -> None:
    process = start("generate", "-m", DEMO, "-p", HELLO, *ENDLESS)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_closed_streams_swallow_what_was_meant_for_them_only() -> None:
    silent = run("generate", "-m", DEMO, "-p", HELLO, "-n", "1", stdout=None, preexec_fn=lambda: os.close(1))
    assert (silent.status, silent.err) == (0, b"")


def test_version_and_help() -> None:
    assert run("--version").out.decode() == f"mixkv {mixkv.__version__}\n"
    overview = run("--help").out.decode()
    assert all(name in overview for name in ("generate", "chat", "inspect"))
    text = run("generate", "--help", env={**os.environ, "COLUMNS": "120"}).out.decode()
    panels = ("Model and machine", "Prompt", "KV cache", "Length and end", "Sampling", "Against repetition", "Output")
    positions = [text.index(f"─ {panel} ") for panel in panels]
    assert len(set(positions)) == len(panels)
    assert "Accepted for llama-cli" in text
    assert "the text" in text.replace("\n", " ")
