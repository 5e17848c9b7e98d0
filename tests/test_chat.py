"""llm.chat and chat_stream: replies, what of a conversation is computed, and where templates come from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_cases import CALL, CHATML, GREEDY, HELLO, TAGS, WEATHER, Begin, Script, chat_model, computed, ten_turns

import mixkv
from mixkv.engine.chat.reply import ChatDelta


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat") / "chat.gguf", CHATML, TAGS)


@pytest.fixture
def llm(path: Path) -> Iterator[mixkv.LLM]:
    with mixkv.load(path) as loaded:
        yield loaded


def say(llm: mixkv.LLM, messages: list[Any], text: str, **options: Any) -> mixkv.ChatCompletion:
    end = llm.tokenizer.token_to_id("<|im_end|>")
    return llm.chat(messages, processors=[Script(llm.tokenizer, text, end)], **options)


def test_a_reply_with_thoughts_content_and_calls(llm: mixkv.LLM) -> None:
    """Tags are control tokens, which a text without them does not show; the one that ends the turn is no content."""
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    reply = say(llm, HELLO, f"<think>\nhm\n</think>\n\nhello!\n{call}", tools=[WEATHER])
    assert reply.message.content == "hello!" and reply.message.reasoning == "hm"
    assert [(c.name, json.loads(c.arguments)) for c in reply.message.tool_calls] == [("get_weather", {"city": "Paris"})]
    assert reply.finish_reason == "tool_calls" and reply.message.role == "assistant"
    assert reply.usage.completion_tokens == reply.stats.generated_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    again = [*HELLO, reply.message, {"role": "tool", "tool_call_id": reply.message.tool_calls[0].id, "content": "21"}]
    assert "get_weather" in llm.apply_chat_template(again, tools=[WEATHER])


def test_what_a_stream_brings_is_the_whole(llm: mixkv.LLM) -> None:
    """Deltas in any number: put together they are the message of `chat`."""
    text = '<think>a\nb</think>hello <tool_call>{"name": "get_weather", "arguments": {"city": "é"}}</tool_call>'
    whole = say(llm, HELLO, text, tools=[WEATHER])
    stream = llm.chat_stream(
        HELLO, tools=[WEATHER], processors=[Script(llm.tokenizer, text, llm.tokenizer.token_to_id("<|im_end|>"))]
    )
    deltas = list(stream)
    assert "".join(d.content for d in deltas) == whole.message.content
    assert "".join(d.reasoning for d in deltas) == whole.message.reasoning
    pieces = [c for d in deltas for c in d.tool_calls]
    assert (pieces[0].id, pieces[0].name) == (whole.message.tool_calls[0].id, "get_weather")
    assert "".join(c.arguments for c in pieces) == whole.message.tool_calls[0].arguments
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["tool_calls"] == [stream.finish_reason]
    assert all(deltas) and len(deltas) > 8 and stream.message == whole.message
    assert stream.usage.prompt_tokens == whole.usage.prompt_tokens and stream.stats.generated_tokens > 0
    assert list(stream) == []


def test_thinking_that_the_prompt_has_opened(llm: mixkv.LLM) -> None:
    """The reply begins within a thought; switched off, the prompt has closed it, and all is content."""
    on = say(llm, HELLO, "hm\n</think>\n\nhello", enable_thinking=True)
    assert (on.message.reasoning, on.message.content, on.finish_reason) == ("hm", "hello", "stop")
    off = say(llm, HELLO, "hello", enable_thinking=False)
    assert (off.message.reasoning, off.message.content) == (None, "hello")
    cut = llm.chat(HELLO, enable_thinking=True, max_tokens=3, processors=[Script(llm.tokenizer, "hmmmm")])
    assert (cut.message.reasoning, cut.message.content, cut.finish_reason) == ("hmm", "", "length")


def test_thinking_is_closed_when_its_budget_is_used_up(llm: mixkv.LLM) -> None:
    """Opened by the prompt or by the model; a thought that ends before, and a reply without one, are left alone."""
    close = llm.tokenizer.token_to_id("</think>")
    for begin, options in (("", {"enable_thinking": True}), ("<think>", {})):
        script = Begin(llm.tokenizer, f"{begin}hmmmmmm")
        script._ids = script._ids[: len(llm.tokenizer.encode(f"{begin}hmm", add_special=False, parse_special=True))]
        reply = llm.chat(HELLO, thinking_budget=3, processors=[script], **GREEDY, **options)
        assert reply.message.reasoning == "hmm" and llm.tokens.count(close) >= 1
    longer = say(llm, HELLO, "<think>hm</think>hello hello", thinking_budget=2)
    assert (longer.message.reasoning, longer.message.content) == ("hm", "hello hello")
    none = llm.chat(HELLO, thinking_budget=0, processors=[Begin(llm.tokenizer, "<think>")], **GREEDY)
    assert none.message.reasoning is None
    assert say(llm, HELLO, "hello hello", thinking_budget=0).message.content == "hello hello"
    with pytest.raises(mixkv.InputError, match="thinking_budget is -1"):
        llm.chat(HELLO, thinking_budget=-1)


def test_an_early_end_keeps_what_there_is(llm: mixkv.LLM) -> None:
    """Stop strings are of the text; a stream that is closed gives its place back."""
    reply = say(llm, HELLO, "hello world", stop=["wor"])
    assert (reply.message.content, reply.finish_reason) == ("hello ", "stop")
    stream = llm.chat_stream(HELLO, **GREEDY)
    next(stream)
    stream.close()
    assert list(stream) == [] and stream.finish_reason is None
    assert llm.chat(HELLO, **GREEDY).usage.cached_tokens > 0


def test_special_tokens_of_a_reply_are_not_lost(llm: mixkv.LLM) -> None:
    """A tag that is no tag here is content: nothing that the model wrote may vanish."""
    assert say(llm, HELLO, "a<|im_start|>b").message.content == "a<|im_start|>b"
    assert say(llm, HELLO, "<tool_call>x").message.content == "<tool_call>x"


@pytest.mark.parametrize("template", [None, "chatml", "gemma", "mistral", "vicuna"])
def test_ten_turns_compute_each_turn_once(template: str | None) -> None:
    """Encoding a reply anew gives other tokens than were sampled: all behind the first was computed again each turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mixkv.MixkvWarning)
        with mixkv.load(n_ctx=2048) as llm:
            replies = ten_turns(llm, chat_template=template, **GREEDY)
            longest = max(
                len(llm.tokenizer.encode(f"<|im_end|>\n<|im_start|>user\nThis is question number {i}: what comes next?"
                                         "<|im_end|>\n<|im_start|>assistant\n")) for i in range(10)
            )  # fmt: skip
            assert all(n <= longest + 8 for n in computed(replies)[1:]), computed(replies)
            for before, after in pairwise(replies):
                kept = before.usage.prompt_tokens + before.usage.completion_tokens - 8
                assert after.usage.cached_tokens >= kept, "the reply's own tokens are kept as they were"
            llm.reset()
            again = ten_turns(llm, chat_template=template, **GREEDY)
            assert [r.message for r in again] == [r.message for r in replies]
            assert computed(again) == computed(replies)


