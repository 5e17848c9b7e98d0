"""`mixkv chat` in a pipe: turns, templates, what it forgets and keeps, and that only the new turn is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_cases import CHATML
from cli_process import DEMO, Result, run
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.cli.chat_options import ChatFlags, chat_settings
from mixkv.cli.chat_session import Conversation
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import ConfigError, InputError

THINKS = ("--grammar", 'root ::= "<think>hm hm</think>\\n\\nhello"')


@pytest.fixture(scope="module")
def llm() -> Iterator[mixkv.LLM]:
    yield mixkv.load(DEMO, n_ctx=256)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A template with thoughts, as a file."""
    path = tmp_path_factory.mktemp("template") / "chatml.jinja"
    path.write_text(CHATML)
    return str(path)


def chat(*words: str, text: str) -> Result:
    """A chat over a pipe, greedy and four tokens a reply unless the words say otherwise."""
    return run("chat", "-m", DEMO, "-n", "4", "--temp", "0", *words, text=text.encode())


def test_each_turn_is_answered_on_stdout_and_clear_forgets() -> None:
    result = chat("-v", text="Who are you?\n\nWho are you?\n/clear\nWho are you?\n/exit\nWho are you?\n")
    answers = result.out.decode().splitlines()
    assert result.status == 0
    assert answers[0] == answers[-1], "after /clear the first turn is the first again"
    assert answers[0].strip()
    said = result.err.decode().splitlines()
    assert len(said) == 3
    assert said[0].startswith("the model has no chat template: turns are plain")
    assert " reused)" in said[1]


def test_cnv_and_i_make_generate_a_chat_and_p_is_its_first_turn() -> None:
    alone = chat("-n", "3", text="Who are you?\n")
    for flag in ("-cnv", "-i"):
        result = run("generate", "-m", DEMO, "-n", "3", "--temp", "0", flag, "-p", "Who are you?")
        assert (result.status, result.out) == (0, alone.out)


def test_a_template_lays_the_turns_out_and_a_pipe_gets_the_answer_alone(chatml: str) -> None:
    """No thought, tag, colour or word of the program's own may stand in what a script reads."""
    result = chat("--chat-template-file", chatml, *THINKS, "-n", "40", text="Hi\nHi\n")
    assert (result.status, result.out, result.err) == (0, b"hello\nhello\n", b"")
    built_in = chat("--chat-template", "chatml", "-v", text="Who are you?\n")
    plain = chat("-v", text="Who are you?\n")
    tokens = [re.search(r"prompt (\d+) tokens", r.err.decode()) for r in (built_in, plain)]
    assert tokens[0] and tokens[1] and int(tokens[0][1]) > int(tokens[1][1])
    assert b"no chat template" not in built_in.err


def test_reasoning_on_and_off_and_kwargs_reach_the_template(tmp_path: Path) -> None:
    """What the template was told is seen in how many tokens it wrote."""
    path = tmp_path / "tells.jinja"
    told = "{% if enable_thinking is defined %}{{ ('on ' if enable_thinking else 'off ') * 50 }}{% endif %}"
    path.write_text("{{ messages[0].content }}" + told + "{{ 'kind ' * (n or 0) }}")

    def tokens(*words: str) -> int:
        err = chat("--chat-template-file", str(path), "-v", *words, text="Hi\n").err.decode()
        found = re.search(r"prompt (\d+) tokens", err)
        assert found, err
        return int(found[1])

    auto, on, off = tokens(), tokens("--reasoning", "on"), tokens("--reasoning", "off")
    assert auto + 40 < on < off
    assert tokens("--reasoning-budget", "0") == off
    assert tokens("--chat-template-kwargs", '{"n": 60}') > auto + 50
    assert tokens("--jinja", "--reasoning-budget", "-1", "--reasoning", "auto") == auto


def test_a_budget_ends_thinking(chatml: str, tmp_path: Path) -> None:
    """The demo model never ends it: without a bound all that it writes is thought."""
    words = ("--chat-template-file", chatml, "--reasoning", "on", "-n", "20")
    for budget, thoughts in (("-1", 20), ("3", 3)):
        file = tmp_path / f"{budget}.json"
        result = chat(*words, "--reasoning-budget", budget, text=f"Hi\n/save {file}\n")
        reply = json.loads(file.read_text())["messages"][1]
        assert bool(reply["content"]) == (thoughts == 3) == bool(result.out.strip())
        assert 0 < len(reply["reasoning_content"].split()) <= thoughts


