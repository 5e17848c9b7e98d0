"""What callers may give as messages, tools and choices, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_cases import PLAIN, TURN, WEATHER, tokenizer

from mixkv.engine.chat.builtin import builtin_source, builtin_stops, names
from mixkv.engine.chat.constrain import checked_choice, constraint_options
from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.messages import Wants, checked_messages, checked_tools, shaped, short_id
from mixkv.engine.chat.reply import ChatMessage, ToolCall
from mixkv.engine.chat.template import ChatTemplate
from mixkv.kernels.errors import ConfigError, InputError, TemplateError


def user(content: object = "Hello", **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


def calls(*given: object) -> list[dict[str, object]]:
    return [user(), {"role": "assistant", "tool_calls": list(given)}]


WRONG: dict[str, tuple[Any, str]] = {
    "text": ("Hello", "messages must be a list"),
    "one message": (user(), "messages must be a list"),
    "none": (None, "messages must be a list"),
    "empty": ([], "messages is empty"),
    "texts": (["Hello"], "message 0 must be a dict .* not a str"),
    "no role": ([{"content": "x"}], "message 0 has the role None"),
    "a role that is a tag": ([user(), {"role": "user|><|system", "content": ""}], "message 1 has the role"),
    "no content": ([user(), {"role": "user"}], r"message 1 \(user\) has no content"),
    "a number": ([user(5)], r"message 0 \(user\): content must be text or a list of text parts, not a int"),
    "a picture": ([user([{"type": "image_url", "image_url": {}}])], "part of type 'image_url'"),
    "a part without text": ([user([{"type": "text"}])], "a part of the content"),
    "reasoning": ([user(), {"role": "assistant", "content": "", "reasoning": 5}], "reasoning must be text"),
    "calls": ([user(), {"role": "assistant", "tool_calls": "f()"}], "tool_calls must be a list, not a str"),
    "a call": (calls("f()"), "call 0 must be a dict"),
    "no name": (calls({"function": {"arguments": "{}"}}), "call 0 must have a function with a name"),
    "no JSON": (calls({"function": {"name": "f", "arguments": "{a: 1}"}}), "arguments are not JSON"),
    "no object": (calls({"function": {"name": "f", "arguments": "[1]"}}), "must be a JSON object, not a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_messages_are_named(case: str) -> None:
    """Whatever a template would have made of it, a KeyError or the word "None" in the prompt."""
    messages, said = WRONG[case]
    with pytest.raises(InputError, match=said) as caught:
        checked_messages(messages)
    assert "\n" not in str(caught.value)


WRONG_TOOLS: dict[str, tuple[Any, str]] = {
    "a dict": (WEATHER, "tools must be a list"),
    "a text": (["f"], "tool 0 must be a dict"),
    "another type": ([WEATHER, {"type": "web_search"}], "tool 1 is of type 'web_search'"),
    "no name": ([{"type": "function", "function": {"parameters": {}}}], "tool 0 must have a function with a name"),
    "parameters": ([{"name": "f", "parameters": []}], r"tool 0 \(f\): parameters must be a schema"),
}


@pytest.mark.parametrize("case", WRONG_TOOLS)
def test_wrong_tools_are_named(case: str) -> None:
    tools, said = WRONG_TOOLS[case]
    with pytest.raises(InputError, match=said):
        checked_tools(tools)


def test_what_is_given_stays_as_it_was() -> None:
    """Callers keep their messages, and give them again with the next turn."""
    messages = [dict(m) for m in TURN]
    shaped(checked_messages(messages), Wants(parts=True, text_arguments=True, short_ids=True))
    assert messages == TURN


def test_replies_may_stand_among_messages() -> None:
    """A ChatMessage is what `chat` returned: it goes into the next turn as it is."""
    reply = ChatMessage(None, "They ask.", (ToolCall("abc", "get_weather", '{"city": "Paris"}'),))
    done = shaped(checked_messages([PLAIN[0], reply, {"role": "tool", "tool_call_id": "abc", "content": "4"}]), Wants())
    assert done[1]["content"] == "" and done[1]["reasoning_content"] == "They ask."
    assert done[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert done[2]["name"] == "get_weather", "the result says whose it is"
    assert shaped(checked_messages([PLAIN[0], reply]), Wants(null=True))[1]["content"] is None


def test_calls_and_tools_in_their_short_forms() -> None:
    """Functions without the wrapping that OpenAI's API has around them; empty arguments; no tools."""
    (_, message) = checked_messages(calls({"name": "f", "arguments": ""}))
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert checked_tools([WEATHER["function"]]) == [WEATHER]
    assert checked_tools([]) is None and checked_tools(None) is None
    assert short_id("abcdefghi") == "abcdefghi"
    assert len(short_id("call_1")) == 9 and short_id("call_1") == short_id("call_1") != short_id("call_2")


