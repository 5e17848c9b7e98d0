"""Constraints that cannot be obeyed: each is refused by name, before anything is computed."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from grammar_tools import constraint, drawn
from tokenizer_vocabs import bpe_metadata, tokenizer_of

import mixkv
from mixkv.engine.grammar.vocabulary import GrammarVocabulary
from mixkv.engine.sampling import SamplingParams


@pytest.fixture(scope="module")
def demo() -> mixkv.LLM:
    return mixkv.load(None, n_threads=1)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"json_schema": {"type": "array", "uniqueItems": True}}, 'keywords that are not supported: "uniqueItems"'),
        ({"json_schema": {"properties": {"a": {"not": {}}}}}, 'keywords that are not supported: "not"'),
        ({"json_schema": {"if": {}, "then": {}}}, "not supported"),
        ({"json_schema": {"type": "integer", "minimum": 3, "exclusiveMinimum": True}}, "#/exclusiveMinimum is true"),
        ({"json_schema": {"type": "string", "format": "colour"}}, "Unknown format: colour"),
        ({"json_schema": {"oneOf": [{"type": "string"}, {"enum": ["a"]}]}}, "use anyOf"),
        ({"json_schema": {"$ref": "https://example.org/x"}}, "https://example.org/x"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum (3) is greater than maximum (2)"),
        ({"json_schema": "{"}, "json_schema = '{': not JSON"),
        ({"json_schema": [1]}, "expected an object"),
        ({"json_schema": {"enum": [{1, 2}]}}, "not JSON"),
        ({"regex": "a("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": ""}, "regex = ''"),
        ({"regex": 5}, "regex = 5"),
        ({"grammar": "start: b"}, "unknown name"),
        ({"grammar": "root ::= b"}, "there is no rule 'b'"),
        ({"regex": "a", "grammar": 'root ::= "a"'}, "regex and grammar both say"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(demo: mixkv.LLM, settings: dict[str, Any], complaint: str) -> None:
    """A keyword that is read past gives JSON that the caller's validator refuses, one text in a thousand."""
    with pytest.raises(mixkv.ConfigError) as caught:
        demo.generate("Once", max_tokens=1, **settings)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_schema_is_kept_as_it_was() -> None:
    """A dict that its owner changes later must not change settings that are frozen; text is as good as a dict."""
    mine = {"type": "object", "properties": {"b": {}, "a": {}}}
    params = SamplingParams(json_schema=mine)
    mine["type"] = "string"
    assert params.json_schema == {"type": "object", "properties": {"b": {}, "a": {}}}
    assert params == SamplingParams(json_schema=json.dumps(params.json_schema))


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, demo: mixkv.LLM) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(mixkv.ConfigError, match=re.escape("need llguidance: pip install 'mixkv[grammar]'")):
        demo.generate("Once", regex="a")
    wanted = [r for r in importlib.metadata.requires("mixkv") or [] if r.startswith("llguidance")]
    assert any('extra == "grammar"' in r.replace("'", '"') for r in wanted)


def test_a_vocabulary_that_cannot_write_it_says_so(tmp_path: Path) -> None:
    """Without a token for some byte a text can come to a place where nothing fits: the model is not damaged."""
    made = bpe_metadata()
    tokens = made["tokenizer.ggml.tokens"]
    made["tokenizer.ggml.tokens"] = [f"{t}§" if t == "q" else t for t in tokens]  # type: ignore[attr-defined]
    tokenizer = tokenizer_of(tmp_path, made)
    with pytest.raises(mixkv.MixkvError, match="regex: "):
        drawn(constraint(GrammarVocabulary(tokenizer), regex="aq"), tokenizer, 0)