def test_old_thoughts_that_a_template_drops_are_computed_from_there(tmp_path: Path) -> None:
    """Templates leave thoughts out of what was said before: the cache counts up to the first difference."""
    thoughts = "{% if loop.last and m.thinking %}<think>{{ m.thinking }}</think>{% endif %}"
    drops = CHATML.replace("{{ m.content }}", thoughts + "{{ m.content }}")
    with mixkv.load(chat_model(tmp_path / "drops.gguf", drops, TAGS)) as llm:
        first = say(llm, HELLO, "<think>hm hm</think>hello")
        assert first.message.reasoning == "hm hm"
        after = llm.chat([*HELLO, first.message, *HELLO], **GREEDY)
        assert after.usage.cached_tokens == first.usage.prompt_tokens


def test_exact_and_no_reuse_take_the_tokens_of_the_text(path: Path) -> None:
    """A prompt that depends on what was said before would break their promise: its text alone counts."""
    prompts = {}
    for reuse in ("on", "exact", "off"):
        with mixkv.load(path, prefix_reuse=reuse) as llm:
            byte = llm.tokenizer.token_to_id("<0x68>")
            script = Script(llm.tokenizer, "hello", llm.tokenizer.token_to_id("<|im_end|>"))
            assert byte is not None and script._ids[0] != byte
            script._ids[0] = byte  # the same letter, spelled as a byte
            reply = llm.chat(HELLO, processors=[script])
            assert reply.message.content == "hello"
            llm.chat([*HELLO, reply.message, *HELLO], max_tokens=1, temperature=0)
            prompts[reuse] = byte in llm.tokens
    assert prompts == {"on": True, "exact": False, "off": False}


def test_a_chat_without_a_template_says_so_once() -> None:
    """The demo model's file has none: plain turns, as `mixkv chat` has them, and one line about it."""
    with mixkv.load(n_ctx=512) as llm:
        with pytest.warns(mixkv.MixkvWarning, match="has no chat template: chats are plain turns") as told:
            reply = llm.chat(HELLO, max_tokens=40, seed=1)
            text = llm.apply_chat_template([{"role": "system", "content": "S"}, *HELLO])
        assert len(told) == 1 and "\n" not in str(told[0].message) and told[0].filename == __file__
        assert text == "<s>S\n\nUser: hello\nAssistant:"
        assert reply.message.content and not reply.message.content.startswith(" ")
        assert "User:" not in reply.message.content
        ids = llm.apply_chat_template(HELLO, tokenize=True)
        assert ids == llm.tokenizer.encode("User: hello\nAssistant:") and reply.usage.prompt_tokens == len(ids)