def test_what_may_be_chosen() -> None:
    """A tool that is not there, or calls without tools, would hold the model to nothing."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert checked_choice(None, [WEATHER]) == "auto" and checked_choice("none", None) == "none"
    assert checked_choice("required", [WEATHER]) == "required"
    assert checked_choice("get_weather", [WEATHER]) == named == checked_choice(named, [WEATHER])
    for choice, tools, said in (
        ("required", None, "there are no tools"), ("any", [WEATHER], "the tools are get_weather"),
        ({"type": "function", "function": {"name": "f"}}, [WEATHER], "the tools are get_weather"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            checked_choice(choice, tools)  # type: ignore[arg-type]


def test_what_a_response_format_asks_for() -> None:
    """Both of OpenAI's shapes of a schema; an unknown one is an error, not ignored."""
    plain, schema = ReplyFormat(), {"type": "object", "properties": {"a": {"type": "integer"}}}

    def held(given: dict[str, Any] | None, tools: list[dict[str, Any]] | None = None, choice: str = "auto") -> object:
        return constraint_options(plain, tools, choice, given, {})

    assert held(None) == held({"type": "text"}) == {}
    assert held({"type": "json_object"}) == {"json_schema": {"type": "object"}}
    assert held({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}) == {"json_schema": schema}
    assert held({"type": "json_schema", "schema": schema}) == {"json_schema": schema}
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: held({"type": "json_schema"}), "expected"),
        (lambda: held({"type": "yaml"}), '"type" must be'),
        (lambda: held({"type": "json_object"}, [WEATHER]), "no room for calls"),
        (lambda: held({"type": "json_object"}, [WEATHER], "required"), "give one of them"),
    ]
    for ask, said in wrong:
        with pytest.raises(InputError, match=said):
            ask()


TWO_TURNS: dict[str, str] = {
    "plain": "S\n\nUser: A\nAssistant: B\nUser: C\nAssistant:",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
              "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] B </s><s>[INST] C [/INST]",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
              "A<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n"
             "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nA<|end|>\n<|assistant|>\nB<|end|>\n<|user|>\nC<|end|>\n<|assistant|>\n",
    "mistral": "[INST] S\n\nA[/INST] B</s>[INST] C[/INST]",
    "mistral-v7": "[SYSTEM_PROMPT] S[/SYSTEM_PROMPT][INST] A[/INST] B</s>[INST] C[/INST]",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nA</s>\n<|assistant|>\nB</s>\n<|user|>\nC</s>\n<|assistant|>\n",
    "deepseek3": "S\n\n<\uff5cUser\uff5c>A<\uff5cAssistant\uff5c>B</s><\uff5cUser\uff5c>C<\uff5cAssistant\uff5c>",
}  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_built_in_templates(name: str) -> None:
    """The formats as their models were trained on them; each has all that was said, in order, and turns go on."""
    chosen = ChatTemplate(builtin_source(name), tokenizer())
    said = [{"role": "system", "content": "S"}, user("A"), {"role": "assistant", "content": "B"}, user("C")]
    text = chosen.render(said).text
    if name in TWO_TURNS:
        assert text.removeprefix("<s>") == TWO_TURNS[name]
    places = [text.index(mark) for mark in ("S", "A", "B", "C") if text.count(mark) == 1]
    assert places == sorted(places)
    assert text.startswith(chosen.render(said, add_generation_prompt=False).text)
    assert chosen.render(said[:2]).text == text[: len(chosen.render(said[:2]).text)], "the next turn goes on from this"


