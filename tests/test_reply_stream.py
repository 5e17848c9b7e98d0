"""What a client sees while a reply comes: thoughts, arguments and text at once, tags never."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reply_cases import J_WEATHER, OBJECTS
from reply_tools import TOOLS, format_named, joined, parse

from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.parser import ReplyParser
from mixkv.engine.chat.table import TABLE, THINKING
from mixkv.engine.chat.values import GEMMA, JSON, PYTHON, to_json

HERMES = format_named("hermes")


def call(arguments: str, name: str = "get_weather") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def test_arguments_come_as_they_are_written() -> None:
    """A long argument, a file's text, would come in one piece at the end, after minutes of silence."""
    parser = ReplyParser(HERMES, tools=TOOLS)
    text = call(J_WEATHER)
    start = text.index(J_WEATHER)
    seen = ""
    for i, character in enumerate(text):
        for delta in parser.feed(character).tool_calls:
            assert (delta.name, delta.index) == ("get_weather" if not seen else None, 0)
            seen += delta.arguments
        if i < start:
            assert not seen
        elif character not in "\\0123456789" and not "true".startswith(character):
            assert J_WEATHER.startswith(seen) and len(seen) >= min(i + 1 - start, len(J_WEATHER)) - len("true")
    assert seen == J_WEATHER


def test_a_parameter_s_text_comes_as_it_is_written() -> None:
    """A file's text as a parameter between tags, which becomes a JSON string on the way."""
    parser = ReplyParser(format_named("qwen-coder"), tools=TOOLS)
    parser.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\n")
    assert parser.feed('one "two"').tool_calls[0].arguments == 'one \\"two\\"'
    assert not parser.feed("\n")
    assert parser.feed("three").tool_calls[0].arguments == "\\nthree"
    assert not parser.feed("\n</param")
    assert parser.feed("s>").tool_calls[0].arguments == "\\n</params>"
    parser.feed("\n</parameter>\n</function>\n</tool_call>")
    assert json.loads(parser.message().tool_calls[0].arguments) == {"city": 'one "two"\nthree\n</params>'}


@pytest.mark.parametrize(
    ("pieces", "seen"),
    [
        (["a", "<", "b"], ["a", "", "<b"]),
        (["a <tool", "_cal", "l", "er>"], ["a", "", "", " <tool_caller>"]),
        (["a", " ", "\n", "b"], ["a", "", "", " \nb"]),
        (["<thin", "g>"], ["", "<thing>"]),
        (["< think>", "x"], ["< think>", "x"]),
        (["5 <", " 6", " < 7"], ["5", " < 6", " < 7"]),
    ],
)
def test_text_waits_only_as_long_as_it_may_be_a_tag(pieces: list[str], seen: list[str]) -> None:
    """Text that waits longer than it must makes a stream stutter; a tag's half that does not wait is shown."""
    parser = ReplyParser(HERMES, tools=TOOLS)
    assert [parser.feed(piece).content for piece in pieces] == seen
    parser.finish("stop")
    assert parser.message().content == "".join(pieces)


@pytest.mark.parametrize("text", ["", " ", "\n\n", " a ", "a\n", "\n a", "a\n\nb \n"])
def test_spaces_of_a_text_without_tags_stay(text: str) -> None:
    """Spaces beside tags belong to those; where there is none they are the text's own."""
    for format in (ReplyFormat(), HERMES):
        assert parse(format, list(text))[0].content == text


@pytest.mark.parametrize("tags", [*THINKING, *(row.thinking for row in TABLE if row.thinking)], ids=str)
def test_thoughts_are_no_content(tags: tuple[str, str]) -> None:
    """Thoughts in the content; a tag's half in the thoughts."""
    begin, end = tags
    format = ReplyFormat(thinking=tags)
    text = f"Hm. {begin[0]} {end[:-1]} <b>"
    for reply, opened in ((f"{begin}\n{text}\n{end}\n\nYes.", False), (f"\n{text}\n{end}\n\nYes.", True)):
        message, deltas = parse(format, list(reply), thinking_open=opened)
        assert (message.reasoning, message.content) == (text, "Yes.")
        assert joined(deltas) == message
    message, _ = parse(format, [f"{begin}\n{text}{end}Yes."], thinking_open=True)
    assert (message.reasoning, message.content) == (text, "Yes."), "opened by the prompt and the model"


