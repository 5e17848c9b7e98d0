"""`mixkv chat`: turns over a pipe, what it forgets and keeps, and that only the new turn is computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_process import DEMO, run
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.cli.chat import Conversation
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import InputError, MixkvError


@pytest.fixture(scope="module")
def llm() -> Iterator[mixkv.LLM]:
    yield mixkv.load(DEMO, n_ctx=256)


def talk(llm: mixkv.LLM, *, n: int = 6, stop: tuple[str, ...] = (), system: str = "") -> Conversation:
    llm.reset()
    params = SamplingParams(max_tokens=n, temperature=0.0, stop=stop)
    return Conversation(llm, system, params, parse_special=False)


def test_each_turn_is_answered_on_stdout_and_clear_forgets() -> None:
    words = ("chat", "-m", DEMO, "-n", "4", "--temp", "0", "-v")
    result = run(*words, text=b"Who are you?\n\nWho are you?\n/clear\nWho are you?\n/exit\nWho are you?\n")
    answers = result.out.decode().splitlines()
    assert result.status == 0
    assert answers[0] == answers[-1], "after /clear the first turn is the first again"
    assert answers[0].strip()
    assert len(result.err.decode().splitlines()) == 2
    assert " reused)" in result.err.decode()


def test_cnv_and_i_make_generate_a_chat_and_p_is_its_first_turn() -> None:
    chat = run("chat", "-m", DEMO, "-n", "3", "--temp", "0", text=b"Who are you?\n")
    for flag in ("-cnv", "-i"):
        result = run("generate", "-m", DEMO, "-n", "3", "--temp", "0", flag, "-p", "Who are you?")
        assert (result.status, result.out) == (0, chat.out)


def test_only_the_new_turn_is_computed(llm: mixkv.LLM) -> None:
    conversation = talk(llm)
    "".join(conversation.ask("Who are you?"))
    in_cache = len(llm.tokens)
    before = list(conversation.ids)
    "".join(conversation.ask("And your sister?"))
    assert conversation.last is not None
    assert conversation.last.stats.reused_tokens == in_cache
    assert conversation.ids[: len(before)] == before


def test_the_tokens_say_what_was_said(llm: mixkv.LLM) -> None:
    """No space, BOS or line end more or less between the turns, or the model reads another conversation."""
    conversation = talk(llm, system="A play.\n\n")
    first = "".join(conversation.ask("Who are you?"))
    second = "".join(conversation.ask("And you?"))
    said = f"A play.\n\nUser: Who are you?\nAssistant:{first}\nUser: And you?\nAssistant:{second}"
    assert llm.tokenizer.decode(conversation.ids).removeprefix(" ") + conversation._rest == said
    assert conversation.ids.count(llm.tokenizer.bos_id or 0) == 1


def test_an_answer_cut_within_a_token_goes_on_where_it_was_cut(llm: mixkv.LLM) -> None:
    whole = "".join(talk(llm).ask("Who are you?"))
    stop = whole[-3:]
    conversation = talk(llm, stop=(stop,))
    cut = "".join(conversation.ask("Who are you?"))
    assert cut == whole[: whole.index(stop)]
    "".join(conversation.ask("And?"))
    assert f"Assistant:{cut}\nUser: And?" in llm.tokenizer.decode(conversation.ids)


def test_the_next_turn_is_never_written_by_the_model(llm: mixkv.LLM) -> None:
    assert talk(llm).params.stop == ("\nUser:",)
    assert talk(llm, stop=("x",)).params.stop == ("x", "\nUser:")


def test_a_turn_that_does_not_fit_is_refused_and_the_conversation_lives(llm: mixkv.LLM) -> None:
    conversation = talk(llm)
    "".join(conversation.ask("Who are you?"))
    before = list(conversation.ids)
    with pytest.raises(InputError, match="the context holds 256: /clear starts over"):
        "".join(conversation.ask("very " * 300))
    assert conversation.ids == before
    assert "".join(conversation.ask("Who?"))


def test_a_turn_that_breaks_off_is_lost_alone(llm: mixkv.LLM) -> None:
    """What had been said before counts, half an answer does not: the next turn is answered as if it had not been."""
    conversation = talk(llm)
    "".join(conversation.ask("Who are you?"))
    before, last = list(conversation.ids), conversation.last
    broken = conversation.ask("And your sister?")
    next(broken)
    llm.generate("Something else", max_tokens=1)  # takes the stream's place
    with pytest.raises(MixkvError):
        "".join(broken)
    assert (conversation.ids, conversation.last) == (before, last)
    assert "".join(conversation.ask("Who?"))


def test_an_answer_whose_end_was_shown_goes_on_without_it(llm: mixkv.LLM) -> None:
    """With -sp the token that ends an answer is shown; as text it has no business in the next turn."""
    llm.reset()
    params = SamplingParams(max_tokens=3, temperature=0.0, skip_special_tokens=False, logit_bias={2: 1000.0})
    conversation = Conversation(llm, "", params, parse_special=False)
    assert "".join(conversation.ask("Who are you?")) == "</s>"
    assert conversation._rest == ""


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
    result = run("chat", "-m", DEMO, "-n", "2", "-l", "999999+1", text=b"Hello\nHello\n")
    assert (result.status, result.out) == (2, b"")
    assert "999999" in result.complaint


def test_a_turn_that_does_not_fit_is_one_line_and_the_chat_goes_on() -> None:
    result = run("chat", "-m", DEMO, "-n", "2", "-c", "64", text=b"very " * 100 + b"\nWho are you?\n")
    assert result.status == 0
    assert "the context holds 64" in result.complaint
    assert result.out.strip()