def test_several_lines_are_one_turn(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    chat(text=f'one \\\ntwo\n"""\nthree\n\n  four\n"""\n"""five\nsix"""\n/save {saved}\n')
    said = [m["content"] for m in json.loads(saved.read_text())["messages"] if m["role"] == "user"]
    assert said == ["one \ntwo", "three\n\n  four", "five\nsix"]
    unfinished = chat(text='"""\nWho are you?')
    assert unfinished.out.strip(), "the end of the pipe ends the turn as well"


def test_only_the_new_turn_is_computed(llm: mixkv.LLM) -> None:
    llm.reset()
    talk = Conversation(llm, chat_settings(ChatFlags()), SamplingParams(max_tokens=6, temperature=0.0), "A play.")
    talk.messages.append({"role": "user", "content": "Who are you?"})
    stream = talk.reply(talk.messages)
    first = "".join(delta.content for delta in stream)
    in_cache = len(llm.tokens)
    talk.messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And your sister?"}]
    second = talk.reply(talk.messages)
    assert next(second) and second.usage.cached_tokens == in_cache
    second.close()
    assert llm.tokenizer.decode(llm.tokens).startswith("A play.\n\nUser: Who are you?\nAssistant: ")


def test_a_turn_that_does_not_fit_says_what_to_do(llm: mixkv.LLM) -> None:
    talk = Conversation(llm, chat_settings(ChatFlags()), SamplingParams(max_tokens=6, temperature=0.0))
    with pytest.raises(InputError, match=r"have \d+ tokens, but the context holds 256: /undo takes back .* larger -c"):
        talk.reply([{"role": "user", "content": "very " * 300}])
    with pytest.raises(InputError, match="role"):  # not of the length: said as it is
        talk.reply([{"role": "bot", "content": "x"}])


def test_a_turn_that_does_not_fit_is_one_line_and_the_chat_goes_on(tmp_path: Path) -> None:
    """The turn is lost alone; what was said before it counts."""
    saved = tmp_path / "talk.json"
    words = f"Who?\n{'very ' * 100}\nWho are you?\n/save {saved}\n"
    result = chat("-n", "2", "-c", "64", text=words)
    assert result.status == 0
    assert "the context holds 64: /undo" in result.err.decode().splitlines()[0]
    assert len(result.out.splitlines()) == 2
    assert [m["role"] for m in json.loads(saved.read_text())["messages"]] == ["user", "assistant"] * 2


def test_a_reply_that_fills_the_context_says_so() -> None:
    """It ends in the middle of a word, and nobody knew why."""
    result = chat("-n", "-1", "-c", "64", "--ignore-eos", "-r", "nothing", text="Hi\n")
    assert "the context of 64 tokens is full: /undo takes back the last turn, /clear" in result.complaint
    assert chat("--ignore-eos", "-c", "64", text="Hi\n").err == b"", "-n is what the user asked for"


def test_a_turn_that_the_vocabulary_cannot_spell_is_not_the_end_of_the_chat(tmp_path: Path) -> None:
    """One stray control character in a pasted line ended everything with status 1."""
    metadata, tensors = tiny_llama()
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, "Ġ", "Ċ", "<|end|>", "he"]
    tokens += [f"unused{i}" for i in range(276 - len(tokens))]  # as many as the model has rows
    vocabulary = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")} | {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * 96 + [3] + [1] * (276 - 97), np.int32),
        "tokenizer.ggml.merges": ["h e"], "tokenizer.ggml.eos_token_id": 96, "tokenizer.ggml.bos_token_id": 96,
    }  # fmt: skip
    model = str(write_gguf(tmp_path / "letters.gguf", vocabulary, tensors))
    words = ("chat", "-m", model, "-n", "1", "--temp", "0", "-c", "128", "-r", "never")
    result = run(*words, text=b"hello\npress \x1d now\nhow are you\n")
    assert result.status == 0, result
    assert len(result.err.splitlines()) <= 1
    assert len(result.out.splitlines()) >= 2


def test_flags_that_do_not_fit_the_model_end_the_chat() -> None:
    """They are no matter of one turn: each would fail again."""
    for flags in (("-l", "999999+1"), ("--chat-template", "zephyrus")):
        result = chat(*flags, text="Hello\nHello\n")
        assert (result.status, result.out) == (2, b"")
        assert flags[1].partition("+")[0] in result.complaint


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (ChatFlags(chat_template="chatml", chat_template_file="x"), "both give the template"),
        (ChatFlags(chat_template_kwargs="{"), "--chat-template-kwargs: not JSON"),
        (ChatFlags(chat_template_kwargs="[]"), "give a JSON object"),
        (ChatFlags(reasoning="maybe"), "use on, off or auto"),
        (ChatFlags(reasoning_budget=-7), "--reasoning-budget -7"),
        (ChatFlags(reasoning_budget=0, reasoning="on"), "contradicts --reasoning on"),
    ],
)
def test_flags_that_make_no_sense(flags: ChatFlags, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chat_settings(flags)


def test_flags_that_a_chat_or_a_text_has_no_use_for() -> None:
    """Without a chat, a template changes nothing, and nobody should think it did."""
    text = run("generate", "-m", DEMO, "-n", "2", "-p", "Hi", "--chat-template", "chatml", "--reasoning", "off")
    assert text.status == 0
    assert [line.split(" has no effect")[0] for line in text.err.decode().splitlines()] == [
        "mixkv: --chat-template", "mixkv: --reasoning",
    ]  # fmt: skip
    assert "whose messages are text" in chat("--parse-special", text="Hi\n").complaint
    assert "-sp has no effect" in chat("-sp", text="Hi\n").complaint
    assert "No such file" in chat("--chat-template-file", "/none.jinja", text="Hi\n").complaint