@pytest.mark.parametrize("half", ["<", "</", "</think", "</think\n"])
def test_thoughts_that_do_not_end_lose_nothing(half: str) -> None:
    """A reply that has no more tokens in the middle of the tag."""
    for finish_reason in ("length", "stop"):
        message, deltas = parse(HERMES, list("<think>Hm. " + half), finish_reason=finish_reason)
        assert (message.reasoning, message.content) == ("Hm. " + half, "")
        assert deltas[-1].finish_reason == finish_reason


def test_tags_of_thoughts_within_a_text_are_text() -> None:
    """An answer about the tag `<think>` would end where it names it."""
    text = "The tag <think> begins thoughts, </think> ends them."
    assert parse(HERMES, [text])[0].content == text


def test_a_call_that_was_only_thought_of_is_none() -> None:
    """A model that weighs a call in its thoughts has not made it."""
    message, _ = parse(HERMES, [f"<think>I could {OBJECTS[0]} or {call('{}')}</think>No."])
    assert (message.content, message.tool_calls) == ("No.", ())


def test_thoughts_between_calls_are_thoughts() -> None:
    """Models that think again after a call; their thoughts, and their texts, stand apart."""
    text = f"<think>One.</think>First.{call('{}')}<think>Two.</think>Second.{call('{}')}\nThird."
    message, deltas = parse(HERMES, [text])
    assert (message.reasoning, message.content) == ("One.\n\nTwo.", "First.\n\nSecond.\n\nThird.")
    assert len(message.tool_calls) == 2 and joined(deltas) == message


@pytest.mark.parametrize(
    ("arguments", "kept", "rest"),
    [
        ('{"city": oops}', '{"city": ', "oops}}</tool_call>"),
        ('{"city": "a",}', '{"city": "a",', "}}</tool_call>"),
        ('{"city": "a" "b"}', '{"city": "a" ', '"b"}}</tool_call>'),
        ('{"city": "a"}, "why": 3', '{"city": "a"}', ', "why": 3}</tool_call>'),
        ('{"city": "a"}}', '{"city": "a"}', "}</tool_call>"),
        ("{" + '"a": {' * 70, "{" + '"a": {' * 63 + '"a": ', "{" + '"a": {' * 6 + "}</tool_call>"),
    ],
)
def test_a_call_that_goes_wrong_later_stays_as_far_as_it_was_right(arguments: str, kept: str, rest: str) -> None:
    """Its name and the beginning are told already: what follows is content, and no argument is made up."""
    message, deltas = parse(HERMES, list(call(arguments)))
    assert [c.arguments for c in message.tool_calls] == [kept] and message.content == rest
    assert joined(deltas) == message


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ('{"city": "one\ntwo\t"}', {"city": "one\ntwo\t"}),
        (r'{"city": "\d+ it\'s \u00fc \q"}', {"city": r"\d+ it's ü \q"}),
        (r'{"city": "\u12 \ud83d\ude00"}', {"city": "\\u12 😀"}),
        ('{ "city" :\n"a" }', {"city": "a"}),
        ('"{\\"city\\": \\"a\\"}"', {"city": "a"}),
        ("null", {}),
        ('{"city": "' + "x" * 100_000 + '"}', {"city": "x" * 100_000}),
    ],
)
def test_arguments_that_are_nearly_json_become_json(arguments: str, meant: dict[str, Any]) -> None:
    """Line breaks in strings, a regex's backslashes, an object within a string: clients could not read the call."""
    message, deltas = parse(HERMES, [call(arguments)])
    assert [json.loads(c.arguments) for c in message.tool_calls] == [meant] and message.content is None
    assert joined(deltas) == message