def test_templates_of_the_file_and_of_the_caller(tmp_path: Path) -> None:
    """Files may hold several, by name; one of them is for tools. A caller's comes as a name, a text or a path."""
    named = {"tokenizer.chat_template.tool_use": "T{{ tools | length }}", "tokenizer.chat_template.short": "S"}
    with mixkv.load(chat_model(tmp_path / "named.gguf", "D{{ bos_token }}", **named)) as llm:
        assert llm.apply_chat_template(HELLO) == "D<s>"
        assert llm.apply_chat_template(HELLO, tools=[WEATHER]) == "T1"
        assert llm.apply_chat_template(HELLO, chat_template="short") == "S"
        assert llm.apply_chat_template(HELLO, tools=[WEATHER], chat_template="default") == "D<s>"
        assert llm.apply_chat_template(HELLO, chat_template="{{ x }}", chat_template_kwargs={"x": 5}) == "5"
        assert llm.apply_chat_template(HELLO, chat_template="zephyr").startswith("<|user|>\nhello")
        (tmp_path / "own.jinja").write_text("P{{ messages[0].content }}")
        assert llm.apply_chat_template(HELLO, chat_template=tmp_path / "own.jinja") == "Phello"
        with pytest.raises(mixkv.ConfigError, match="'zephyrus': known are default, tool_use"):
            llm.apply_chat_template(HELLO, chat_template="zephyrus")
        with pytest.raises(mixkv.InputError, match=r"none.jinja cannot be read: No such file"):
            llm.apply_chat_template(HELLO, chat_template=tmp_path / "none.jinja")
        with pytest.raises(mixkv.ConfigError, match="must be a name"):
            llm.apply_chat_template(HELLO, chat_template=5)  # type: ignore[call-overload]


def test_the_text_and_the_ids_of_a_prompt(llm: mixkv.LLM) -> None:
    """With and without what asks for a reply; ids are what `chat` feeds."""
    asked, text = llm.apply_chat_template(HELLO), llm.apply_chat_template(HELLO, add_generation_prompt=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n" and asked == text + "<|im_start|>assistant\n"
    ids = llm.apply_chat_template(HELLO, tokenize=True)
    llm.chat(HELLO, max_tokens=1)
    assert llm.tokens == ids and ids[0] == 1 and ids.count(1) == 1
    half = [*HELLO, {"role": "assistant", "content": "Well"}]
    assert llm.apply_chat_template(half, continue_final_message=True) == asked + "Well"
    reply = say(llm, half, ", hello", continue_final_message=True)
    assert reply.message.content == ", hello"


def test_tools_that_a_template_does_not_show(llm: mixkv.LLM) -> None:
    """The model would never hear of them, and the caller wait for calls."""
    with pytest.warns(mixkv.MixkvWarning, match=r"the chat template \(gemma\) does not show tools") as told:
        llm.chat(HELLO, tools=[WEATHER], chat_template="gemma", max_tokens=1)
    assert told[0].filename == __file__
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    none = say(llm, HELLO, call, tools=[WEATHER], tool_choice="none")
    assert none.message.content == call and none.finish_reason == "stop"


def test_mistakes_lose_nothing(llm: mixkv.LLM) -> None:
    """A wrong message, an option that is not there, a template that fails: the conversation goes on from the cache."""
    first = say(llm, HELLO, "hello")
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (mixkv.InputError, "has the role 'bot'", {"messages": [{"role": "bot", "content": ""}]}),
        (mixkv.ConfigError, "did you mean temperature", {"temprature": 1}),
        (mixkv.TemplateError, "is undefined", {"chat_template": "{{ nothing.there }}"}),
        (mixkv.InputError, "may not set 'messages'", {"chat_template_kwargs": {"messages": []}}),
        (mixkv.InputError, "tokens, but the context holds", {"messages": [{"role": "user", "content": "x" * 4000}]}),
        (mixkv.InputError, "tool_choice", {"tool_choice": "required"}),
    ]
    for error, said, options in wrong:
        with pytest.raises(error, match=said):
            llm.chat(options.pop("messages", HELLO), **options)
    assert say(llm, [*HELLO, first.message, *HELLO], "x").usage.cached_tokens >= first.usage.prompt_tokens


def test_no_delta_is_empty_and_the_last_says_why(llm: mixkv.LLM) -> None:
    """Bytes of half a character bring nothing to show."""
    deltas = list(llm.chat_stream(HELLO, processors=[Script(llm.tokenizer, "é" * 5)]))
    assert all(deltas) and deltas[-1] == ChatDelta(finish_reason="stop")


def test_the_calls_of_two_replies_have_different_ids(llm: mixkv.LLM) -> None:
    """Results are matched to calls by id: two calls of one conversation must not share one."""
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    first = say(llm, HELLO, call, tools=[WEATHER]).message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": first.id, "content": "21"}
    second = say(llm, [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, result], call, tools=[WEATHER])
    assert second.message.tool_calls[0].id != first.id
    assert say(llm, HELLO, call, tools=[WEATHER]).message.tool_calls[0].id == first.id, "the same again is the same"
