"""Grammars that force calls: what a format's model writes is allowed, what is no call of the tools is not."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from reply_cases import CASES
from reply_tools import TOOLS, WEATHER, Case, format_named

from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.table import TABLE
from mixkv.kernels.errors import ConfigError

SPECIAL = re.compile(r"<\|[^|>]+\|>|<｜[^>]+｜>|\[[A-Z_]+\]|</?tool_call>|<tool_call\|>|<\|tool_call>|<\|\"\|>")
OTHERWISE = {
    "qwen-coder-bare": "the tag before it is left out",
    "llama-python-tag": "the second way, after the bare object",
    "llama-builtin": "the third",
    "llama-semicolon": "more than one",
    "lfm-json": "asked for in words only",
    "functionary-v3.2": "a text before it",
    **dict.fromkeys(("hermes-fence", "hermes-tools", "hermes-bare"), "other tags, or none"),
    **dict.fromkeys(
        (
            "hermes-list",
            "hermes-brace",
            "hermes-ends",
            "qwen-coder-function",
            "gemma-quotes",
            "kimi-bare",
            "deepseek-bare",
        ),
        "something is left out",
    ),
}
"""Cases that are understood, but not what a grammar asks for."""
MORE = WEATHER["more"]
ONE_CALL = {"harmony": "<|start|>", "muse": "<|eom|>", "llama": "\n"}
"""What ends the first call where a grammar asks for one."""
BEGINS = {"harmony": "<|channel|>commentary to=", "muse": " to=get_weather"}
"""Where the calls begin, if not where their first tag does."""
WAYS = [case for case in CASES if case.calls and str(case) not in OTHERWISE]


class Vocabulary:
    """A tokenizer of bytes and special tokens, as llguidance wants it."""

    def __init__(self, specials: list[str]) -> None:
        self.specials = {text: 256 + i for i, text in enumerate(specials)}
        self.tokens = [bytes([i]) for i in range(256)] + [b"\xff" + text.encode() for text in (*specials, "<END>")]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())

    def ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, self.specials)) + ")", text) if self.specials else [text]:
            ids += [self.specials[part]] if part in self.specials else part.encode()
        return ids


def accepted(grammar: str, vocabulary: Vocabulary, text: str) -> tuple[int, bool]:
    """How many tokens of a text a grammar takes, of those that it has, and whether it may end there."""
    llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary)), grammar)
    assert not matcher.get_error(), matcher.get_error()
    ids = vocabulary.ids(text)
    n = matcher.validate_tokens(ids)
    if n == len(ids):
        matcher.consume_tokens(ids)
    return len(ids) - n, n == len(ids) and matcher.is_accepting()


def calls_alone(case: Case) -> str:
    """A case's text from its calls on, as the grammar has them."""
    text = case.text.replace(">True<", ">true<").replace(str(MORE), json.dumps(MORE))
    text = re.sub(r', "id": "\w+"', "", text)
    start = BEGINS.get(case.format, case.reply_format.calls[0].literal)
    text = text[text.index(start) :].removesuffix("I asked.").removesuffix("<|close|>message<|sep|>")
    return text.split(ONE_CALL[case.format])[0] if case.format in ONE_CALL else text


@pytest.mark.parametrize("specials", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("case", WAYS, ids=str)
def test_what_a_model_writes_is_allowed(case: Case, specials: bool) -> None:
    """A grammar that asks for other spaces, or for tags as text where they are tokens, makes a model write what it was
    never trained on, or nothing."""
    text = calls_alone(case)
    vocabulary = Vocabulary(list(dict.fromkeys(SPECIAL.findall(text))) if specials else [])
    grammar = case.reply_format.tool_grammar(TOOLS, "required", vocabulary.specials)
    assert accepted(grammar, vocabulary, text) == (0, True), text


@pytest.mark.parametrize("case", WAYS, ids=str)
def test_what_is_no_call_of_the_tools_is_not_allowed(case: Case) -> None:
    """A forced call of a function that does not exist, without what it needs, or of another than was named."""
    text, vocabulary = calls_alone(case), Vocabulary([])
    required = case.reply_format.tool_grammar(TOOLS, "required")
    name = case.calls[0][0]
    assert accepted(required, vocabulary, text.replace(name, "pong"))[0] > 0
    assert accepted(required, vocabulary, "I cannot.")[0] > 0
    assert not accepted(required, vocabulary, text[:-1])[1] or text[-1] in "\n"
    other = next(tool["function"]["name"] for tool in TOOLS if tool["function"]["name"] != name)
    for named, allowed in ((name, True), (other, False)):
        grammar = case.reply_format.tool_grammar(TOOLS, {"type": "function", "function": {"name": named}})
        begun = text[: text.rindex(name) + len(name)]
        assert (accepted(grammar, vocabulary, begun)[0] == 0) is allowed


@pytest.mark.parametrize("case", [case for case in WAYS if case.calls[0][0] == "get_weather"], ids=str)
def test_what_a_function_needs_is_not_left_out(case: Case) -> None:
    """`required` of a schema that holds in JSON alone; a parameter that may be left out, though, may."""
    text, vocabulary = calls_alone(case), Vocabulary([])
    tools = json.loads(json.dumps(TOOLS))
    schema = tools[0]["function"]["parameters"]
    schema["properties"]["wind"] = {"type": "string", "enum": ["m/s", "km/h"]}
    assert accepted(case.reply_format.tool_grammar(tools, "required"), vocabulary, text) == (0, True)
    schema["required"].append("wind")
    assert accepted(case.reply_format.tool_grammar(tools, "required"), vocabulary, text) != (0, True)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {}}},
        {
            "type": "object",
            "properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        },
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": ["x", 1, None]}}},
        {"properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"const": 3}}}}}},
        {"properties": {"a": {"type": "array"}, "b c": {"type": "object"}, 'q"q': {"type": "number"}}},
    ],
    ids=str,
)
def test_every_schema_has_a_grammar_in_every_format(row: Any, schema: dict[str, Any]) -> None:
    """Schemas as clients write them: without a type, without properties, with choices and references."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    grammar = format_named(row.name).tool_grammar(tools, "required")
    assert accepted(grammar, Vocabulary([]), "no call")[0] > 0


def test_a_choice_that_cannot_be_is_an_error() -> None:
    """A misspelt function would force a call of nothing."""
    format = format_named("hermes")
    with pytest.raises(ConfigError, match="'pong', which is none of the tools: get_weather, ping"):
        format.tool_grammar(TOOLS, {"type": "function", "function": {"name": "pong"}})
    with pytest.raises(ConfigError, match="forces no call"):
        format.tool_grammar(TOOLS, "auto")
    with pytest.raises(ConfigError, match="no tools"):
        format.tool_grammar([], "required")
    with pytest.raises(ConfigError, match="shows no way"):
        ReplyFormat().tool_grammar(TOOLS, "required")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_schema_that_refers_to_itself_ends(row: Any) -> None:
    """A request's schema whose choices lead back to it ten ways would take for ever to write down, or to read."""
    inner = {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(10)}, "required": ["p1"]}
    for schema in ({"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}] * 10}}}, inner):
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        try:
            grammar = format_named(row.name).tool_grammar(tools, "required")
        except ConfigError as error:
            assert "schema" in str(error)
        else:
            assert len(grammar) < 1 << 20