@pytest.mark.parametrize(
    ("schema", "text", "meant"),
    [
        ({"type": "string"}, "3", "3"),
        ({}, "3", "3"),
        (None, "true", "true"),
        ({"type": "integer"}, "3", 3),
        ({"type": "number"}, " 2.5\n", 2.5),
        ({"type": "integer"}, "three", "three"),
        ({"type": "boolean"}, "True", True),
        ({"type": "null"}, "None", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "3", "3"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3", 3),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3 days", "3 days"),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"enum": [1, 2]}, "1", 1),
        ({"$ref": "#/$defs/n"}, "4", 4),
        ({"type": "object"}, "{'a': [1, None, True], 'b': \"it's\"}", {"a": [1, None, True], "b": "it's"}),
        ({"type": "array"}, '["a", "b"]', ["a", "b"]),
        ({"type": "object"}, '{"a": 1', '{"a": 1'),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
    ],
)
def test_parameters_have_the_schema_s_types(schema: Any, text: str, meant: Any) -> None:
    """A number that comes as a string, or a house number that comes as a number, breaks the caller's function."""
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": {"n": {"type": "integer"}}}
    if schema is None:
        del parameters["properties"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    reply = f"<tool_call>\n<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>"
    message, _ = parse(format_named("qwen-coder"), [reply], tools)
    assert json.loads(message.tool_calls[0].arguments) == {"x": meant}


@pytest.mark.parametrize(
    ("dialect", "text", "meant"),
    [
        (PYTHON, r"'it\'s \x41 \u00fc \U0001f600 \n \q'", "it's A ü 😀 \n \\q"),
        (PYTHON, "[1, 'a', {'b': None},]", [1, "a", {"b": None}]),
        (PYTHON, "{1: 2}", ...),
        (GEMMA, '{a:<|"|>x"y\\n<|"|>,b:[1,true],<|"|>c d<|"|>:null}', {"a": 'x"y\\n', "b": [1, True], "c d": None}),
        (JSON, "[1,]", ...),
        (JSON, "01", ...),
        (JSON, "NaN", ...),
        (JSON, "'a'", ...),
        (JSON, "1 2", ...),
        (JSON, "", ...),
        (JSON, "[" * 60 + "]" * 60, json.loads("[" * 60 + "]" * 60)),
        (JSON, "[" * 70 + "]" * 70, ...),
    ],
)
def test_values_of_other_languages_become_json(dialect: Any, text: str, meant: Any) -> None:
    """`None` for null, single quotes, keys without any: what models write where their format is no JSON."""
    found = to_json(text, dialect)
    assert (json.loads(found) if found is not None else ...) == meant


def test_ids_differ_and_come_again_the_same() -> None:
    """Two calls with one id get each other's results; ids by chance make tests and caches differ from run to run."""
    text = call("{}") * 2 + call("{}", "ping")

    def ids(seed: str) -> list[str]:
        parser = ReplyParser(HERMES, tools=TOOLS, seed=seed)
        parser.feed(text)
        parser.finish("stop")
        return [call.id for call in parser.message().tool_calls]

    assert ids("a") == ids("a") and len({*ids("a"), *ids("b")}) == 6
    assert all(len(id) == 9 and id.isalnum() for id in ids("a")), "what Mistral's templates insist on"
    twice = '[TOOL_CALLS]ping[CALL_ID]x[ARGS]{"host": "a"}' * 2
    message, _ = parse(format_named("mistral"), [twice])
    assert message.tool_calls[0].id == "x" != message.tool_calls[1].id


def test_why_a_reply_ended() -> None:
    """A client runs tools where the reply says so; one that was cut off by its length has not finished its call."""
    for reason, told in (("stop", "tool_calls"), ("length", "length"), ("interrupted", "interrupted")):
        assert parse(HERMES, [call("{}")], finish_reason=reason)[1][-1].finish_reason == told
    message, deltas = parse(HERMES, [call('{"city": "Zür')[: -len("}</tool_call>")]], finish_reason="length")
    assert message.tool_calls[0].arguments == '{"city": "Zür' and deltas[-1].finish_reason == "length"