def test_the_built_in_gemma_and_chatml_are_the_published_ones(shared: Any) -> None:
    """Against the models' own templates."""
    for name, published in (("gemma", "google-gemma-2-2b-it"), ("chatml", "Qwen-Qwen3-0.6B")):
        own = ChatTemplate((shared / "data" / "templates" / f"{published}.jinja").read_text("utf-8"), tokenizer())
        calm = [user(), {"role": "assistant", "content": "Hi."}, user("Bye")]
        assert ChatTemplate(builtin_source(name), tokenizer()).render(calm).text == own.render(calm).text


def test_replies_end_where_no_token_ends_them() -> None:
    """Without the token the tag is text, and without a tag the model writes the user's next turn itself."""
    assert builtin_stops("plain", ()) == ("\nUser:",)
    assert builtin_stops("chatml", ()) == ("<|im_end|>",)
    assert builtin_stops("chatml", ("<|im_end|>",)) == ()
    assert builtin_stops("mistral", ()) == ()
    with pytest.raises(ConfigError, match="no chat template 'nothing'"):
        builtin_source("nothing")


def test_a_message_that_goes_on() -> None:
    """Trimmed or not, the prompt ends where the message does; what the template puts behind it is left out."""
    said = [user("A"), {"role": "assistant", "content": "Well, "}]
    for name in ("chatml", "gemma", "llama2", "mistral"):
        chosen = ChatTemplate(builtin_source(name), tokenizer())
        asked = chosen.render(said[:1]).text
        text = chosen.render(said, continue_final_message=True).text
        assert text.startswith(asked) and text[len(asked) :].lstrip() == "Well, ", name
        assert chosen.prompt(said, continue_final_message=True).opening.endswith("Well, ")
    thinks = (
        "{% for m in messages %}{{ m.role }}:{% if m.thinking %}<t>{{ m.thinking }}</t>{% endif %}{{ m.content }}\n"
    )
    chosen = ChatTemplate(thinks + "{% endfor %}", tokenizer())
    half = [user("A"), {"role": "assistant", "content": "", "reasoning": "They"}]
    assert chosen.render(half, continue_final_message=True).text == "user:A\nassistant:<t>They"
    with pytest.raises(InputError, match="the last message must be the assistant's"):
        chosen.render(said[:1], continue_final_message=True)
    loses = ChatTemplate("{% for m in messages %}{{ m.content | length }}{% endfor %}", tokenizer())
    with pytest.raises(TemplateError, match="cannot be continued"):
        loses.render(said, continue_final_message=True)


def test_whether_thinking_is_open() -> None:
    """A prompt that ends within a thought begins the reply there; the user's words about it do not count."""
    tags = ("<think>", "</think>")
    asks = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:"
    for end, is_open in (("", False), ("<think>\n", True), ("<think></think>", False), ("</think>", False)):
        chosen = ChatTemplate(asks + end + "{% endif %}", tokenizer())
        prompt = chosen.prompt([user("Say <think>!")])
        assert prompt.is_open(tags) is is_open and prompt.opening == "bot:" + end.rstrip("\n") + "\n" * end.count("\n")
        always = ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}bot:" + end + "|", tokenizer())
        assert always.prompt([user("Say <think>!")]).is_open(tags) is is_open, "whatever add_generation_prompt says"
    assert not prompt.is_open(None)
